// SPDX-License-Identifier: GPL-2.0-only

//! A VM: reading its clocks, and committing others.

use super::{
    bindings,
    state::RawState, //
};
use crate::pvclock::{
    abi::{
        ClockGuest,
        ClockGuestVcpu, //
    },
    tsc::TscTransform, //
};
use core::{
    mem::MaybeUninit,
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

    /// How many vCPUs the VM has at the moment; exact under [`VmGuard`] only.
    pub(crate) fn nr_vcpus(&self) -> u32 {
        // SAFETY: By the type invariant this is a valid `struct kvm`.
        unsafe { bindings::kvm_clock_guest_nr_vcpus(self.0.get()) }
    }

    /// Takes `kvm->lock`; it is not held while a vCPU runs.
    ///
    /// # Errors
    ///
    /// `EINTR` if the task was killed while it waited.
    pub(crate) fn lock(&self) -> Result<VmGuard<'_>> {
        // SAFETY: By the type invariant this is a valid `struct kvm`; this may sleep, as ioctls do.
        to_result(unsafe { bindings::kvm_clock_guest_lock(self.0.get()) })?;
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
    fn as_raw(&self) -> *mut bindings::kvm {
        self.vm.0.get()
    }

    /// How many vCPUs the VM has.
    pub(crate) fn nr_vcpus(&self) -> u32 {
        self.vm.nr_vcpus()
    }

    /// Reads the clocks of the VM and its host at one instant. The state is about vCPU number
    /// `reference`; `vcpus`, if any, has an element for each vCPU, in the order of their numbers.
    /// vCPUs inside an ioctl are looked for if `find_busy`.
    ///
    /// # Errors
    ///
    /// `ENODATA` without such a vCPU, `EBUSY` if the guest keeps writing its TSCs, `EINVAL` if
    /// `vcpus` has another length.
    pub(crate) fn read(
        &self,
        reference: u32,
        vcpus: Option<&mut [ClockGuestVcpu]>,
        find_busy: bool,
    ) -> Result<RawState> {
        let vcpus = match vcpus {
            // CAST: `usize` has 64 bits.
            Some(vcpus) if vcpus.len() != self.nr_vcpus() as usize => return Err(EINVAL),
            // CAST: `abi_check` asserts that both have one layout.
            Some(vcpus) => vcpus.as_mut_ptr().cast(),
            None => ptr::null_mut(),
        };
        let mut state = MaybeUninit::uninit();
        let (kvm, raw) = (self.as_raw(), state.as_mut_ptr());
        // SAFETY: By the type invariant this is a valid VM whose lock is held. `raw` is valid for
        // writes, and so is `vcpus`, if it is not null, for as many elements as there are vCPUs.
        to_result(unsafe {
            bindings::kvm_clock_guest_read(kvm, reference, find_busy, raw, vcpus)
        })?;
        // SAFETY: KVM returned 0, and thus wrote the structure.
        Ok(RawState(unsafe { state.assume_init() }))
    }

    /// Makes a record the clock of the VM, for a vCPU whose TSC is `transform`, and leaves all TSCs
    /// as they are. Running vCPUs leave the guest and come back to it.
    ///
    /// Returns whether the host's TSC is stable, and the clock thus pinned.
    pub(crate) fn pin(&self, record: &ClockGuest, transform: TscTransform) -> bool {
        self.commit(record, transform, &[], 0)
    }

    /// Keeps all vCPUs out of the guest.
    ///
    /// # Errors
    ///
    /// `EBUSY` if one is inside an ioctl, e.g. in `KVM_RUN`.
    pub(crate) fn trylock_all_vcpus(&self) -> Result<LockedVcpus<'_>> {
        // SAFETY: By the type invariant this is a valid VM whose lock is held.
        to_result(unsafe { bindings::kvm_clock_guest_trylock_vcpus(self.as_raw()) })?;
        // INVARIANT: The mutexes were just taken, and the set of vCPUs stands still.
        Ok(LockedVcpus { guard: self })
    }

    /// Commits a record and, unless `vcpus` is empty, the TSCs of its vCPUs.
    fn commit(
        &self,
        record: &ClockGuest,
        transform: TscTransform,
        vcpus: &[ClockGuestVcpu],
        offset_shift: u64,
    ) -> bool {
        // KVM takes it for granted that there is one.
        if self.nr_vcpus() == 0 {
            return false;
        }
        let commit = bindings::kvm_clock_guest_commit {
            record: to_c(record),
            tsc_ratio: transform.scale.ratio(),
            tsc_offset: transform.offset.0,
            vcpus: if vcpus.is_empty() {
                ptr::null()
            } else {
                // CAST: `abi_check` asserts that both have one layout.
                vcpus.as_ptr().cast()
            },
            offset_shift,
            // CAST: The number of a VM's vCPUs fits.
            nr_vcpus: vcpus.len() as u32,
            pad: 0,
        };
        // SAFETY: By the type invariant this is a valid VM whose lock is held, and it has a vCPU.
        // `commit` and the array in it are valid for reads. The array comes from
        // `LockedVcpus::commit()`, with an element for each vCPU, or there is none.
        unsafe { bindings::kvm_clock_guest_commit(self.as_raw(), &commit) }
    }
}

impl Drop for VmGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock is held, and by this task.
        unsafe { bindings::kvm_clock_guest_unlock(self.as_raw()) };
    }
}

/// All vCPUs of a VM kept out of the guest.
///
/// # Invariants
///
/// `vcpu->mutex` of every vCPU of the VM is held by this task.
#[must_use = "if unused, the vCPUs will be immediately unlocked"]
pub(crate) struct LockedVcpus<'a> {
    guard: &'a VmGuard<'a>,
}

impl LockedVcpus<'_> {
    /// Writes the TSC of every vCPU, each with `offset_shift` (ticks) added to its offset, its
    /// steal time, and the record of a vCPU whose TSC is then `transform`.
    ///
    /// Returns whether the host's TSC is stable, and the clock thus pinned.
    ///
    /// # Errors
    ///
    /// `EINVAL` unless `vcpus` has an element for each vCPU; nothing is changed then.
    pub(crate) fn commit(
        &self,
        record: &ClockGuest,
        transform: TscTransform,
        vcpus: &[ClockGuestVcpu],
        offset_shift: u64,
    ) -> Result<bool> {
        // CAST: `usize` has 64 bits.
        if vcpus.is_empty() || vcpus.len() != self.guard.nr_vcpus() as usize {
            return Err(EINVAL);
        }
        Ok(self.guard.commit(record, transform, vcpus, offset_shift))
    }
}

impl Drop for LockedVcpus<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the mutexes are held, and by this task.
        unsafe { bindings::kvm_clock_guest_unlock_vcpus(self.guard.as_raw()) };
    }
}

/// A record as C has it.
fn to_c(record: &ClockGuest) -> bindings::kvm_clock_guest {
    bindings::kvm_clock_guest {
        version: record.version,
        pad0: record.pad0,
        tsc_timestamp: record.tsc_timestamp.0,
        system_time: record.system_time,
        tsc_to_system_mul: record.tsc_to_system_mul,
        tsc_shift: record.tsc_shift,
        flags: record.flags,
        pad: record.pad,
    }
}
