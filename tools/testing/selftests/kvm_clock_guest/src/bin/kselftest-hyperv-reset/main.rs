// SPDX-License-Identifier: GPL-2.0-only

//! Hyper-V's reference counter goes on, as an MSR and in the TSC page, when the guest's TSC falls
//! below the `tsc_timestamp` of the pinned record, e.g. because the guest is reset. The record's
//! timestamp moves with the TSC then, below 0, to a number that lies above the TSC unless it counts
//! modulo 2^64.

mod backwards;
mod reset;
mod state;

use kvm_clock_guest_selftests::{ktap, require};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut cases = reset::cases();
    cases.extend(backwards::cases());
    ktap::main(require::clock_guest, cases)
}
