// SPDX-License-Identifier: GPL-2.0-only

//! SET checks the record's rate: if it differs by more than 250 ppm from its TSC's rate, SET fails
//! with ERANGE in every mode, and with EINVAL for a factor that KVM never computes. So the error of
//! a clock that moves from host to host is bounded.

mod factor;
mod hops;
mod rates;
mod record;

use kvm_clock_guest_selftests::prelude::*;

fn main() -> ExitCode {
    let scales = require::host_scales();
    let mut cases = rates::cases();
    cases.extend(factor::cases());
    cases.extend(hops::cases(scales));
    ktap::main(require::clock_guest_of_any_rate, cases)
}
