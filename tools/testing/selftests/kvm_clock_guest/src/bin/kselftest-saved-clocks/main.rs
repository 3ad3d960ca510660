// SPDX-License-Identifier: GPL-2.0-only

//! The crate `kvm-clock`: saved clocks come back, on this host, another one, or one without the
//! module; the policy decides what happens otherwise; and what is refused changes nothing.
//!
//! Unloads the module for a while, which needs root.

mod descriptors;
mod format;
mod modes;
mod policy;
mod refused;
mod state;
mod without_module;

use kvm_clock_guest_selftests::{module::Host, prelude::*};

/// vCPUs of the VMs.
const VCPUS: u32 = 3;

fn main() -> ExitCode {
    let cases = [
        modes::cases(),
        policy::cases(),
        refused::cases(),
        format::cases(),
        descriptors::cases(),
        without_module::cases(),
    ];
    ktap::main(Host::new, ktap::all(cases))
}
