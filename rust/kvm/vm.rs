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
    ops::Range,
    ptr, //
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
        let mut vcpu = ptr::null_mut();
        if self.nr_vcpus() != 0 {
            // SAFETY: By the type invariant this is a valid VM whose set of vCPUs stands still; it
            // has one, for which there is room.
            unsafe { bindings::rust_helper_kvm_get_vcpus(self.as_raw(), 0, &mut vcpu, 1) };
        }
        // SAFETY: It was just looked up, unless it is null, and lives as long as its VM.
        (!vcpu.is_null()).then(|| unsafe { Vcpu::from_raw(vcpu) })
    }

    /// All vCPUs, in the order of their creation.
    pub(crate) fn vcpus(&self) -> Vcpus<'_> {
        Vcpus {
            vm: self,
            batch: [ptr::null_mut(); BATCH],
            next: 0,
            got: 0,
            left: 0..self.nr_vcpus(),
        }
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

/// Iterator over the vCPUs of a VM; see [`VmGuard::vcpus`].
///
/// # Invariants
///
/// `batch[next..got]` are vCPUs of `vm`; `left` are indexes of others, all of them online.
pub(crate) struct Vcpus<'a> {
    vm: &'a VmGuard<'a>,
    batch: [*mut bindings::kvm_vcpu; BATCH],
    next: usize,
    got: usize,
    left: Range<u32>,
}

impl Vcpus<'_> {
    /// Looks up the next vCPUs.
    #[inline(never)]
    fn fill(&mut self) {
        // CAST: A small constant.
        let count = self.left.len().min(BATCH) as u32;
        let (vm, first) = (self.vm.as_raw(), self.left.start);
        // SAFETY: `VmGuard` proves a valid VM whose set of vCPUs stands still; by the type
        // invariant these are online, and `batch` has room for them.
        let got = unsafe {
            bindings::rust_helper_kvm_get_vcpus(vm, first, self.batch.as_mut_ptr(), count)
        };
        // INVARIANT: These were just looked up, and are left no more.
        self.left.start += count;
        // CAST: At most `BATCH`.
        (self.next, self.got) = (0, got as usize);
    }
}

impl<'a> Iterator for Vcpus<'a> {
    type Item = &'a Vcpu;

    #[inline]
    fn next(&mut self) -> Option<&'a Vcpu> {
        while self.next == self.got {
            if self.left.is_empty() {
                return None;
            }
            self.fill();
        }
        let vcpu = *self.batch.get(self.next)?;
        // It was found in the batch.
        self.next = self.next.wrapping_add(1);
        // SAFETY: By the type invariant this is a vCPU of the VM, and so lives as long as that.
        Some(unsafe { Vcpu::from_raw(vcpu) })
    }
}

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
