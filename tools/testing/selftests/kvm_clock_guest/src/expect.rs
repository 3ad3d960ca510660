// SPDX-License-Identifier: GPL-2.0-only

//! The expected result of SET, in exact integer arithmetic that shares no code with the module.

use crate::{
    ensure_eq,
    fixture::{get_clock, reference_transform},
    time::SECOND_NS,
};
use anyhow::{ensure, Result};
use clockguest::{measure::Reading, vmm::Vm};
use kvm_bindings::{kvm_clock_data, KVM_CLOCK_HOST_TSC};
use kvm_clock::VmClock;
use pvclock::{
    abi::{ClockGuest, VmClockGuest},
    counter::{GuestTsc, HostTsc, TscOffset},
};

/// Guest ticks in `ns` at the rate of `header`, rounded towards 0.
pub fn ticks(header: &VmClockGuest, ns: i128) -> i128 {
    /// kHz times ns per tick.
    const UNIT: u128 = 1_000_000;

    let (ratio, frac_bits) = match header.tsc_ratio {
        0 => (1, 0),
        ratio => (u128::from(ratio), header.tsc_frac_bits),
    };
    let host = ns.unsigned_abs() * u128::from(header.host_tsc_khz);
    // host * ratio / 2^frac_bits / UNIT, in parts that fit into 128 bits, without rounding before
    // the last division.
    let (whole, rest) = (host / UNIT * ratio, host % UNIT * ratio);
    let (high, low) = (whole >> frac_bits, whole & ((1 << frac_bits) - 1));
    // CAST: centuries at any rate are far below 2^127 ticks.
    let ticks = (high + (low * UNIT + rest) / (UNIT << frac_bits)) as i128;
    ticks * ns.signum()
}

/// Time from `saved` to `now`, ns: in TAI if both or neither have TAI - UTC, else in UTC.
pub fn elapsed_ns(saved: &VmClockGuest, now: &VmClockGuest) -> i128 {
    // A host without TAI - UTC counts leap seconds from 0.
    let by_utc = (saved.tai_offset_s < 10) != (now.tai_offset_s < 10);
    let time = |header: &VmClockGuest| {
        let leap_s = if by_utc { header.tai_offset_s } else { 0 };
        i128::from(header.tai_ns) - i128::from(leap_s) * i128::from(SECOND_NS)
    };
    time(now) - time(saved)
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

/// kvmclock (ns, mod 2^64) of `record` at guest TSC `guest_tsc`, which may be below its timestamp:
/// the record's function, extended to there.
pub fn kvmclock_ns(record: &ClockGuest, guest_tsc: GuestTsc) -> u64 {
    // CAST: the sign of a difference mod 2^64 is the order.
    let ticks = i128::from(guest_tsc.since(record.tsc_timestamp) as i64);
    let shifted = match record.tsc_shift {
        shift @ ..0 => ticks >> shift.unsigned_abs(),
        shift => ticks << shift,
    };
    // Signed shifts round down, also below 0. CAST: mod 2^64.
    let ns = ((shifted * i128::from(record.tsc_to_system_mul)) >> 32) as u64;
    record.system_time.wrapping_add(ns)
}

/// The step (ticks) in which `record` can move without a loss: the lowest power of 2 that is a
/// whole number of ns, where neither the shift nor the fraction drops a bit.
pub fn exact_step_ticks(record: &ClockGuest) -> u64 {
    let (up, down) = match record.tsc_shift {
        shift @ ..0 => (0, shift.unsigned_abs()),
        shift => (shift.unsigned_abs(), 0),
    };
    let is_whole = |ticks: u64| {
        let shifted = u128::from(ticks >> down) << up;
        let product = shifted * u128::from(record.tsc_to_system_mul);
        ticks % (1 << down) == 0 && product % (1 << 32) == 0
    };
    let mut steps = (0..64).map(|bits| 1 << bits);
    steps.find(|&step| is_whole(step)).unwrap_or(0)
}

/// `record`, or if it lies ahead of guest TSC `guest_tsc`, the nearest point of its lattice that
/// does not.
pub fn not_ahead_of(record: &ClockGuest, guest_tsc: GuestTsc) -> ClockGuest {
    let mut moved = *record;
    // CAST: the sign of a difference mod 2^64 is the order.
    let ahead = record.tsc_timestamp.since(guest_tsc) as i64;
    if let Ok(ahead) = u64::try_from(ahead) {
        let step = exact_step_ticks(record);
        let ticks = ahead.div_ceil(step).wrapping_mul(step);
        moved.tsc_timestamp = record.tsc_timestamp.wrapping_sub(ticks);
        moved.system_time = kvmclock_ns(record, moved.tsc_timestamp);
    }
    moved
}

/// Fails unless all readings of the guest are `record`'s function of its TSC, to the ns.
///
/// `offset` is the TSC offset of the vCPU that `record` is for.
pub fn ensure_reads(reading: &Reading, record: &ClockGuest, offset: TscOffset) -> Result<()> {
    for (index, vcpu) in reading.vcpus.iter().enumerate() {
        let ahead = vcpu.tsc.offset.since(offset);
        ensure!(!vcpu.samples.is_empty(), "vCPU {index} made no reading");
        for sample in vcpu.samples.iter().map(|bracketed| &bracketed.sample) {
            let expected = kvmclock_ns(record, sample.tsc.wrapping_sub(ahead));
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

/// Fails unless `KVM_GET_CLOCK` of `vm` is `record`'s function of the reference vCPU's TSC, to the
/// ns.
pub fn ensure_kvm_agrees(vm: &Vm, after: &VmClock, record: &ClockGuest) -> Result<()> {
    let data = get_clock_and_host_tsc(vm)?;
    let guest_tsc = reference_transform(after)?.guest_tsc(HostTsc(data.host_tsc));
    let expected = kvmclock_ns(record, guest_tsc);
    ensure_eq!(
        data.clock,
        expected,
        "KVM_GET_CLOCK at guest TSC {guest_tsc:#x}, ns"
    );
    Ok(())
}
