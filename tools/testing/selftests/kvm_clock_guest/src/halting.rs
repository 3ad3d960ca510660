// SPDX-License-Identifier: GPL-2.0-only

//! vCPUs with a single instruction, HLT, for cases about guests that do not read their clocks.

use anyhow::{bail, Context, Result};
use clockguest::{
    guest::code::MSR_KVM_SYSTEM_TIME_NEW,
    vmm::{vm::set_msr, Vm},
};
use kvm_bindings::{kvm_regs, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use pvclock::abi::ClockGuest;
use std::sync::atomic::Ordering;

/// Guest physical address of the instruction: a page that `clockguest::guest::layout` leaves free.
const CODE: u64 = 0x6000;
/// Guest physical address of the pvclock record: likewise.
const RECORD: u64 = 0x7000;
const HLT: u8 = 0xf4;

/// Creates another vCPU in a VM of `Vm::vcpus().len()`.
///
/// # Errors
///
/// Those of the ioctls.
pub fn add_vcpu(kvm: &Kvm, vm: &Vm) -> Result<VcpuFd> {
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .context("KVM_GET_SUPPORTED_CPUID")?;
    let fd = vm
        .fd()
        .create_vcpu(vm.vcpus().len() as u64)
        .context("KVM_CREATE_VCPU")?;
    fd.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
    Ok(fd)
}

/// Runs a vCPU of `vm` until it executed its HLT, in real mode.
///
/// # Errors
///
/// Those of the ioctls; any other exit.
pub fn run(vm: &Vm, fd: &mut VcpuFd) -> Result<()> {
    vm.memory().write(CODE, &[HLT]);
    let mut sregs = fd.get_sregs().context("KVM_GET_SREGS")?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    fd.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let regs = kvm_regs {
        rip: CODE,
        // Bit 1 is always set.
        rflags: 2,
        ..kvm_regs::default()
    };
    fd.set_regs(&regs).context("KVM_SET_REGS")?;
    match fd.run().context("KVM_RUN")? {
        VcpuExit::Hlt => Ok(()),
        exit => bail!("the guest's HLT ended in {exit:?}"),
    }
}

/// Gives a vCPU of `vm` kvmclock, runs it, and returns the record it has then.
///
/// # Errors
///
/// As of [`run`].
pub fn record(vm: &Vm, fd: &mut VcpuFd) -> Result<ClockGuest> {
    set_msr(fd, MSR_KVM_SYSTEM_TIME_NEW, RECORD | 1)?;
    run(vm, fd)?;
    let words =
        [0, 8, 16, 24].map(|offset| vm.memory().word(RECORD + offset).load(Ordering::Acquire));
    Ok(zerocopy::transmute!(words))
}
