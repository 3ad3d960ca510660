// SPDX-License-Identifier: GPL-2.0-only

//! Each errno by each of its causes; a call that fails leaves every clock as it was.
//!
//! Two causes cannot be had here: `EINTR` reaches nobody, as the signal is fatal; and `EBUSY` for a
//! host TSC rate that is momentarily unknown needs a host that has not calibrated its TSC yet.
//! `ENOTTY` is kselftest-lifecycle's, `ENOMEM` kselftest-atomicity's, and `ENODATA` for a host that
//! stops using its TSC kselftest-clocksource's, as it concerns the whole host.

mod accepted;
mod backwards;
mod malformed;
mod memory;
mod other_process;
mod protected;
mod refused;

use anyhow::Result;
use clockguest::vmm::Vm;
use kvm_clock_guest_selftests::{
    fixture::{derived, pinned},
    ktap, require,
};
use kvm_ioctls::Kvm;
use std::process::ExitCode;

/// vCPUs of the VMs; the cases' tables count on it.
const VCPUS: u32 = 2;

/// What the cases share: a call that fails changes nothing, so one VM serves many of them.
struct Host {
    kvm: Kvm,
    /// A VM whose clocks KVM derived, and one whose clock is pinned.
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
    let mut cases = malformed::cases();
    cases.extend(memory::cases());
    cases.extend(refused::cases());
    cases.extend(other_process::cases());
    cases.extend(protected::cases());
    cases.extend(accepted::cases());
    cases.extend(backwards::cases());
    ktap::main(Host::new, cases)
}
