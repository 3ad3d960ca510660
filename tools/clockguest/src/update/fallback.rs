// SPDX-License-Identifier: GPL-2.0-only

//! Clocks that the `kvm_clock_guest` module saved, in a kernel without it: the guest cannot wait for
//! another kernel, as its session is gone when the program ends.

use crate::{
    host::rdtsc_ordered,
    method::atomic,
    vmm::{error::Context, Result, Vm},
};
use kvm_bindings::kvm_clock_data;
use kvm_clock::tsc_scale;
use pvclock::tsc::{Scale, TscTransform};

/// Restores the clocks of the stopped `vm` on the host that saved them. Returns what is lost.
///
/// The host's TSC is the same counter, so the same offsets are the same TSCs. `KVM_SET_CLOCK` takes a
/// value, not a record, and KVM derives a record from it.
///
/// # Errors
///
/// Those of the ioctls.
pub(super) fn restore(vm: &Vm, saved: &atomic::Saved) -> Result<String> {
    let header = &saved.0.header;
    for (index, vcpu) in saved.0.vcpus.iter().enumerate() {
        vm.set_tsc_offset(index, vcpu.tsc_offset)?;
    }
    let ref_vcpu = saved
        .0
        .vcpus
        .iter()
        .find(|vcpu| vcpu.vcpu_id == header.ref_vcpu_id);
    let transform = TscTransform {
        scale: Scale::new(header.tsc_ratio, header.tsc_frac_bits).unwrap_or(Scale::IDENTITY),
        offset: ref_vcpu.map(|vcpu| vcpu.tsc_offset).unwrap_or_default(),
    };
    let clock = kvm_clock_data {
        clock: header
            .record
            .kvmclock_ns(transform.guest_tsc(rdtsc_ordered())),
        ..kvm_clock_data::default()
    };
    vm.fd().set_clock(&clock).context("KVM_SET_CLOCK")?;
    let ratio = tsc_scale(&vm.vcpus()[0].fd()).map_or(0, |scale| scale.tsc_ratio);
    let tsc = if ratio == header.tsc_ratio || header.tsc_ratio == 0 {
        ""
    } else {
        "; the guest's TSC has another ratio, from the new calibration"
    };
    Ok(format!(
        "this kernel has no kvm_clock_guest: KVM derives a new record, and kvmclock is off by the \
         time that KVM_SET_CLOCK takes{tsc}"
    ))
}
