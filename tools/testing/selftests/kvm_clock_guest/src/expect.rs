// SPDX-License-Identifier: GPL-2.0-only

//! The expected result of SET, by the reference, which shares no code with the module.

use crate::{
    clocks::{function, pages},
    ensure_eq,
    fixture::{get_clock, reference_transform},
};
use anyhow::{ensure, Result};
use clockguest::{measure::Reading, vmm::Vm};
use kvm_bindings::{kvm_clock_data, KVM_CLOCK_HOST_TSC};
use kvm_clock::VmClock;
use pvclock::{
    abi::{ClockGuest, VmClockGuest},
    counter::{HostTsc, TscOffset},
    plan::ClockSnapshot,
    rate::GuestRate,
};
use pvclock_reference::{
    arithmetic::{self, extended_kvmclock_ns},
    rules,
};

/// Guest ticks in `ns` at the rate of `header`, rounded towards 0.
///
/// # Panics
///
/// If these are 2^63 or more.
pub fn ticks(header: &VmClockGuest, ns: i128) -> i128 {
    let ticks = arithmetic::signed_ticks(rate(header), ns);
    ticks.expect("centuries at any rate are fewer").into()
}

/// The guest's TSC rate in `header`, as reported by GET.
///
/// # Panics
///
/// If it has none.
pub fn rate(header: &VmClockGuest) -> GuestRate {
    rules::rate(header).expect("GET returns a rate")
}

/// The instant of `header`.
pub fn snapshot(header: &VmClockGuest) -> ClockSnapshot {
    ClockSnapshot {
        host_tsc: header.host_tsc,
        tai_ns: header.tai_ns,
        tai_offset_s: header.tai_offset_s,
        monotonic_raw_ns: header.monotonic_raw_ns,
        read_window: 0,
    }
}

/// Time from `saved` to `now`, ns: in TAI if both or neither have TAI - UTC, else in UTC.
pub fn elapsed_ns(saved: &VmClockGuest, now: &VmClockGuest) -> i128 {
    arithmetic::elapsed_ns(saved, &snapshot(now))
}

/// The error of ADVANCE, ticks: the guest TSC of `after` at the anchor of `at`, minus the expected
/// one.
pub fn error_ticks(saved: &VmClockGuest, after: &VmClock, at: &VmClockGuest) -> Result<i64> {
    let actual = reference_transform(after)?.guest_tsc(at.host_tsc);
    // CAST: mod 2^64, as TSC values are.
    let expected = saved
        .guest_tsc
        .wrapping_add(ticks(saved, elapsed_ns(saved, at)) as u64);
    // CAST: the signed difference of values mod 2^64.
    Ok(actual.since(expected) as i64)
}

/// Fails unless all readings of the guest are `record`'s function of its TSC, to the ns.
///
/// `offset` is the TSC offset of the vCPU that `record` is for.
pub fn ensure_reads(reading: &Reading, record: &ClockGuest, offset: TscOffset) -> Result<()> {
    for (index, vcpu) in reading.vcpus.iter().enumerate() {
        let ahead = vcpu.tsc.offset.since(offset);
        ensure!(!vcpu.samples.is_empty(), "vCPU {index} made no reading");
        for sample in vcpu.samples.iter().map(|bracketed| &bracketed.sample) {
            let expected = extended_kvmclock_ns(record, sample.tsc.wrapping_sub(ahead));
            ensure_eq!(
                sample.kvmclock_ns,
                expected,
                "vCPU {index}'s kvmclock at TSC {:#x}, ns",
                sample.tsc
            );
        }
    }
    Ok(())
}

/// `KVM_GET_CLOCK`, which must report a host TSC.
pub fn get_clock_and_host_tsc(vm: &Vm) -> Result<kvm_clock_data> {
    let data = get_clock(vm)?;
    ensure!(
        data.flags & KVM_CLOCK_HOST_TSC != 0,
        "KVM_GET_CLOCK reports no host TSC: flags {:#x}",
        data.flags
    );
    Ok(data)
}

/// What kvmclock gained on CLOCK_MONOTONIC_RAW between two GETs, and the time in between, ns. Fails
/// unless the guest's records are what the first GET reported.
pub fn gained_on_raw(vm: &Vm, first: &VmClockGuest, last: &VmClockGuest) -> Result<(i64, i64)> {
    let record = function(first.record);
    ensure!(
        pages(vm).into_iter().all(|page| function(page) == record),
        "the guest has {:x?}, GET reports {record:x?}",
        pages(vm)
    );
    // CAST: below 292 years.
    let ahead = |header: &VmClockGuest| header.kvmclock_ns as i64 - header.monotonic_raw_ns;
    let elapsed_ns = last.monotonic_raw_ns - first.monotonic_raw_ns;
    Ok((ahead(last) - ahead(first), elapsed_ns))
}

/// Fails unless `KVM_GET_CLOCK` of `vm` is `record`'s function of the reference vCPU's TSC, to the
/// ns.
pub fn ensure_kvm_agrees(vm: &Vm, after: &VmClock, record: &ClockGuest) -> Result<()> {
    let data = get_clock_and_host_tsc(vm)?;
    let guest_tsc = reference_transform(after)?.guest_tsc(HostTsc(data.host_tsc));
    let expected = extended_kvmclock_ns(record, guest_tsc);
    ensure_eq!(
        data.clock,
        expected,
        "KVM_GET_CLOCK at guest TSC {guest_tsc:#x}, ns"
    );
    Ok(())
}
