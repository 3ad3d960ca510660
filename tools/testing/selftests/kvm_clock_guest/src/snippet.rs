// SPDX-License-Identifier: GPL-2.0-only

//! A few instructions that a stopped vCPU of the built-in guest executes in between.

use anyhow::{bail, Context, Result};
use clockguest::vmm::Vm;
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuExit;

/// Guest physical address of the instructions: a page that `clockguest::guest::layout` leaves free.
const CODE: u64 = 0x7000;

/// Has vCPU `index` of the stopped `vm`, which is in long mode, write an MSR; all its registers are
/// put back.
///
/// KVM tells a guest's write from a VMM's.
///
/// # Errors
///
/// Those of the ioctls; any exit but the one expected.
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

/// Has vCPU `index` of the stopped `vm`, which is in long mode, execute a HLT and nothing else, so
/// that KVM does all that it has to do before the vCPU's next instruction.
///
/// # Errors
///
/// As of [`write_msr`].
pub fn halt(vm: &Vm, index: usize) -> Result<()> {
    execute(vm, index, &[0xf4], |regs| regs)
}

/// Executes `instructions`, which end with a HLT, with what `registers` makes of the vCPU's.
fn execute(
    vm: &Vm,
    index: usize,
    instructions: &[u8],
    registers: impl FnOnce(kvm_regs) -> kvm_regs,
) -> Result<()> {
    vm.memory().write(CODE, instructions);
    let mut fd = vm.vcpus()[index].fd();
    let saved = fd.get_regs().context("KVM_GET_REGS")?;
    let regs = kvm_regs {
        rip: CODE,
        ..registers(saved)
    };
    fd.set_regs(&regs).context("KVM_SET_REGS")?;
    // The vCPU's last stop left a byte that makes KVM_RUN return at once.
    fd.set_kvm_immediate_exit(0);
    match fd.run().context("KVM_RUN")? {
        VcpuExit::Hlt => (),
        exit => bail!("the guest's HLT ended in {exit:?}"),
    }
    fd.set_regs(&saved).context("KVM_SET_REGS")
}
