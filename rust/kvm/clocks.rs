// SPDX-License-Identifier: GPL-2.0-only

//! What KVM computes a guest's clocks from, read at one instant.
//!
//! C header: [`arch/x86/include/asm/kvm_host.h`](srctree/arch/x86/include/asm/kvm_host.h)

use super::{
    bindings,
    vm::{
        Vcpu,
        VmGuard, //
    },
};
use crate::pvclock::{
    abi,
    rate::Factor,
    tsc::{
        Relation,
        Scale, //
    },
};
use kernel::types::NotThreadSafe;

/// Reads a field of a C structure that somebody may be writing: `READ_ONCE()`.
macro_rules! read_once {
    ($place:expr) => {
        core::ptr::addr_of!($place).read_volatile()
    };
}

/// A pvclock record that a VM keeps, and the TSC it is for.
#[derive(Clone, Copy)]
pub(crate) struct Kept {
    /// The TSC that the record is for.
    pub(crate) relation: Relation,
    /// The record; its `version` and `flags` are 0.
    pub(crate) record: abi::ClockGuest,
}

/// The point at which KVM derives kvmclock anew.
#[derive(Clone, Copy)]
pub(crate) struct MasterClock {
    /// Host TSC, ticks.
    pub(crate) host_tsc: u64,
    /// `CLOCK_MONOTONIC_RAW` plus time suspended at `host_tsc`, ns.
    pub(crate) base_ns: u64,
}

/// TSC offsets and master clock of a VM standing still.
///
/// A guest that runs may still write its own TSC, as ever.
///
/// # Invariants
///
/// `tsc_write_lock` of `vm` is held by this CPU, and interrupts are off.
#[must_use = "if unused, the lock will be immediately released"]
pub(crate) struct ClocksGuard<'a> {
    vm: &'a VmGuard<'a>,
    _not_send: NotThreadSafe,
}

impl<'a> ClocksGuard<'a> {
    pub(super) fn new(vm: &'a VmGuard<'a>) -> Self {
        // SAFETY: `VmGuard` proves a valid VM, and that no vCPU, whose creation takes this lock
        // too, can be waited for with it held.
        unsafe { bindings::rust_helper_kvm_tsc_write_lock(vm.as_raw()) };
        // INVARIANT: The lock was just taken.
        Self {
            vm,
            _not_send: NotThreadSafe,
        }
    }

    fn arch(&self) -> *const bindings::kvm_arch {
        // SAFETY: `VmGuard` proves a valid VM; no reference is made.
        unsafe { core::ptr::addr_of!((*self.vm.as_raw()).arch) }
    }

    /// Whether KVM counts the TSCs of all vCPUs as one: same rate, same generation of writes.
    pub(crate) fn all_matched(&self) -> bool {
        // SAFETY: By the type invariant the lock that protects this field is held.
        let matched = unsafe { (*self.arch()).nr_vcpus_matched_tsc };
        // The count leaves out the first vCPU of a generation.
        i64::from(matched) + 1 == i64::from(self.vm.nr_vcpus())
    }

    /// Whether KVM would use a master clock, did its host's clock and the vCPUs' TSCs allow it.
    pub(crate) fn master_clock_possible(&self) -> bool {
        // SAFETY: `arch()` is valid by `VmGuard`; both flags are written once and never cleared.
        unsafe {
            !read_once!((*self.arch()).backwards_tsc_observed)
                && !read_once!((*self.arch()).boot_vcpu_runs_old_kvmclock)
        }
    }

    /// The master clock, if it is in use, and of the TSC that the host has: KVM gives it up at the
    /// next run of a VM that saw the host's TSC restart.
    pub(crate) fn master_clock(&self) -> Option<MasterClock> {
        // SAFETY: By the type invariant the lock that protects these fields is held; the host's TSC
        // restarts while no task runs.
        unsafe {
            let in_use = (*self.arch()).use_master_clock && !(*self.arch()).backwards_tsc_observed;
            in_use.then(|| MasterClock {
                host_tsc: (*self.arch()).master_cycle_now,
                base_ns: (*self.arch()).master_kernel_ns,
            })
        }
    }

    /// kvmclock minus the master clock's base, ns.
    pub(crate) fn kvmclock_offset(&self) -> i64 {
        // SAFETY: By the type invariant the lock that protects this field is held.
        unsafe { (*self.arch()).kvmclock_offset }
    }

    /// The record that the VM keeps, if any.
    pub(crate) fn kept(&self) -> Option<Kept> {
        // SAFETY: By the type invariant the lock that protects these fields is held.
        let kept = unsafe { &(*self.arch()).kept_clock };
        kept.valid.then(|| {
            // The structure is packed: copy field by field.
            let record = kept.record;
            Kept {
                relation: Relation {
                    scale: scale_of(kept.tsc_scaling_ratio),
                    offset: kept.tsc_offset,
                },
                record: abi::ClockGuest {
                    tsc_timestamp: record.tsc_timestamp,
                    system_time: record.system_time,
                    tsc_to_system_mul: record.tsc_to_system_mul,
                    tsc_shift: record.tsc_shift,
                    ..Default::default()
                },
            }
        })
    }

    /// Whether the TSC of `vcpu` runs at the rate of one scaled by `scale`, of which `ratio` is
    /// KVM's number: that is compared first, as nearly all are the same.
    pub(crate) fn is_scaled_by(&self, vcpu: &Vcpu, scale: Scale, ratio: u64) -> bool {
        let of_vcpu = self.ratio(vcpu);
        of_vcpu == ratio || scale_of(of_vcpu) == scale
    }

    /// KVM's scaling ratio of `vcpu`; means nothing where the hardware cannot scale.
    pub(crate) fn ratio(&self, vcpu: &Vcpu) -> u64 {
        // SAFETY: Valid by `Vcpu`'s invariant; VMMs write it under the vCPU's mutex, as one word.
        unsafe { read_once!((*vcpu_arch(vcpu)).l1_tsc_scaling_ratio) }
    }

    /// The L1 TSC offset of `vcpu`, ticks.
    pub(crate) fn tsc_offset(&self, vcpu: &Vcpu) -> u64 {
        // The lock is held by the type invariant.
        offset_of(vcpu)
    }

    /// The L1 TSC of `vcpu` as a function of the host's.
    pub(crate) fn relation(&self, vcpu: &Vcpu) -> Relation {
        Relation {
            scale: scale_of(self.ratio(vcpu)),
            offset: self.tsc_offset(vcpu),
        }
    }

    /// The pvclock factor that `vcpu` was last given, if it ever ran.
    pub(crate) fn factor(&self, vcpu: &Vcpu) -> Option<Factor> {
        let arch = vcpu_arch(vcpu);
        // SAFETY: `arch` is valid by `Vcpu`'s invariant. The vCPU's thread writes these without a
        // lock, on its first run and when its rate changes; it sets `hw_tsc_khz` last.
        unsafe {
            (read_once!((*arch).hw_tsc_khz) != 0).then(|| Factor {
                mul: read_once!((*arch).pvclock_tsc_mul),
                shift: read_once!((*arch).pvclock_tsc_shift),
            })
        }
    }

    /// Whether the TSC of `vcpu` is out of the host's hands: an SEV-SNP or TDX guest.
    pub(crate) fn is_tsc_protected(&self, vcpu: &Vcpu) -> bool {
        // SAFETY: Valid by `Vcpu`'s invariant; the flag is set when the vCPU is set up.
        unsafe { read_once!((*vcpu_arch(vcpu)).guest_tsc_protected) }
    }

    /// Whether KVM pushes the TSC of `vcpu` forward at every entry to imitate another rate.
    pub(crate) fn is_tsc_imitated(&self, vcpu: &Vcpu) -> bool {
        // SAFETY: Valid by `Vcpu`'s invariant; a stale value is a value of a moment ago.
        unsafe { read_once!((*vcpu_arch(vcpu)).tsc_always_catchup) }
    }
}

impl Drop for ClocksGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock is held, and by this CPU.
        unsafe { bindings::rust_helper_kvm_tsc_write_unlock(self.vm.as_raw()) };
    }
}

fn vcpu_arch(vcpu: &Vcpu) -> *const bindings::kvm_vcpu_arch {
    // SAFETY: Valid by `Vcpu`'s invariant; no reference is made.
    unsafe { core::ptr::addr_of!((*vcpu.as_raw()).arch) }
}

/// The L1 TSC offset of `vcpu` (ticks), with what KVM is to add when it next loads the vCPU, as the
/// host's TSC restarted.
///
/// The caller holds `tsc_write_lock` or the vCPU's mutex, under each of which both parts change as
/// one.
pub(super) fn offset_of(vcpu: &Vcpu) -> u64 {
    let arch = vcpu_arch(vcpu);
    // SAFETY: `arch` is valid by `Vcpu`'s invariant; a running guest may write the offset at any
    // time, hence `read_once!`.
    unsafe {
        let offset = read_once!((*arch).l1_tsc_offset);
        match read_once!((*arch).tsc_offset_adjustment) {
            0 => offset,
            pending => {
                let scale = scale_of(read_once!((*arch).l1_tsc_scaling_ratio));
                offset.wrapping_add(scale.apply(pending))
            }
        }
    }
}

/// The scaling ratio that [`ClocksGuard::relation`] told of `vcpu`, as KVM has it.
pub(super) fn ratio_of(vcpu: &Vcpu, scale: Scale) -> u64 {
    match scale {
        // Without hardware scaling there is but one ratio, whatever it means.
        // SAFETY: Valid by `Vcpu`'s invariant.
        Scale::IDENTITY => unsafe { read_once!((*vcpu_arch(vcpu)).l1_tsc_scaling_ratio) },
        scale => scale.ratio(),
    }
}

/// Whether this host's hardware can scale a guest's TSC by `scale`.
pub(crate) fn is_valid_scale(scale: Scale) -> bool {
    // SAFETY: No requirements.
    let limit = unsafe { bindings::kvm_clock_guest_max_tsc_ratio() };
    scale == Scale::IDENTITY || scale.ratio() < limit
}

/// A vCPU's scaling ratio as the ABI sees it: identity where the hardware cannot scale.
fn scale_of(ratio: u64) -> Scale {
    // SAFETY: No requirements.
    let frac_bits = unsafe { bindings::kvm_clock_guest_tsc_frac_bits() };
    // Without hardware scaling there are no fraction bits, and KVM's ratio of 1 means nothing.
    Scale::new(ratio, u32::from(frac_bits)).unwrap_or(Scale::IDENTITY)
}
