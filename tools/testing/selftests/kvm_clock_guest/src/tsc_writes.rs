// SPDX-License-Identifier: GPL-2.0-only

//! The ways in which a VMM or a guest moves the TSC of one vCPU.

use crate::{
    fixture::vcpu_transform,
    msr::{get_msr, set_msr, MSR_IA32_TSC, MSR_IA32_TSC_ADJUST},
    snippet,
};
use anyhow::Result;
use clockguest::{host::rdtsc_ordered, vmm::Vm};
use pvclock::counter::GuestTsc;

/// A way to move a TSC.
#[derive(Clone, Copy, Debug)]
pub struct TscWrite {
    /// Its name.
    pub name: &'static str,
    /// Whether an instruction of the guest does it, after which the vCPU executes another one.
    pub by_guest: bool,
    /// Adds ticks (mod 2^64) to the TSC of a vCPU of a stopped VM.
    pub add: fn(&Vm, usize, u64) -> Result<()>,
}

/// `KVM_VCPU_TSC_OFFSET`, to the tick.
pub const BY_OFFSET: TscWrite = TscWrite {
    name: "KVM_VCPU_TSC_OFFSET",
    by_guest: false,
    add: |vm, index, ticks| {
        let offset = vm.tsc_offsets()?[index];
        Ok(vm.set_tsc_offset(index, offset.wrapping_add(ticks))?)
    },
};

/// `KVM_SET_MSRS` of the TSC. KVM regards less than a second as an attempt to make the vCPU's TSC
/// equal to another's.
pub const BY_VMM: TscWrite = TscWrite {
    name: "KVM_SET_MSRS of the TSC",
    by_guest: false,
    add: |vm, index, ticks| {
        let value = now(vm, index)?.wrapping_add(ticks);
        Ok(set_msr(&vm.vcpus()[index].fd(), MSR_IA32_TSC, value.0)?)
    },
};

/// The guest's WRMSR of the TSC.
pub const BY_GUEST: TscWrite = TscWrite {
    name: "the guest's WRMSR of the TSC",
    by_guest: true,
    add: |vm, index, ticks| {
        let value = now(vm, index)?.wrapping_add(ticks);
        snippet::write_msr(vm, index, MSR_IA32_TSC, value.0)
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

/// The vCPU's TSC now.
pub fn now(vm: &Vm, index: usize) -> Result<GuestTsc> {
    Ok(vcpu_transform(&vm.vcpus()[index].fd())?.guest_tsc(rdtsc_ordered()))
}
