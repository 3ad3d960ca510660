// SPDX-License-Identifier: GPL-2.0-only

//! Writing the clocks of a VM none of whose vCPUs runs.
//!
//! C header: `arch/x86/include/asm/kvm_clock_guest.h`

use super::{
    bindings,
    vm::{
        Vcpu,
        VmGuard, //
    },
};
use crate::pvclock::abi::ClockGuest;
use kernel::{
    error::to_result,
    prelude::*,
    types::NotThreadSafe, //
};

/// All vCPUs of a VM held out of the guest.
///
/// # Invariants
///
/// `vcpu->mutex` of every vCPU of `vm` is held by this task.
#[must_use = "if unused, the vCPUs will be immediately let go"]
pub(crate) struct HeldVcpus<'a> {
    vm: &'a VmGuard<'a>,
    _not_send: NotThreadSafe,
}

impl<'a> HeldVcpus<'a> {
    pub(super) fn new(vm: &'a VmGuard<'a>) -> Result<Self> {
        // SAFETY: `VmGuard` proves a valid VM and that its lock is held.
        to_result(unsafe { bindings::kvm_clock_guest_trylock_vcpus(vm.as_raw()) })?;
        // INVARIANT: The mutexes were just taken, and the set of vCPUs stands still.
        Ok(Self {
            vm,
            _not_send: NotThreadSafe,
        })
    }

    /// Writes the L1 TSC offset (ticks) of a vCPU of this VM, as `KVM_VCPU_TSC_OFFSET` does.
    pub(crate) fn set_tsc_offset(&self, vcpu: &Vcpu, offset: u64) {
        // SAFETY: By the type invariant the vCPU's mutex is held.
        unsafe { bindings::kvm_clock_guest_set_tsc_offset(vcpu.as_raw(), offset) };
    }

    /// The L1 TSC offset (ticks) of a vCPU of this VM.
    pub(crate) fn tsc_offset(&self, vcpu: &Vcpu) -> u64 {
        // SAFETY: Valid by `Vcpu`'s invariant; the vCPU's mutex, held by the type invariant, keeps
        // everybody from writing it.
        unsafe { (*vcpu.as_raw()).arch.l1_tsc_offset }
    }

    /// Makes a record the clock of the VM.
    ///
    /// `vcpu` is the vCPU that the record is for, and `tsc_offset` (ticks) the L1 TSC offset that it
    /// is for.
    pub(crate) fn keep(&self, vcpu: &Vcpu, tsc_offset: u64, record: &ClockGuest) {
        let kept = bindings::kvm_kept_clock {
            valid: true,
            tsc_offset,
            // SAFETY: Valid by `Vcpu`'s invariant, and the ratio does not change while the vCPU's
            // mutex is held, which it is by the type invariant.
            tsc_scaling_ratio: unsafe { (*vcpu.as_raw()).arch.l1_tsc_scaling_ratio },
            record: to_pvclock(record),
        };
        // SAFETY: By the type invariant the mutexes of all vCPUs are held; `kept` is copied.
        unsafe { bindings::kvm_clock_guest_keep(self.vm.as_raw(), &kept) };
    }
}

impl Drop for HeldVcpus<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the mutexes are held, and by this task.
        unsafe { bindings::kvm_clock_guest_unlock_vcpus(self.vm.as_raw()) };
    }
}

/// A record as KVM's C has it; who vouches for it is KVM's to say.
pub(super) fn to_pvclock(record: &ClockGuest) -> bindings::pvclock_vcpu_time_info {
    bindings::pvclock_vcpu_time_info {
        version: 0,
        pad0: 0,
        tsc_timestamp: record.tsc_timestamp,
        system_time: record.system_time,
        tsc_to_system_mul: record.tsc_to_system_mul,
        tsc_shift: record.tsc_shift,
        flags: 0,
        pad: [0; 2],
    }
}
