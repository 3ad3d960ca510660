// SPDX-License-Identifier: GPL-2.0-only

//! Each errno with each of its causes; a call that fails changes no clock.
//!
//! Two causes are missing: `EINTR` is never visible, as the signal is fatal; and `EBUSY` for an
//! unknown host TSC rate needs a host that has not calibrated its TSC yet. kselftest-lifecycle has
//! `ENOTTY`, kselftest-atomicity has `ENOMEM`, and kselftest-clocksource has `ENODATA` for a host
//! that stops using its TSC.

mod accepted;
mod backwards;
mod malformed;
mod memory;
mod other_process;
mod protected;
mod refused;

use kvm_clock_guest_selftests::prelude::*;

/// vCPUs of the VMs; the cases' tables require two.
const VCPUS: u32 = 2;

/// What the cases share: a call that fails changes nothing, so many cases use one VM.
struct Host {
    kvm: Kvm,
    /// A VM with a derived clock, and one with a pinned clock.
    vms: [Vm; 2],
}

impl Host {
    fn new() -> Result<Self> {
        let kvm = require::clock_guest()?;
        let vms = [derived(&kvm, VCPUS)?, pinned(&kvm, VCPUS)?];
        Ok(Self { kvm, vms })
    }
}

fn main() -> ExitCode {
    let cases = [
        malformed::cases(),
        memory::cases(),
        refused::cases(),
        other_process::cases(),
        protected::cases(),
        accepted::cases(),
        backwards::cases(),
    ];
    ktap::main(Host::new, ktap::all(cases))
}
