// SPDX-License-Identifier: GPL-2.0-only

//! The rest of the errno tables of `clock-guest.rst`: errnos that depend on the clocks at the time
//! of SET.

use crate::{expected::Expected, state::State};
use kvm_clock_guest_selftests::{
    expect::{rate, snapshot},
    prelude::*,
};
use pvclock::plan::PlanError;
use pvclock_reference::{
    arithmetic::{guest_tsc, implied_khz, is_ahead, scaled},
    plan::Set,
    rules,
};

/// The tolerance of rates: KVM's default.
const TOLERANCE_PPM: u32 = 250;

/// The greatest difference of rates that `KVM_SET_CLOCK_GUEST` accepts.
const TOLERANCE_KHZ: u64 = 1;

/// SET with the header `saved`, at the anchors of the clocks before and after the call.
pub(crate) fn sets(saved: &VmClockGuest, clocks: [&VmClockGuest; 2]) -> [Set; 2] {
    clocks.map(|at| Set {
        saved: *saved,
        now: snapshot(at),
        here: rate(clocks[0]),
        tolerance_ppm: TOLERANCE_PPM,
    })
}

/// The failures that the clocks before and after SET cause.
pub(crate) fn plan(expected: &mut Expected, saved: &VmClockGuest, states: [&State; 2]) {
    let [Some(before), Some(after)] = states.map(|state| state.clock.as_ref()) else {
        return;
    };
    if !rules::broken_by_set(saved).is_empty() {
        return;
    }
    let sets = sets(saved, [&before.header, &after.header]);
    for (error, errno) in [
        (PlanError::RateMismatch, libc::ERANGE),
        (PlanError::RecordRate, libc::ERANGE),
        (PlanError::Stale, libc::ESTALE),
        (PlanError::Backwards, libc::ETIME),
        (PlanError::Unrepresentable, libc::EINVAL),
    ] {
        expected.between(errno, sets.each_ref().map(|set| set.has(error)));
    }
}

/// The failures of SET of a record for vCPU `index`, from the clocks before and after the call.
pub(crate) fn plan_record(
    expected: &mut Expected,
    record: &ClockGuest,
    states: [&State; 2],
    index: usize,
) {
    let [Some(before), Some(after)] = states.map(|state| state.clock.as_ref()) else {
        return;
    };
    if !rules::broken_by_record(record).is_empty() {
        return;
    }
    let rate = rate(&before.header);
    let khz = scaled(rate.scale, rate.host_khz.into());
    let is_close =
        implied_khz(record.factor()).is_some_and(|implied| implied.abs_diff(khz) <= TOLERANCE_KHZ);
    expected.must(libc::ERANGE, !is_close);
    let ahead = [&before.header, &after.header].map(|at| {
        let guest_tsc = guest_tsc(rate.scale, states[0].offsets[index], at.host_tsc);
        is_ahead(record.tsc_timestamp.since(guest_tsc))
    });
    expected.between(libc::EINVAL, ahead);
}
