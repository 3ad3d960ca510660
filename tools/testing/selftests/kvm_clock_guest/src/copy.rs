// SPDX-License-Identifier: GPL-2.0-only

//! Moves a guest of [`code_guest`](clockguest::vmm::code_guest) to another VM.

use crate::msr::{get_msr, set_msr};
use anyhow::{Context, Result};
use clockguest::vmm::{Guest, Vm, VmBuilder};
use kvm_ioctls::{Kvm, KvmNestedStateBuffer, VcpuFd};

/// A new VM with memory and vCPUs of the stopped `vm`: registers, local APICs, and the `msrs`,
/// whose meaning may depend on those.
pub fn into_new_vm(kvm: &Kvm, vm: &Vm, msrs: &[u32]) -> Result<Vm> {
    let new = without_lapics(kvm, vm)?;
    set_lapics(vm, &new)?;
    set_msrs(vm, &new, msrs)?;
    Ok(new)
}

/// A new VM with memory and vCPUs of the stopped `vm`, but for local APICs and MSRs.
pub fn without_lapics(kvm: &Kvm, vm: &Vm) -> Result<Vm> {
    // CAST: a few.
    let new = VmBuilder::new(kvm, vm.vcpus().len() as u32)
        .guest(Guest::Code(&[]))
        .build()?;
    new.memory().write(0, &vm.memory().to_vec());
    for_each_vcpu(vm, &new, |from, to| {
        to.set_sregs(&from.get_sregs().context("KVM_GET_SREGS")?)
            .context("KVM_SET_SREGS")?;
        to.set_regs(&from.get_regs().context("KVM_GET_REGS")?)
            .context("KVM_SET_REGS")?;
        to.set_mp_state(from.get_mp_state().context("KVM_GET_MP_STATE")?)
            .context("KVM_SET_MP_STATE")
    })?;
    Ok(new)
}

/// Gives the vCPUs of `new` the local APICs of those of the stopped `vm`.
pub fn set_lapics(vm: &Vm, new: &Vm) -> Result<()> {
    for_each_vcpu(vm, new, |from, to| {
        to.set_lapic(&from.get_lapic().context("KVM_GET_LAPIC")?)
            .context("KVM_SET_LAPIC")
    })
}

/// Gives the vCPUs of `new` the `msrs` of those of the stopped `vm`.
pub fn set_msrs(vm: &Vm, new: &Vm, msrs: &[u32]) -> Result<()> {
    for_each_vcpu(vm, new, |from, to| {
        for &index in msrs {
            set_msr(to, index, get_msr(from, index)?)?;
        }
        Ok(())
    })
}

fn for_each_vcpu(vm: &Vm, new: &Vm, copy: impl Fn(&VcpuFd, &VcpuFd) -> Result<()>) -> Result<()> {
    vm.vcpus()
        .iter()
        .zip(new.vcpus())
        .try_for_each(|(from, to)| copy(&from.fd(), &to.fd()))
}

/// The nested state of a stopped vCPU.
pub fn nested_state(vm: &Vm, vcpu: usize) -> Result<KvmNestedStateBuffer> {
    let mut state = KvmNestedStateBuffer::empty();
    vm.vcpus()[vcpu]
        .fd()
        .nested_state(&mut state)
        .context("KVM_GET_NESTED_STATE")?;
    Ok(state)
}

/// Sets the nested state of a stopped vCPU.
pub fn set_nested_state(vm: &Vm, vcpu: usize, state: &KvmNestedStateBuffer) -> Result<()> {
    vm.vcpus()[vcpu]
        .fd()
        .set_nested_state(state)
        .context("KVM_SET_NESTED_STATE")
}
