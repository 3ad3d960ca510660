// SPDX-License-Identifier: GPL-2.0-only

//! Records of other slopes, and checks of kvmclock.

use kvm_clock_guest_selftests::{
    continued::kvm_ahead_of_raw,
    expect::{elapsed_ns, ensure_kvm_agrees, gained_on_raw, ticks},
    prelude::*,
};
use pvclock::rate::{Factor, GuestRate};
use pvclock_reference::arithmetic::extended_kvmclock_ns;

/// The time over which a clock's rate is measured.
const WATCH: Duration = Duration::from_secs(3);

/// `record` with `numerator / denominator` of its slope, normalised as KVM does: `mul` has all 32
/// bits.
pub(crate) fn times(record: ClockGuest, numerator: u64, denominator: u64) -> Result<ClockGuest> {
    let mut mul = u64::from(record.tsc_to_system_mul) * numerator / denominator;
    let mut shift = record.tsc_shift;
    while mul >= 1 << 32 {
        mul >>= 1;
        shift += 1;
    }
    while mul < 1 << 31 {
        mul <<= 1;
        shift -= 1;
    }
    Ok(ClockGuest {
        tsc_to_system_mul: u32::try_from(mul)?,
        tsc_shift: shift,
        ..record
    })
}

/// Fails unless kvmclock and TSC of `after` continue from those of `request`; in mode advance plus
/// the TAI that passed until SET, which was between `before` and `after`.
pub(crate) fn ensure_continues(
    request: &VmClock,
    before: &VmClockGuest,
    after: &VmClock,
) -> Result<()> {
    let (saved, record) = (&request.header, after.header.record);
    let guest_tsc = match saved.mode {
        MODE_EXACT => reference_transform(after)?.guest_tsc(saved.host_tsc),
        MODE_ADVANCE => record.tsc_timestamp,
        _ => saved.guest_tsc,
    };
    ensure_eq_hex!(
        record.tsc_timestamp,
        guest_tsc,
        "the TSC at which the record begins"
    );
    let rate = GuestRate {
        host_khz: after.header.host_tsc_khz,
        scale: reference_transform(after)?.scale,
    };
    // Exact to the Hz; KVM's own factor is for whole kHz.
    let slope = Factor::of_hz(rate.hz());
    ensure_eq_hex!(Some(record.factor()), slope, "the record's factor");
    let elapsed =
        i128::from(extended_kvmclock_ns(&record, guest_tsc)) - i128::from(saved.kvmclock_ns);
    let bounds = match saved.mode {
        MODE_ADVANCE => [elapsed_ns(saved, before), elapsed_ns(saved, &after.header)],
        _ => [0; 2],
    };
    ensure!(
        (bounds[0]..=bounds[1]).contains(&elapsed),
        "kvmclock advanced by {elapsed} ns, expected {bounds:?}"
    );
    // The TSC advanced by the same time, at its saved rate.
    // CAST: mod 2^64.
    let expected = saved.guest_tsc.wrapping_add(ticks(saved, elapsed) as u64);
    ensure_eq_hex!(guest_tsc, expected, "the guest's TSC");
    Ok(())
}

/// Fails unless kvmclock of the stopped `vm`, in the guest's records, by GET and by KVM_GET_CLOCK,
/// runs within 1 ppm of CLOCK_MONOTONIC_RAW.
pub(crate) fn ensure_runs_at_1(vm: &Vm) -> Result<()> {
    run_a_little(vm)?;
    let first = get(vm)?;
    let reported_first = kvm_ahead_of_raw(vm)?;
    sleep(WATCH);
    let last = get(vm)?;
    let reported_last = kvm_ahead_of_raw(vm)?;

    let (by, elapsed_ns) = gained_on_raw(vm, &first.header, &last.header)?;
    ensure_kvm_agrees(vm, &last, &function(first.header.record))?;
    note!("kvmclock gained {by} ns on the raw clock in {elapsed_ns} ns");
    // Both clocks are rounded to a ns.
    let limit = elapsed_ns / 1_000_000;
    ensure!(
        by.abs() <= limit + 2,
        "kvmclock gained {by} ns on the raw clock in {elapsed_ns} ns"
    );
    let least = reported_last.least - reported_first.most;
    let most = reported_last.most - reported_first.least;
    ensure!(
        least <= limit && most >= -limit,
        "KVM_GET_CLOCK gained {least} to {most} ns on the raw clock in {elapsed_ns} ns"
    );
    Ok(())
}
