// SPDX-License-Identifier: GPL-2.0-only

//! A guest with an armed timer goes on in another VM.

use crate::{
    armed::{Armed, Guest},
    guest::MSR_TSC_DEADLINE,
};
use anyhow::Result;
use kvm_clock_guest_selftests::{
    machine::{copy_vcpu, Machine},
    time::SECOND_NS,
};
use kvm_ioctls::Kvm;
use pvclock::abi::MODE_EXACT;

/// Its TSC is a day ahead of the one that the new VM starts with, so that KVM arms the timer for
/// tomorrow until SET.
pub(crate) fn exact_in_new_vm(kvm: &Kvm) -> Result<()> {
    let mut armed = Armed::new(kvm, &Guest::PLAIN, SECOND_NS)?;
    let new = Machine::new(kvm, 2, &[])?;
    new.memory().write(0, &armed.machine.memory().to_vec());
    for (from, to) in armed.machine.vcpus().iter().zip(new.vcpus()) {
        copy_vcpu(&from.fd(), &to.fd(), &[MSR_TSC_DEADLINE])?;
    }
    armed.machine = new;
    armed.set(MODE_EXACT)?;
    armed.ensure_fires()
}
