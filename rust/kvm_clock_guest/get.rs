// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_GET_VM_CLOCK_GUEST`: reads all clocks of a VM at one instant, and changes nothing.

use crate::{
    kvm::{
        ClocksGuard,
        Vm,
        VmGuard, //
    },
    pvclock::{
        abi::{
            self,
            ClockGuest,
            ClockGuestVcpu,
            VmClockGuest, //
        },
        rate::Factor,
        request, //
    },
    state::State,
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
/// `EINVAL`, `E2BIG`, `EFAULT` for the payload, those of [`State::new`], `ENODATA` without master
/// clock and without kept record, `EINTR`, `ENOMEM`.
pub(crate) fn get(vm: &Vm, arg: UserPtr) -> Result {
    let mut header = user::read_header(arg)?;
    request::check_get(&header).map_err(|_| EINVAL)?;

    let guard = vm.lock()?;
    let nr_vcpus = guard.nr_vcpus();
    if header.nr_vcpus < nr_vcpus {
        drop(guard);
        user::write_nr_vcpus(arg, nr_vcpus)?;
        return Err(E2BIG);
    }
    // CAST: `usize` has 64 bits.
    let count = nr_vcpus as usize;
    let mut vcpus = KVVec::from_elem(ClockGuestVcpu::default(), count, GFP_KERNEL_ACCOUNT)?;

    let clocks = guard.clocks();
    let state = State::new(&guard, &clocks)?;
    let record = record(&guard, &state, &clocks)?;
    for (entry, vcpu) in vcpus.iter_mut().zip(guard.vcpus()) {
        entry.vcpu_id = vcpu.id();
        entry.tsc_offset = clocks.relation(vcpu).offset;
    }
    let kept = match clocks.kept() {
        Some(_) => abi::STATUS_KEPT,
        None => 0,
    };
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
        status: kept | abi::STATUS_HOST_TSC_FIT,
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
        record,
        ..Default::default()
    };
    user::write_vcpus(&header, &vcpus)?;
    user::write_header(arg, &mut header)
}

/// The record of the reference vCPU: the one that is kept, or else what KVM would hand it.
fn record(guard: &VmGuard<'_>, state: &State<'_>, clocks: &ClocksGuard<'_>) -> Result<ClockGuest> {
    let master_clock = clocks.master_clock();
    let flags = match master_clock {
        Some(_) => abi::PVCLOCK_TSC_STABLE,
        None => 0,
    };
    if let Some(kept) = clocks.kept() {
        if kept.relation.scale == state.relation.scale {
            let offset_diff = state.relation.offset.wrapping_sub(kept.relation.offset);
            let record = kept.record.shifted_by(offset_diff);
            return Ok(ClockGuest { flags, ..record });
        }
    }

    let now = &state.now;
    let (host_tsc, base_ns) = match master_clock {
        Some(master) => (master.host_tsc, master.base_ns),
        // KVM takes a master clock up at the first KVM_RUN only. Until then this is as good a point
        // to derive the record from as the one it will choose. A VM that ran and has none lost it,
        // and its vCPUs were each handed a record of their own.
        None if clocks.all_matched()
            && clocks.master_clock_possible()
            && guard.vcpus().all(|vcpu| clocks.factor(vcpu).is_none()) =>
        {
            let base_ns = now.monotonic_raw_ns.wrapping_add(now.boot_offset_ns);
            // CAST: KVM counts it as unsigned; it does not get negative.
            (now.host_tsc, base_ns as u64)
        }
        None => return Err(ENODATA),
    };
    let factor = match clocks.factor(state.reference) {
        Some(factor) => factor,
        None => {
            let khz = state.rate.scale.apply(u64::from(state.rate.host_khz));
            Factor::of_khz(khz).ok_or(EBUSY)?
        }
    };
    Ok(ClockGuest {
        tsc_timestamp: state.relation.guest_tsc(host_tsc),
        system_time: base_ns.wrapping_add_signed(clocks.kvmclock_offset()),
        tsc_to_system_mul: factor.mul,
        tsc_shift: factor.shift,
        flags: abi::PVCLOCK_TSC_STABLE,
        ..Default::default()
    })
}
