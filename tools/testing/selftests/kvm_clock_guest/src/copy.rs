// SPDX-License-Identifier: GPL-2.0-only

//! Moves a guest of [`code_guest`](clockguest::vmm::code_guest) to another VM.

use crate::msr::{get_msr, set_msr};
use anyhow::{Context, Result};
use clockguest::vmm::{Guest, Vm, VmBuilder};
use kvm_ioctls::{Kvm, KvmNestedStateBuffer, VcpuFd};

/// A new VM with memory and vCPUs of the stopped `vm`: registers, local APICs, and the `msrs`,
/// whose meaning may depend on those.
pub fn into_new_vm(kvm: &Kvm, vm: &Vm, msrs: &[u32]) -> Result<Vm> {
    // CAST: a few.
    let new = VmBuilder::new(kvm, vm.vcpus().len() as u32)
        .guest(Guest::Code(&[]))
        .build()?;
    new.memory().write(0, &vm.memory().to_vec());
    for (from, to) in vm.vcpus().iter().zip(new.vcpus()) {
        copy_vcpu(&from.fd(), &to.fd(), msrs)?;
    }
    Ok(new)
}

fn copy_vcpu(from: &VcpuFd, to: &VcpuFd, msrs: &[u32]) -> Result<()> {
    to.set_sregs(&from.get_sregs().context("KVM_GET_SREGS")?)
        .context("KVM_SET_SREGS")?;
    to.set_regs(&from.get_regs().context("KVM_GET_REGS")?)
        .context("KVM_SET_REGS")?;
    to.set_lapic(&from.get_lapic().context("KVM_GET_LAPIC")?)
        .context("KVM_SET_LAPIC")?;
    to.set_mp_state(from.get_mp_state().context("KVM_GET_MP_STATE")?)
        .context("KVM_SET_MP_STATE")?;
    for &index in msrs {
        set_msr(to, index, get_msr(from, index)?)?;
    }
    Ok(())
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
