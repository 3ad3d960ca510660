// SPDX-License-Identifier: GPL-2.0-only

//! A few instructions that a stopped vCPU executes.

use crate::msr::{set_msr, ENABLE, MSR_KVM_SYSTEM_TIME_NEW};
use anyhow::{Context, Result};
use clockguest::vmm::{halt, Vm};
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuFd;
use pvclock::abi::ClockGuest;
use std::sync::atomic::Ordering;

// Guest physical addresses of pages that `clockguest::guest::layout` leaves free.
const REAL_MODE_CODE: u64 = 0x6000;
const LONG_MODE_CODE: u64 = 0x7000;
const RECORD: u64 = 0x7000;

/// Makes vCPU `index` of the built-in guest in the stopped `vm` write an MSR. KVM distinguishes a
/// guest's write from a VMM's.
pub fn write_msr(vm: &Vm, index: usize, msr: u32, value: u64) -> Result<()> {
    // wrmsr; hlt
    const INSTRUCTIONS: [u8; 3] = [0x0f, 0x30, 0xf4];
    const LOW: u64 = u32::MAX as u64;

    execute(vm, index, &INSTRUCTIONS, |regs| kvm_regs {
        rcx: msr.into(),
        rax: value & LOW,
        rdx: value >> 32,
        ..regs
    })
}

/// Makes vCPU `index` of the built-in guest in the stopped `vm` execute a HLT and nothing else, so
/// that KVM does all that it has to do before the vCPU's next instruction.
pub fn halt(vm: &Vm, index: usize) -> Result<()> {
    execute(vm, index, &[0xf4], |regs| regs)
}

/// Executes `instructions`, which end with a HLT, with registers changed by `registers`, and
/// restores all registers.
fn execute(
    vm: &Vm,
    index: usize,
    instructions: &[u8],
    registers: impl FnOnce(kvm_regs) -> kvm_regs,
) -> Result<()> {
    vm.memory().write(LONG_MODE_CODE, instructions);
    let mut fd = vm.vcpus()[index].fd();
    let saved = fd.get_regs().context("KVM_GET_REGS")?;
    let regs = kvm_regs {
        rip: LONG_MODE_CODE,
        ..registers(saved)
    };
    fd.set_regs(&regs).context("KVM_SET_REGS")?;
    run_until_halt(&mut fd)?;
    fd.set_regs(&saved).context("KVM_SET_REGS")
}

fn run_until_halt(fd: &mut VcpuFd) -> Result<()> {
    // The vCPU's last stop left a byte that makes KVM_RUN return immediately.
    fd.set_kvm_immediate_exit(0);
    Ok(halt::run(fd)?)
}

/// Creates a vCPU with the id after those of `Vm::vcpus()`; it is in real mode.
pub fn add_vcpu(vm: &Vm) -> Result<VcpuFd> {
    Ok(vm.add_vcpu(vm.vcpus().len() as u64)?)
}

/// Makes a vCPU of `vm` that is in real mode execute a HLT.
pub fn halt_in_real_mode(vm: &Vm, fd: &mut VcpuFd) -> Result<()> {
    vm.memory().write(REAL_MODE_CODE, &halt::CODE);
    halt::start_at(fd, REAL_MODE_CODE)?;
    run_until_halt(fd)
}

/// Enables kvmclock on a vCPU of `vm` that is in real mode, runs it, and returns its record.
pub fn record_in_real_mode(vm: &Vm, fd: &mut VcpuFd) -> Result<ClockGuest> {
    set_msr(fd, MSR_KVM_SYSTEM_TIME_NEW, RECORD | ENABLE)?;
    halt_in_real_mode(vm, fd)?;
    Ok(record_at(vm, RECORD))
}

/// The pvclock record at guest physical address `gpa`.
pub fn record_at(vm: &Vm, gpa: u64) -> ClockGuest {
    let word = |offset| vm.memory().word(gpa + offset).load(Ordering::Acquire);
    zerocopy::transmute!([0, 8, 16, 24].map(word))
}
