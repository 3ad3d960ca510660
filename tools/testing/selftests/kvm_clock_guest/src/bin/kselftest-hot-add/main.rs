// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU that is added to a VM with a pinned clock has the TSC of vCPU 0: its scaling ratio and
//! its present offset, to the bit. GET reports all vCPUs and the pinned clock, and the new vCPU
//! reads it.

mod joins;
mod moved;
mod rates;

use kvm_clock_guest_selftests::{
    ktap::{self, note},
    require,
};
use std::process::ExitCode;

fn main() -> ExitCode {
    let scales = require::vendor_kvm().is_ok_and(|kvm| require::scales(&kvm));
    let mut cases = moved::cases();
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
