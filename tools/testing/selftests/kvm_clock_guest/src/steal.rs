// SPDX-License-Identifier: GPL-2.0-only

//! The guest's steal clocks.

use crate::msr::{set_msr, ENABLE, MSR_KVM_STEAL_TIME};
use anyhow::Result;
use clockguest::vmm::Vm;
use std::sync::atomic::Ordering;

/// A page that `clockguest::guest::layout` leaves free.
const STEAL_TIMES: u64 = 0x6000;
/// `struct kvm_steal_time`, of which each vCPU has one, as aligned as KVM requires.
const STEAL_TIME_SIZE: u64 = 64;

fn address(vcpu: usize) -> u64 {
    STEAL_TIMES + vcpu as u64 * STEAL_TIME_SIZE
}

/// Enables or disables the steal clock of a stopped vCPU.
pub fn enable(vm: &Vm, vcpu: usize, is_enabled: bool) -> Result<()> {
    let value = if is_enabled {
        address(vcpu) | ENABLE
    } else {
        0
    };
    Ok(set_msr(&vm.vcpus()[vcpu].fd(), MSR_KVM_STEAL_TIME, value)?)
}

/// The steal clocks of all vCPUs, ns.
pub fn read(vm: &Vm) -> Vec<u64> {
    let read = |vcpu| vm.memory().word(address(vcpu)).load(Ordering::Relaxed);
    (0..vm.vcpus().len()).map(read).collect()
}
