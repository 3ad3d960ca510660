// SPDX-License-Identifier: GPL-2.0-only

//! The ways in which a VMM or the guest moves the TSC of one vCPU.

use crate::{fixture::vcpu_transform, snippet};
use anyhow::{Context, Result};
use clockguest::{
    host::rdtsc_ordered,
    vmm::{
        vm::{get_msr, set_msr, MSR_IA32_TSC},
        Vm,
    },
};
use kvm_clock::{set_tsc_offset, tsc_offset};

/// `IA32_TSC_ADJUST`: what the guest adds to its TSC.
pub const MSR_IA32_TSC_ADJUST: u32 = 0x3b;

/// A way to move a TSC.
#[derive(Clone, Copy, Debug)]
pub struct TscWrite {
    /// What it is called.
    pub name: &'static str,
    /// Whether an instruction of the guest does it, after which the vCPU executes another one.
    pub by_guest: bool,
    /// Moves the TSC of a vCPU of a stopped VM by so many ticks, mod 2^64.
    pub add: fn(&Vm, usize, u64) -> Result<()>,
}

/// `KVM_VCPU_TSC_OFFSET`, to the tick.
pub const BY_OFFSET: TscWrite = TscWrite {
    name: "KVM_VCPU_TSC_OFFSET",
    by_guest: false,
    add: |vm, index, ticks| {
        let fd = vm.vcpus()[index].fd();
        let offset = tsc_offset(&fd).context("KVM_VCPU_TSC_OFFSET")?;
        set_tsc_offset(&fd, offset.wrapping_add(ticks)).context("KVM_VCPU_TSC_OFFSET")
    },
};

/// `KVM_SET_MSRS` of the TSC. By less than a second KVM takes it for an attempt to make the vCPU's
/// TSC equal to another's.
pub const BY_VMM: TscWrite = TscWrite {
    name: "KVM_SET_MSRS of the TSC",
    by_guest: false,
    add: |vm, index, ticks| {
        let value = now(vm, index)?.wrapping_add(ticks);
        Ok(set_msr(&vm.vcpus()[index].fd(), MSR_IA32_TSC, value)?)
    },
};

/// The guest's WRMSR of the TSC.
pub const BY_GUEST: TscWrite = TscWrite {
    name: "the guest's WRMSR of the TSC",
    by_guest: true,
    add: |vm, index, ticks| {
        let value = now(vm, index)?.wrapping_add(ticks);
        snippet::write_msr(vm, index, MSR_IA32_TSC, value)
    },
};

/// The guest's WRMSR of TSC_ADJUST, to the tick.
pub const BY_GUEST_ADJUST: TscWrite = TscWrite {
    name: "the guest's WRMSR of TSC_ADJUST",
    by_guest: true,
    add: |vm, index, ticks| {
        let adjust = get_msr(&vm.vcpus()[index].fd(), MSR_IA32_TSC_ADJUST)?;
        snippet::write_msr(vm, index, MSR_IA32_TSC_ADJUST, adjust.wrapping_add(ticks))
    },
};

/// All of them.
pub const TSC_WRITES: [TscWrite; 4] = [BY_OFFSET, BY_VMM, BY_GUEST, BY_GUEST_ADJUST];

/// The vCPU's TSC, ticks.
fn now(vm: &Vm, index: usize) -> Result<u64> {
    Ok(vcpu_transform(&vm.vcpus()[index].fd())?.guest_tsc(rdtsc_ordered()))
}
