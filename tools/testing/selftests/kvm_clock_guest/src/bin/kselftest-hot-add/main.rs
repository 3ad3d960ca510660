// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU that is added to a VM with a pinned clock has the TSC of vCPU 0: its scaling ratio and
//! its present offset, to the bit. GET reports all vCPUs and the pinned clock, and the new vCPU
//! reads it.

mod joins;
mod moved;
mod rates;

use kvm_clock_guest_selftests::prelude::*;

fn main() -> ExitCode {
    let scales = require::host_scales();
    let mut cases = moved::cases();
    if scales {
        cases.extend(rates::cases());
    }
    ktap::main(require::clock_guest_of_any_rate, cases)
}
