// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_GET_VM_CLOCK_GUEST`: reads all clocks of a VM at one instant, and changes nothing.

use crate::{
    kvm::{
        State,
        Vm,
        VmGuard, //
    },
    pvclock::{
        abi::{
            ClockGuestVcpu,
            VmClockGuest, //
        },
        request::GetRequest, //
    },
    report,
    user,
    vcpus::{
        Few,
        Vcpus, //
    }, //
};
use kernel::{
    prelude::*,
    uaccess::UserPtr, //
};

/// Serves the ioctl.
///
/// # Errors
///
/// `EINVAL`, `E2BIG`, `EFAULT` for the payload, those of [`read`], `ENOMEM`.
pub(crate) fn get(vm: &Vm, arg: UserPtr) -> Result {
    let header = user::read_header(arg)?;
    let request = GetRequest::new(&header).map_err(|_| EINVAL)?;

    let guard = vm.lock()?;
    let nr_vcpus = guard.nr_vcpus();
    if header.nr_vcpus < nr_vcpus {
        drop(guard);
        user::write_nr_vcpus(arg, nr_vcpus)?;
        return Err(E2BIG);
    }
    let mut few = Few::default();
    let mut vcpus = Vcpus::new(&mut few, nr_vcpus)?;
    let clock = VmClockGuest {
        vcpus: header.vcpus,
        ..read(guard, &mut vcpus, request.fallback)?
    };
    user::write_vcpus(&clock, &vcpus)?;
    user::write_header(arg, &clock)
}

/// Reads all clocks of a VM at one instant; `vcpus` has an element for each vCPU. The array's
/// address is 0. Releases the VM.
///
/// # Errors
///
/// Those of [`VmGuard::read`], [`State::new`] and [`report::precision_ns`].
pub(crate) fn read(
    guard: VmGuard<'_>,
    vcpus: &mut [ClockGuestVcpu],
    fallback: bool,
) -> Result<VmClockGuest> {
    let nr_vcpus = guard.nr_vcpus();
    let raw = guard.read(0, Some(vcpus), false)?;
    drop(guard);
    let state = State::new(&raw, fallback)?;

    let precision_ns = report::precision_ns(&state, fallback)?;
    let now = state.now;
    let guest_tsc = state.transform.guest_tsc(now.host_tsc);
    Ok(VmClockGuest {
        // CAST: The size of a small structure.
        size: size_of::<VmClockGuest>() as u32,
        status: report::status(&state),
        nr_vcpus,
        ref_vcpu_id: state.ref_vcpu_id,
        host_tsc: now.host_tsc,
        guest_tsc,
        kvmclock_ns: state.record.kvmclock_ns(guest_tsc),
        tai_ns: now.tai_ns,
        monotonic_raw_ns: now.monotonic_raw_ns,
        tai_offset_s: now.tai_offset_s,
        host_tsc_khz: state.rate.host_khz,
        tsc_ratio: state.rate.scale.ratio(),
        tsc_frac_bits: state.rate.scale.frac_bits(),
        precision_ns,
        record: state.record,
        ..Default::default()
    })
}
