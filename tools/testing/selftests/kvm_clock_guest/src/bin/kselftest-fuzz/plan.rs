// SPDX-License-Identifier: GPL-2.0-only

//! The rest of the errno tables of `clock-guest.rst`: errnos that depend on the clocks at the time
//! of SET.

use crate::{
    arithmetic::{guest_tsc, hz, is_ahead, is_identity, khz, ppm, ratio, ticks_in, Ticks},
    expected::Expected,
    model::{is_header_valid, is_record_valid},
    records::{exact_factor, own_factor},
    state::State,
};
use kvm_clock_guest_selftests::{
    expect::{elapsed_ns, not_ahead_of},
    prelude::*,
};
use pvclock::abi::{FLAG_ALLOW_RATE_MISMATCH, FLAG_RESLOPE};

/// The tolerance of rates, ppm; within 1 ppm of it both results are accepted.
const TOLERANCE_PPM: f64 = 250.0;

/// The failures that the clocks before and after SET cause.
pub(crate) fn plan(expected: &mut Expected, saved: &VmClockGuest, states: [&State; 2]) {
    let [Some(before), Some(after)] = states.map(|state| state.clock.as_ref()) else {
        return;
    };
    if !is_header_valid(saved) {
        return;
    }
    let here = [&before.header, &after.header];
    if saved.flags & FLAG_ALLOW_RATE_MISMATCH == 0 {
        let off = rates_differ_ppm(saved, here[0]);
        expected.must(libc::ERANGE, off > TOLERANCE_PPM + 1.0);
        expected.may(libc::ERANGE, off > TOLERANCE_PPM - 1.0);
    }
    if saved.flags & FLAG_RESLOPE == 0 {
        let off =
            planned_rates(saved, here[0]).map(|rate| record_differs_ppm(&saved.record, &rate));
        let is_beyond = |limit: f64| off.map(|off| off > limit);
        expected.must(libc::ERANGE, is_beyond(TOLERANCE_PPM + 1.0) == [true; 2]);
        expected.may(libc::ERANGE, is_beyond(TOLERANCE_PPM - 1.0).contains(&true));
    }
    match saved.mode {
        MODE_EXACT => {
            let stale = here.map(|here| is_ahead(saved.host_tsc.since(here.host_tsc)));
            expected.between(libc::ESTALE, stale);
        }
        MODE_ADVANCE => {
            let elapsed = here.map(|here| elapsed_ns(saved, here));
            if saved.flags & FLAG_ALLOW_BACKWARDS == 0 {
                expected.between(libc::ETIME, elapsed.map(|elapsed| elapsed < 0));
            }
            let keeps_slope = !is_resloped(saved, here[0]);
            let reach = elapsed.map(|elapsed| beyond_reach(saved, elapsed, keeps_slope));
            expected.between(libc::EINVAL, reach.map(|reach| reach == Some(true)));
            expected.may(libc::EINVAL, reach.contains(&None));
        }
        _ => (),
    }
}

/// The difference (ppm) of the rates of `saved` and `here`, as the mode defines it.
fn rates_differ_ppm(saved: &VmClockGuest, here: &VmClockGuest) -> f64 {
    let (was, is) = (ratio(saved), ratio(here));
    if saved.mode != MODE_EXACT {
        return ppm(hz(saved), hz(here));
    }
    if was == is || is_identity(was) && is_identity(is) {
        return 0.0;
    }
    if was.1 != is.1 {
        return f64::INFINITY;
    }
    ppm(was.0, is.0)
}

/// `here` with the ratio that the guest has after SET: two candidates if the saved ratio is close
/// to EXACT's tolerance.
fn planned_rates(saved: &VmClockGuest, here: &VmClockGuest) -> [VmClockGuest; 2] {
    let with_saved = VmClockGuest {
        tsc_ratio: saved.tsc_ratio,
        ..*here
    };
    let is_candidate = saved.mode == MODE_EXACT
        && saved.tsc_frac_bits == here.tsc_frac_bits
        && !(is_identity(ratio(saved)) && is_identity(ratio(here)));
    match rates_differ_ppm(saved, here) {
        ..249.0 if is_candidate => [with_saved; 2],
        ..251.0 if is_candidate => [with_saved, *here],
        _ => [*here; 2],
    }
}

/// The difference (ppm) between the rate that `record` implies and that of `rate`; 0 for KVM's own
/// record, with any rounding.
fn record_differs_ppm(record: &ClockGuest, rate: &VmClockGuest) -> f64 {
    if record.factor() == own_factor(rate) {
        return 0.0;
    }
    // CAST: more exact than needed.
    let hz = hz(rate) as f64;
    (1000.0 * implied_khz(record) - hz).abs() * 1e6 / hz
}

/// The rate that `record` implies, kHz.
fn implied_khz(record: &ClockGuest) -> f64 {
    1e6 * (32.0 - f64::from(record.tsc_shift)).exp2() / f64::from(record.tsc_to_system_mul)
}

/// Whether SET replaces the record's factor if `rate` has the guest's TSC rate after it.
pub(crate) fn is_resloped(saved: &VmClockGuest, rate: &VmClockGuest) -> bool {
    let factor = saved.record.factor();
    saved.flags & FLAG_RESLOPE != 0 && factor != own_factor(rate) && factor != exact_factor(rate)
}

/// Whether ADVANCE by `elapsed_ns` leads beyond the range in which TSC values can be compared;
/// `None` close to its limit.
fn beyond_reach(saved: &VmClockGuest, elapsed_ns: i128, keeps_slope: bool) -> Option<bool> {
    let ticks = match ticks_in(saved, elapsed_ns) {
        Ticks::Of(ticks) => ticks,
        Ticks::Nearly => return None,
        Ticks::TooMany => return Some(true),
    };
    // CAST: mod 2^64.
    let guest_tsc = saved.guest_tsc.wrapping_add(ticks as u64);
    let record = &saved.record;
    // CAST: as compared.
    let ahead = record.tsc_timestamp.since(guest_tsc) as i64;
    if ticks >= 0 {
        // The guest's TSC would be half the ring ahead of its record's timestamp.
        return match ahead.unsigned_abs() {
            (0x7fff_0000_0000_0000..) => None,
            _ => Some(ahead > 0 && ticks > 0),
        };
    }
    // A record of another slope begins at the guest's TSC.
    if ahead <= 0 || !keeps_slope {
        return Some(false);
    }
    // The record can only move back so far that its shift does not lose bits of the ticks.
    let moved = not_ahead_of(record, guest_tsc);
    let by = record.tsc_timestamp.since(moved.tsc_timestamp);
    let shifted = u128::from(by) << record.tsc_shift.max(0).unsigned_abs();
    match shifted {
        _ if record.tsc_shift <= 0 => Some(false),
        0..=0x3fff_ffff_ffff_ffff => Some(false),
        0x1_0000_0000_0000_0000.. => Some(true),
        _ => None,
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
    if !is_record_valid(record) {
        return;
    }
    // CAST: much more exact than 1 kHz.
    let off = (implied_khz(record) - khz(&before.header) as f64).abs();
    expected.must(libc::ERANGE, off > 3.0);
    expected.may(libc::ERANGE, off > 0.5);
    let ahead = [&before.header, &after.header].map(|at| {
        let guest_tsc = guest_tsc(ratio(at), at.host_tsc, states[0].offsets[index]);
        is_ahead(record.tsc_timestamp.since(guest_tsc))
    });
    expected.between(libc::EINVAL, ahead);
}
