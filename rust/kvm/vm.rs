// SPDX-License-Identifier: GPL-2.0-only

//! A VM and its vCPUs.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h)

use super::{
    bindings,
    clocks::{
        ratio_of,
        ClocksGuard, //
    },
    held::HeldVcpus, //
};
use crate::pvclock::{
    abi::ClockGuest,
    tsc::Relation, //
};
use core::{
    mem::MaybeUninit,
    slice, //
};
use kernel::{
    error::to_result,
    prelude::*,
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

/// A virtual machine, lent for the duration of an ioctl.
///
/// # Invariants
///
/// This is a valid `struct kvm`, kept alive by the file descriptor that the ioctl came through.
#[repr(transparent)]
pub(crate) struct Vm(Opaque<bindings::kvm>);

impl Vm {
    /// Makes a reference from KVM's pointer.
    ///
    /// # Safety
    ///
    /// `kvm` must point to a valid `struct kvm` that outlives `'a`.
    pub(super) unsafe fn from_raw<'a>(kvm: *mut bindings::kvm) -> &'a Self {
        // CAST: `Self` is transparent over `struct kvm`.
        // SAFETY: The caller guarantees validity for `'a`.
        // INVARIANT: As above.
        unsafe { &*kvm.cast() }
    }

    pub(super) fn as_raw(&self) -> *mut bindings::kvm {
        self.0.get()
    }

    /// How many vCPUs the VM has at the moment; exact under [`VmGuard`] only.
    pub(crate) fn nr_vcpus(&self) -> u32 {
        // SAFETY: By the type invariant this is a valid `struct kvm`; the count is an atomic.
        unsafe { bindings::rust_helper_kvm_online_vcpus(self.as_raw()) }
    }

    /// Takes `kvm->lock`; it is not held while a vCPU runs.
    ///
    /// # Errors
    ///
    /// `EINTR` if the task was killed while it waited.
    pub(crate) fn lock(&self) -> Result<VmGuard<'_>> {
        // SAFETY: By the type invariant this is a valid `struct kvm`; this may sleep, as ioctls do.
        to_result(unsafe { bindings::rust_helper_kvm_lock_killable(self.as_raw()) })?;
        // INVARIANT: The lock was just taken.
        Ok(VmGuard {
            vm: self,
            _not_send: NotThreadSafe,
        })
    }
}

/// The set of a VM's vCPUs standing still: none is being created.
///
/// # Invariants
///
/// `kvm->lock` of `vm` is held by this task.
#[must_use = "if unused, the lock will be immediately released"]
pub(crate) struct VmGuard<'a> {
    vm: &'a Vm,
    _not_send: NotThreadSafe,
}

impl VmGuard<'_> {
    pub(super) fn as_raw(&self) -> *mut bindings::kvm {
        self.vm.as_raw()
    }

    /// How many vCPUs the VM has.
    pub(crate) fn nr_vcpus(&self) -> u32 {
        self.vm.nr_vcpus()
    }

    /// The vCPU that was created first, if any.
    pub(crate) fn first_vcpu(&self) -> Option<&Vcpu> {
        if self.nr_vcpus() == 0 {
            return None;
        }
        let mut room = [MaybeUninit::uninit()];
        // SAFETY: There is one, at least.
        unsafe { self.look_up(0, &mut room) }.first().copied()
    }

    /// Shows all vCPUs to `each`, in the order of their creation, until it fails.
    ///
    /// # Errors
    ///
    /// That of `each`.
    #[inline]
    pub(crate) fn try_for_each_vcpu<'a, E>(
        &'a self,
        mut each: impl FnMut(&'a Vcpu) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut room = [MaybeUninit::uninit(); BATCH];
        let nr_vcpus = self.nr_vcpus();
        for first in (0..nr_vcpus).step_by(BATCH) {
            // CAST: `usize` has 64 bits.
            let left = (nr_vcpus - first) as usize;
            let room = &mut room[..left.min(BATCH)];
            // SAFETY: `first` plus what is left is the number of vCPUs.
            for vcpu in unsafe { self.look_up(first, room) } {
                each(vcpu)?;
            }
        }
        Ok(())
    }

    /// The vCPUs from index `first` on, as many as there is `room` for.
    ///
    /// # Safety
    ///
    /// All of them must be online.
    unsafe fn look_up<'a, 'b>(
        &'a self,
        first: u32,
        room: &'b mut [MaybeUninit<&'a Vcpu>],
    ) -> &'b [&'a Vcpu] {
        // CAST: `Vcpu` is transparent over `struct kvm_vcpu`, a reference is a pointer, and so is
        // room for one. `room` is at most `BATCH` long.
        let (vcpus, nr) = (room.as_mut_ptr().cast(), room.len() as u32);
        // SAFETY: By the type invariant this is a valid VM whose set of vCPUs stands still; the
        // caller guarantees that these are online.
        unsafe { bindings::rust_helper_kvm_get_vcpus(self.as_raw(), first, vcpus, nr) };
        // SAFETY: All of `room` was just written: pointers to valid vCPUs, which live as long as
        // the VM.
        unsafe { slice::from_raw_parts(vcpus.cast(), room.len()) }
    }

    /// Makes TSC offsets and master clock stand still, for reading them.
    ///
    /// Spins with interrupts off: nothing that sleeps or touches user memory until it is dropped.
    pub(crate) fn clocks(&self) -> ClocksGuard<'_> {
        ClocksGuard::new(self)
    }

    /// Makes a record the clock of the VM; `relation` is the TSC of `vcpu` that it is for.
    ///
    /// Running vCPUs leave the guest and come back to it.
    pub(crate) fn keep(&self, vcpu: &Vcpu, relation: Relation, record: &ClockGuest) {
        let kept = bindings::kvm_kept_clock {
            valid: true,
            tsc_offset: relation.offset,
            tsc_scaling_ratio: ratio_of(vcpu, relation.scale),
            record: to_pvclock(record),
        };
        // SAFETY: By the type invariant `kvm->lock` is held; `kept` is copied.
        unsafe { bindings::kvm_clock_guest_keep(self.as_raw(), &kept) };
    }

    /// Holds all vCPUs out of the guest.
    ///
    /// # Errors
    ///
    /// `EBUSY` if one is inside an ioctl, that is to say in `KVM_RUN`.
    pub(crate) fn try_hold_vcpus(&self) -> Result<HeldVcpus<'_>> {
        HeldVcpus::new(self)
    }
}

impl Drop for VmGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock is held, and by this task.
        unsafe { bindings::rust_helper_kvm_unlock(self.as_raw()) };
    }
}

/// vCPUs looked up at a time: what fits the stack, and is much against the cost of the first.
const BATCH: usize = 64;

/// A virtual CPU, lent for the duration of an ioctl or of a [`VmGuard`].
///
/// # Invariants
///
/// This is a valid `struct kvm_vcpu`, and online. It lives as long as its VM.
#[repr(transparent)]
pub(crate) struct Vcpu(Opaque<bindings::kvm_vcpu>);

impl Vcpu {
    /// Makes a reference from KVM's pointer.
    ///
    /// # Safety
    ///
    /// `vcpu` must point to a valid `struct kvm_vcpu`, online, that outlives `'a`.
    pub(super) unsafe fn from_raw<'a>(vcpu: *mut bindings::kvm_vcpu) -> &'a Self {
        // CAST: `Self` is transparent over `struct kvm_vcpu`.
        // SAFETY: The caller guarantees validity for `'a`.
        // INVARIANT: As above.
        unsafe { &*vcpu.cast() }
    }

    /// The VM that this is a vCPU of.
    pub(crate) fn vm(&self) -> &Vm {
        // SAFETY: By the type invariant this is a valid `struct kvm_vcpu`; its VM never changes,
        // and outlives it.
        unsafe { Vm::from_raw((*self.as_raw()).kvm) }
    }

    pub(super) fn as_raw(&self) -> *mut bindings::kvm_vcpu {
        self.0.get()
    }

    /// Whether it is inside an ioctl, e.g. in `KVM_RUN`; it may begin or end one at any time.
    pub(crate) fn is_busy(&self) -> bool {
        // SAFETY: By the type invariant this is a valid `struct kvm_vcpu`.
        unsafe { bindings::rust_helper_kvm_vcpu_is_locked(self.as_raw()) }
    }

    /// The id that `KVM_CREATE_VCPU` was given.
    pub(crate) fn id(&self) -> u32 {
        // SAFETY: By the type invariant this is a valid `struct kvm_vcpu`; the id never changes.
        let id = unsafe { (*self.as_raw()).vcpu_id };
        // CAST: KVM keeps ids below `KVM_MAX_VCPU_IDS`.
        id as u32
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
