// SPDX-License-Identifier: GPL-2.0-only

//! `PVCLOCK_TSC_STABLE` is correct: every vCPU's pvclock page and GET's record have it if and only
//! if all vCPUs' TSCs are the same function of the host TSC. It survives SET, and SET of a record
//! without it clears it.

mod rates;
mod state;
mod survives;
mod writes;

use kvm_clock_guest_selftests::prelude::*;

fn main() -> ExitCode {
    let scales = require::host_scales();
    let mut cases = writes::cases();
    cases.extend(survives::cases());
    if scales {
        cases.extend(rates::cases());
    }
    ktap::main(require::clock_guest_of_any_rate, cases)
}
