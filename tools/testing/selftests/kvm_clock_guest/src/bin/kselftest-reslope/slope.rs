// SPDX-License-Identifier: GPL-2.0-only

//! Records of other slopes, and what becomes of kvmclock.

use anyhow::{ensure, Result};
use clockguest::vmm::Vm;
use kvm_clock::VmClock;
use kvm_clock_guest_selftests::{
    clocks::{function, pages},
    continued::kvm_ahead_of_raw,
    expect::{elapsed_ns, ensure_kvm_tells, kvmclock_ns, ticks},
    fixture::{get, reference_transform, run_a_little},
    ktap::note,
};
use pvclock::{
    abi::{ClockGuest, VmClockGuest, MODE_ADVANCE, MODE_EXACT},
    rate::{Factor, GuestRate},
};
use std::{thread::sleep, time::Duration};

/// How long a clock's rate is watched.
const WATCH: Duration = Duration::from_secs(3);

/// `record` with a slope of `numerator / denominator` of its own, as KVM would write that: `mul` has
/// all of its 32 bits.
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

/// Fails unless kvmclock of `after` was, where the guest's TSC continued, what it was by `asked`, plus
/// the TAI that passed until a SET in mode advance, which came between `before` and `after`.
pub(crate) fn ensure_continues(
    asked: &VmClock,
    before: &VmClockGuest,
    after: &VmClock,
) -> Result<()> {
    let (saved, record) = (&asked.header, after.header.record);
    let guest_tsc = match saved.mode {
        MODE_EXACT => reference_transform(after)?.guest_tsc(saved.host_tsc),
        MODE_ADVANCE => record.tsc_timestamp,
        _ => saved.guest_tsc,
    };
    ensure!(
        record.tsc_timestamp == guest_tsc,
        "the record begins at TSC {:#x}, expected {guest_tsc:#x}",
        record.tsc_timestamp
    );
    let rate = GuestRate {
        host_khz: after.header.host_tsc_khz,
        scale: reference_transform(after)?.scale,
    };
    // To the Hz, where KVM's own is of whole kHz.
    let slope = Factor::of_hz(rate.hz());
    ensure!(
        Some(record.factor()) == slope,
        "the record is {record:x?}, a TSC of {} Hz has {slope:x?}",
        rate.hz()
    );
    let elapsed = i128::from(kvmclock_ns(&record, guest_tsc)) - i128::from(saved.kvmclock_ns);
    let bounds = match saved.mode {
        MODE_ADVANCE => [elapsed_ns(saved, before), elapsed_ns(saved, &after.header)],
        _ => [0; 2],
    };
    ensure!(
        (bounds[0]..=bounds[1]).contains(&elapsed),
        "kvmclock advanced by {elapsed} ns, expected {bounds:?}"
    );
    // The TSC by as much, at the rate that it had.
    // CAST: mod 2^64.
    let due = saved.guest_tsc.wrapping_add(ticks(saved, elapsed) as u64);
    ensure!(
        guest_tsc == due,
        "the guest's TSC continues from {guest_tsc:#x}, expected {due:#x}"
    );
    Ok(())
}

/// Fails unless kvmclock of the stopped `vm`, in the guest's records, by GET and by KVM_GET_CLOCK,
/// runs within 1 ppm of CLOCK_MONOTONIC_RAW.
pub(crate) fn ensure_runs_at_1(vm: &Vm) -> Result<()> {
    run_a_little(vm)?;
    let first = get(vm)?;
    let told_first = kvm_ahead_of_raw(vm)?;
    sleep(WATCH);
    let last = get(vm)?;
    let told_last = kvm_ahead_of_raw(vm)?;

    let record = function(first.header.record);
    ensure!(
        pages(vm).into_iter().all(|page| function(page) == record),
        "the guest has {:x?}, GET says {record:x?}",
        pages(vm)
    );
    ensure_kvm_tells(vm, &last, &record)?;
    // CAST: below 292 years.
    let gained = |header: &VmClockGuest| header.kvmclock_ns as i64 - header.monotonic_raw_ns;
    let watched = last.header.monotonic_raw_ns - first.header.monotonic_raw_ns;
    let by = gained(&last.header) - gained(&first.header);
    note(&format!(
        "kvmclock gained {by} ns on the raw clock in {watched} ns"
    ));
    // Both are rounded to a ns.
    let limit = watched / 1_000_000;
    ensure!(
        by.abs() <= limit + 2,
        "kvmclock gained {by} ns on the raw clock in {watched} ns"
    );
    let least = told_last.least - told_first.most;
    let most = told_last.most - told_first.least;
    ensure!(
        least <= limit && most >= -limit,
        "KVM_GET_CLOCK gained {least} to {most} ns on the raw clock in {watched} ns"
    );
    Ok(())
}
