// SPDX-License-Identifier: GPL-2.0-only

//! `PVCLOCK_TSC_STABLE` says the truth: every vCPU's pvclock page and GET's record have it if and
//! only if all vCPUs' TSCs are the same function of the host's. It survives SET, and SET takes it
//! off where the record lacks it.

mod rates;
mod state;
mod survives;
mod writes;

use kvm_clock_guest_selftests::{
    ktap::{self, note},
    require,
};
use std::process::ExitCode;

fn main() -> ExitCode {
    let scales = require::vendor_kvm().is_ok_and(|kvm| require::scales(&kvm));
    let mut cases = writes::cases();
    cases.extend(survives::cases());
    if scales {
        cases.extend(rates::cases());
    }
    let requirements = || {
        let kvm = require::clock_guest()?;
        if !scales {
            note("this host does not scale a guest's TSC: rates other than its own are left out");
        }
        Ok(kvm)
    };
    ktap::main(requirements, cases)
}
