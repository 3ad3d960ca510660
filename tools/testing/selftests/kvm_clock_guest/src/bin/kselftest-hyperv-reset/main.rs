// SPDX-License-Identifier: GPL-2.0-only

//! Hyper-V's reference counter continues, as an MSR and in the TSC page, when the guest's TSC falls
//! below the
//! `tsc_timestamp` of the pinned record, e.g. after a reset. The record's timestamp then moves with
//! the TSC, below 0, to a number that is above the TSC unless compared modulo 2^64.

mod backwards;
mod reset;
mod state;

use kvm_clock_guest_selftests::prelude::*;

fn main() -> ExitCode {
    let cases = [reset::cases(), backwards::cases()];
    ktap::main(require::clock_guest, ktap::all(cases))
}
