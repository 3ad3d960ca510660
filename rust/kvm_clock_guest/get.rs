// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_GET_VM_CLOCK_GUEST`: reads all clocks of a VM at one instant, and changes nothing.

use crate::{
    kvm::Vm,
    pvclock::{
        abi::{
            ClockGuestVcpu,
            VmClockGuest, //
        },
        request::GetRequest,
    },
    record::Record,
    state::{
        self,
        State, //
    },
    user, //
};
use kernel::{
    prelude::*,
    uaccess::UserPtr, //
};

/// Serves the ioctl.
///
/// # Errors
///
/// `EINVAL`, `E2BIG`, `EFAULT` for the payload, those of [`State::new`] and [`Record::of`],
/// `EINTR`, `ENOMEM`.
pub(crate) fn get(vm: &Vm, arg: UserPtr) -> Result {
    let mut header = user::read_header(arg)?;
    let request = GetRequest::new(&header).map_err(|_| EINVAL)?;

    let guard = vm.lock()?;
    let nr_vcpus = guard.nr_vcpus();
    if header.nr_vcpus < nr_vcpus {
        drop(guard);
        user::write_nr_vcpus(arg, nr_vcpus)?;
        return Err(E2BIG);
    }
    // CAST: `usize` has 64 bits.
    let count = nr_vcpus as usize;
    let mut vcpus = KVVec::from_elem(
        ClockGuestVcpu::default(),
        count,
        GFP_KERNEL_ACCOUNT | __GFP_NOWARN,
    )?;

    let clocks = guard.clocks();
    let reference = guard.first_vcpu().ok_or(ENODATA)?;
    let mut entries = vcpus.iter_mut();
    let state = State::new(&guard, &clocks, reference, request.fallback, |vcpu| {
        if let Some(entry) = entries.next() {
            entry.vcpu_id = vcpu.id();
            entry.tsc_offset = clocks.tsc_offset(vcpu);
        }
        Ok(())
    })?;
    let Record {
        record,
        precision_ns,
    } = Record::of(&guard, &clocks, &state, request.fallback)?;
    let status = state::status(&clocks, &state.now, state.rate.scale);
    let ref_vcpu_id = state.reference.id();
    let State {
        relation,
        rate,
        now,
        ..
    } = state;
    // The rest may sleep.
    drop(clocks);
    drop(guard);

    let guest_tsc = relation.guest_tsc(now.host_tsc);
    header = VmClockGuest {
        status,
        nr_vcpus,
        ref_vcpu_id,
        vcpus: header.vcpus,
        host_tsc: now.host_tsc,
        guest_tsc,
        kvmclock_ns: record.kvmclock_ns(guest_tsc),
        tai_ns: now.tai_ns,
        monotonic_raw_ns: now.monotonic_raw_ns,
        tai_offset_s: now.tai_offset_s,
        host_tsc_khz: rate.host_khz,
        tsc_ratio: rate.scale.ratio(),
        tsc_frac_bits: rate.scale.frac_bits(),
        precision_ns,
        record,
        ..Default::default()
    };
    user::write_vcpus(&header, &vcpus)?;
    user::write_header(arg, &mut header)
}
