// SPDX-License-Identifier: GPL-2.0-only

//! Writing the TSCs of a VM none of whose vCPUs runs.
//!
//! C header: `arch/x86/include/asm/kvm_clock_guest.h`

use super::{
    bindings,
    clocks::{
        offset_of,
        ratio_of, //
    },
    vm::{
        Vcpu,
        VmGuard, //
    },
};
use crate::pvclock::tsc::Relation;
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

    /// Writes the L1 TSC of a vCPU of this VM, as `KVM_VCPU_TSC_OFFSET` does, and its scaling
    /// ratio, for which [`is_valid_scale`](super::is_valid_scale).
    pub(crate) fn set_tsc(&self, vcpu: &Vcpu, relation: Relation) {
        let ratio = ratio_of(vcpu, relation.scale);
        // SAFETY: By the type invariant the vCPU's mutex is held. A ratio that the hardware refuses
        // makes KVM complain, and no more.
        unsafe { bindings::kvm_clock_guest_set_tsc(vcpu.as_raw(), relation.offset, ratio) };
    }

    /// The L1 TSC offset (ticks) of a vCPU of this VM.
    pub(crate) fn tsc_offset(&self, vcpu: &Vcpu) -> u64 {
        // The vCPU's mutex, held by the type invariant, keeps everybody from writing it.
        offset_of(vcpu)
    }
}

impl Drop for HeldVcpus<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the mutexes are held, and by this task.
        unsafe { bindings::kvm_clock_guest_unlock_vcpus(self.vm.as_raw()) };
    }
}
