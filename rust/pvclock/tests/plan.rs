// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR BSD-3-Clause

//! Exact, advance and freeze put the guest TSC where they should.

mod common;

use common::{saved, HOST_KHZ};
use proptest::prelude::*;
use pvclock::{
    abi::{self, ClockGuest, VmClockGuest},
    counter::{GuestTsc, HostTsc, TscOffset},
    plan::{plan, rate_diff_hz, ClockSnapshot, Plan, PlanError},
    rate::{Factor, GuestRate},
    request::SetRequest,
    tsc::{Scale, TscTransform},
};

/// The rate that the guest had where it was saved.
const HOME: GuestRate = GuestRate {
    host_khz: HOST_KHZ,
    scale: Scale::IDENTITY,
};

/// KVM's default tolerance, parts per million.
const PPM: u32 = 250;

const WEEK_NS: i64 = 7 * 24 * 3600 * 1_000_000_000;

fn here(khz: u32, scale: Scale) -> GuestRate {
    GuestRate {
        host_khz: khz,
        scale,
    }
}

/// The guest TSC that the plan gives the reference vCPU at `now`.
fn planned(
    header: VmClockGuest,
    ref_offset: TscOffset,
    now: ClockSnapshot,
    rate: GuestRate,
) -> Result<GuestTsc, PlanError> {
    let request = SetRequest::new(header).unwrap();
    let shift = plan(&request, ref_offset, &now, rate, PPM)?.offset_shift;
    let transform = TscTransform {
        scale: rate.scale,
        offset: ref_offset.wrapping_add(shift),
    };
    Ok(transform.guest_tsc(now.host_tsc))
}

fn at(header: &VmClockGuest, elapsed_ns: i64) -> ClockSnapshot {
    ClockSnapshot {
        // Another domain: its counter has nothing to do with the saved one.
        host_tsc: HostTsc(987_654_321),
        tai_ns: header.tai_ns + elapsed_ns,
        tai_offset_s: header.tai_offset_s,
        ..Default::default()
    }
}

/// The plan for `header`, whose reference vCPU is the first of `common::saved`.
fn plan_of(header: VmClockGuest, now: ClockSnapshot, rate: GuestRate) -> Result<Plan, PlanError> {
    let offset = saved(header.mode, Scale::IDENTITY).1[0].tsc_offset;
    let request = SetRequest::new(header).unwrap();
    plan(&request, offset, &now, rate, PPM)
}

/// `header` with `mul` of its record multiplied by `times`, and the kvmclock of that record.
fn with_other_rate(header: VmClockGuest, times: f64) -> VmClockGuest {
    let mut header = header;
    // CAST: a test's `times` leaves it in 32 bits.
    header.record.tsc_to_system_mul = (f64::from(header.record.tsc_to_system_mul) * times) as u32;
    header.kvmclock_ns = header.record.kvmclock_ns(header.guest_tsc);
    header
}

/// What SET reports of a `record` that it replaces by one of another slope, ns.
fn rounding_ns(record: &ClockGuest) -> u32 {
    1 + u32::from(record.tsc_shift < 0)
}

/// Scaling ratios of guests of 0.5, 0.58, 1.5 and 2 times the host's rate, on SVM and VMX.
fn scales() -> impl Strategy<Value = Scale> {
    prop_oneof![
        Just(Scale::IDENTITY),
        (1u64 << 31..1 << 33).prop_map(|ratio| Scale::new(ratio, 32).unwrap()),
        (1u64 << 47..1 << 49).prop_map(|ratio| Scale::new(ratio, 48).unwrap()),
    ]
}

proptest! {
    #[test]
    fn advance_is_elapsed_tai_to_the_tick(elapsed in -3 * WEEK_NS..3 * WEEK_NS, scale in scales()) {
        let (mut header, vcpus) = saved(abi::MODE_ADVANCE, scale);
        header.flags = abi::FLAG_ALLOW_BACKWARDS;
        let tsc = planned(header, vcpus[0].tsc_offset, at(&header, elapsed), here(HOST_KHZ, scale)).unwrap();
        let ticks = i128::from(tsc.since(header.guest_tsc) as i64);

        // ticks = elapsed * kHz * ratio / 2^frac / 10^6, kept as a fraction: both sides times it.
        let (ratio, one) = match scale {
            Scale::IDENTITY => (1, 1),
            _ => (i128::from(scale.ratio()), 1i128 << scale.frac_bits()),
        };
        let exact_whole = i128::from(elapsed) * i128::from(HOST_KHZ);
        let (whole, rest) = (exact_whole / 1_000_000, exact_whole % 1_000_000);
        let exact = (whole * ratio * 1_000_000 + rest * ratio) / one;
        prop_assert!((ticks * 1_000_000 - exact).abs() <= 1_000_000, "{ticks} ticks, {exact} exact / 10^6");
    }

    #[test]
    fn freeze_goes_on_from_the_saved_value(elapsed in -WEEK_NS..WEEK_NS, scale in scales()) {
        let (header, vcpus) = saved(abi::MODE_FREEZE, scale);
        let tsc = planned(header, vcpus[0].tsc_offset, at(&header, elapsed), here(HOST_KHZ, scale));
        prop_assert_eq!(tsc, Ok(header.guest_tsc));
    }

    #[test]
    fn exact_changes_no_bit(later in 0u64..1 << 62, off_by in -600i32..=600, scale in scales()) {
        // The same counter, calibrated again: a live update by kexec.
        let khz = HOST_KHZ.wrapping_add_signed(off_by);
        let (header, vcpus) = saved(abi::MODE_EXACT, scale);
        let now = ClockSnapshot { host_tsc: header.host_tsc.wrapping_add(later), ..Default::default() };
        let request = SetRequest::new(header).unwrap();
        let expected = Plan { offset_shift: 0, scale, record: request.saved.record, precision_ns: 0 };
        prop_assert_eq!(plan(&request, vcpus[0].tsc_offset, &now, here(khz, scale), PPM), Ok(expected));
    }

    #[test]
    fn exact_restores_the_ratio_of_another_calibration(
        later in 0u64..1 << 62, ratio in 1u64 << 31..1 << 33, ppm in -1000i64..1000,
    ) {
        let scale = |ratio| Scale::new(ratio, 32).unwrap();
        let (header, vcpus) = saved(abi::MODE_EXACT, scale(ratio));
        let now = ClockSnapshot { host_tsc: header.host_tsc.wrapping_add(later), ..Default::default() };
        let here = here(HOST_KHZ, scale(ratio.wrapping_add_signed(ratio as i64 / 1_000_000 * ppm)));
        let planned = plan(&SetRequest::new(header).unwrap(), vcpus[0].tsc_offset, &now, here, PPM);
        // The tolerance is one of rates in whole Hz, so values next to it may be on either side.
        match ppm.abs() {
            0..=248 => {
                let planned = planned.unwrap();
                prop_assert_eq!((planned.scale, planned.offset_shift), (scale(ratio), 0));
            }
            252.. => prop_assert_eq!(planned, Err(PlanError::RateMismatch)),
            _ => {}
        }
    }

    /// For any factor of the record and any rate here.
    #[test]
    fn a_resloped_kvmclock_continues_with_the_slope_of_this_tsc(
        mul in 1u32 << 31.., shift in -2i8..3, khz in 400_000u32..8_000_000, mode in 1u32..4, elapsed in 0..3 * WEEK_NS,
    ) {
        let (mut header, vcpus) = saved(mode, Scale::IDENTITY);
        header.flags = abi::FLAG_RESLOPE | abi::FLAG_ALLOW_RATE_MISMATCH;
        (header.record.tsc_to_system_mul, header.record.tsc_shift) = (mul, shift);
        header.kvmclock_ns = header.record.kvmclock_ns(header.guest_tsc);
        let mut now = at(&header, elapsed);
        if mode == abi::MODE_EXACT {
            now.host_tsc = header.host_tsc.wrapping_add(12_345);
        }
        let rate = here(khz, Scale::IDENTITY);
        let plan = plan_of(header, now, rate).unwrap();
        prop_assert_eq!(Some(plan.record.factor()), rate.factor());
        prop_assert_eq!(plan.record.flags, header.record.flags);

        let offset = vcpus[0].tsc_offset.wrapping_add(plan.offset_shift);
        let tsc = TscTransform { scale: plan.scale, offset };
        let (guest_tsc, elapsed) = match mode {
            abi::MODE_EXACT => (tsc.guest_tsc(header.host_tsc), 0),
            abi::MODE_ADVANCE => (tsc.guest_tsc(now.host_tsc), elapsed as u64),
            _ => (tsc.guest_tsc(now.host_tsc), 0),
        };
        prop_assert_eq!(plan.record.kvmclock_ns(guest_tsc), header.kvmclock_ns + elapsed);
        let is_other = header.record.factor() != plan.record.factor();
        prop_assert_eq!(plan.precision_ns, if is_other { rounding_ns(&header.record) } else { 0 });
        // 100 s later by this host's clock, but for what 32 bits and a right shift round.
        let later = plan.record.kvmclock_ns(guest_tsc.wrapping_add(u64::from(khz) * 100_000)) - header.kvmclock_ns - elapsed;
        prop_assert!(later.abs_diff(100_000_000_000) < 100, "{later} ns");
    }

    /// Hop after hop. The slope differs in the last bit, which is put back to compare the readings.
    #[test]
    fn a_resloped_kvmclock_is_behind_by_no_more_than_its_precision(
        khz in 400_000u32..4_000_000, ticks: [u16; 5],
    ) {
        let rate = here(khz, Scale::IDENTITY);
        let (mut header, _) = saved(abi::MODE_FREEZE, Scale::IDENTITY);
        header.flags = abi::FLAG_RESLOPE;
        let Factor { mul, shift } = rate.factor().unwrap();
        header.host_tsc_khz = khz;
        (header.record.tsc_to_system_mul, header.record.tsc_shift) = (mul ^ 1, shift);
        let first = header.record;
        for (hop, ticks) in ticks.into_iter().enumerate() {
            header.guest_tsc = header.guest_tsc.wrapping_add(ticks.into());
            header.kvmclock_ns = header.record.kvmclock_ns(header.guest_tsc);
            let behind_ns = first.kvmclock_ns(header.guest_tsc) - header.kvmclock_ns;
            prop_assert!(behind_ns <= header.precision_ns.into(), "hop {hop}: {behind_ns} ns");
            let plan = plan_of(header, at(&header, 0), rate).unwrap();
            header.precision_ns = plan.precision_ns;
            header.record = plan.record;
            header.record.tsc_to_system_mul = mul ^ 1;
        }
    }

    /// No bit pattern makes planning panic.
    #[test]
    fn any_numbers_are_answered(
        numbers: [u64; 8], khz: (u32, u32), frac_bits in 1u32..64, mode in 1u32..4, flags in 0..16u32,
        factor: (u32, i8), ppm: u32,
    ) {
        let [host_tsc, guest_tsc, tai, ratio, now_tsc, now_tai, offset, here_ratio] = numbers;
        let (mut header, _) = saved(mode, Scale::IDENTITY);
        header.flags = flags;
        (header.record.tsc_to_system_mul, header.record.tsc_shift) = (factor.0 | 1 << 31, factor.1 % 32);
        (header.host_tsc, header.guest_tsc) = (HostTsc(host_tsc), GuestTsc(guest_tsc));
        header.tai_ns = tai as i64;
        (header.host_tsc_khz, header.tsc_ratio, header.tsc_frac_bits) = (khz.0, ratio, frac_bits);
        let now = ClockSnapshot { host_tsc: HostTsc(now_tsc), tai_ns: now_tai as i64, ..Default::default() };
        if let (Ok(request), Some(scale)) = (SetRequest::new(header), Scale::new(here_ratio, frac_bits)) {
            let _ = rate_diff_hz(&request, here(khz.1, scale));
            let _ = plan(&request, TscOffset(offset), &now, here(khz.1, scale), ppm);
        }
    }
}

#[test]
fn exact_refuses_an_anchor_in_the_future() {
    let (header, vcpus) = saved(abi::MODE_EXACT, Scale::IDENTITY);
    let now = ClockSnapshot {
        host_tsc: header.host_tsc.wrapping_sub(1),
        ..at(&header, 0)
    };
    let rate = HOME;
    assert_eq!(
        planned(header, vcpus[0].tsc_offset, now, rate),
        Err(PlanError::Stale)
    );
}

#[test]
fn exact_refuses_another_ratio() {
    let half = Scale::new(1 << 31, 32).unwrap();
    let (header, vcpus) = saved(abi::MODE_EXACT, half);
    let now = ClockSnapshot {
        host_tsc: header.host_tsc,
        ..at(&header, 0)
    };
    let rate = HOME;
    assert_eq!(
        planned(header, vcpus[0].tsc_offset, now, rate),
        Err(PlanError::RateMismatch)
    );
    // A host that can scale and does not is no other rate than one that cannot.
    let (header, vcpus) = saved(abi::MODE_EXACT, Scale::new(1 << 32, 32).unwrap());
    assert_eq!(
        planned(header, vcpus[0].tsc_offset, now, rate),
        Ok(header.guest_tsc)
    );
}

#[test]
fn advance_goes_backwards_only_if_allowed() {
    let (mut header, vcpus) = saved(abi::MODE_ADVANCE, Scale::IDENTITY);
    let (now, rate) = (at(&header, -1_000_000), HOME);
    assert_eq!(
        planned(header, vcpus[0].tsc_offset, now, rate),
        Err(PlanError::Backwards)
    );
    header.flags = abi::FLAG_ALLOW_BACKWARDS;
    assert_eq!(
        planned(header, vcpus[0].tsc_offset, now, rate),
        Ok(header.guest_tsc.wrapping_sub(HOST_KHZ.into()))
    );
}

#[test]
fn advance_compares_utc_if_one_side_knows_no_tai() {
    for (theirs, ours) in [(37, 0), (0, 37)] {
        let (mut header, vcpus) = saved(abi::MODE_ADVANCE, Scale::IDENTITY);
        header.tai_offset_s = theirs;
        let mut now = at(&header, 1_000_000);
        now.tai_offset_s = ours;
        now.tai_ns += i64::from(ours - theirs) * 1_000_000_000;
        assert_eq!(
            planned(header, vcpus[0].tsc_offset, now, HOME),
            Ok(header.guest_tsc.wrapping_add(HOST_KHZ.into()))
        );
    }
}

#[test]
fn a_leap_second_is_no_time() {
    // TAI - UTC goes from 37 to 38 while the guest is down: TAI counts on.
    let (header, vcpus) = saved(abi::MODE_ADVANCE, Scale::IDENTITY);
    let mut now = at(&header, 1_000_000);
    now.tai_offset_s += 1;
    assert_eq!(
        planned(header, vcpus[0].tsc_offset, now, HOME),
        Ok(header.guest_tsc.wrapping_add(HOST_KHZ.into()))
    );
}

#[test]
fn rates_match_within_the_tolerance_kvm_has() {
    let (mut header, vcpus) = saved(abi::MODE_ADVANCE, Scale::IDENTITY);
    let now = at(&header, 0);
    // 250 ppm of 2,596,100 kHz is 649 kHz.
    for (khz, fits) in [
        (HOST_KHZ + 648, true),
        (HOST_KHZ - 648, true),
        (HOST_KHZ + 651, false),
        (HOST_KHZ - 651, false),
    ] {
        let rate = here(khz, Scale::IDENTITY);
        let result = planned(header, vcpus[0].tsc_offset, now, rate);
        assert_eq!(result.is_ok(), fits, "{khz} kHz: {result:?}");
        let request = SetRequest::new(header).unwrap();
        assert_eq!(
            rate_diff_hz(&request, rate),
            (i64::from(khz) - i64::from(HOST_KHZ)) * 1000
        );
    }
    // With the flag the TSC may have another rate, but the record must be for that rate.
    header.flags = abi::FLAG_ALLOW_RATE_MISMATCH;
    let rate = here(HOST_KHZ * 2 / 3, Scale::IDENTITY);
    assert_eq!(
        planned(header, vcpus[0].tsc_offset, now, rate),
        Err(PlanError::RecordRate)
    );
    header.flags |= abi::FLAG_RESLOPE;
    assert_eq!(
        planned(header, vcpus[0].tsc_offset, now, rate),
        Ok(header.guest_tsc)
    );
}

#[test]
fn the_tolerance_is_a_parameter() {
    let (mut header, vcpus) = saved(abi::MODE_ADVANCE, Scale::IDENTITY);
    let now = at(&header, 0);
    let plan = |header, khz, ppm| {
        let request = SetRequest::new(header).unwrap();
        let here = here(khz, Scale::IDENTITY);
        plan(&request, vcpus[0].tsc_offset, &now, here, ppm).map(|_| ())
    };
    // KVM's own record passes with no tolerance at all, although 32 bits rounded its factor.
    assert_eq!(plan(header, HOST_KHZ, 0), Ok(()));
    // 26 kHz are 10.01 ppm.
    assert_eq!(plan(header, HOST_KHZ + 26, 0), Err(PlanError::RateMismatch));
    assert_eq!(
        plan(header, HOST_KHZ + 26, 10),
        Err(PlanError::RateMismatch)
    );
    assert_eq!(plan(header, HOST_KHZ + 26, 11), Ok(()));
    header.flags = abi::FLAG_ALLOW_RATE_MISMATCH;
    assert_eq!(plan(header, HOST_KHZ + 26, 10), Err(PlanError::RecordRate));
    assert_eq!(plan(header, HOST_KHZ * 2, u32::MAX), Ok(()));
}

#[test]
fn a_record_is_for_the_rate_of_the_tsc_in_every_mode() {
    for mode in [abi::MODE_EXACT, abi::MODE_ADVANCE, abi::MODE_FREEZE] {
        for flags in [0, abi::FLAG_ALLOW_RATE_MISMATCH] {
            let (mut header, _) = saved(mode, Scale::IDENTITY);
            header.flags = flags;
            let mut now = at(&header, 0);
            now.host_tsc = header.host_tsc;
            for (times, fits) in [
                (1.0, true),
                (1.000_249, true),
                (0.999_751, true),
                (1.000_251, false),
                (0.999_749, false),
                (2.0 / 3.0, false),
            ] {
                let planned =
                    plan_of(with_other_rate(header, times), now, HOME).map(|plan| plan.record);
                let expected = SetRequest::new(with_other_rate(header, times))
                    .unwrap()
                    .saved
                    .record;
                let expected = fits.then_some(expected).ok_or(PlanError::RecordRate);
                assert_eq!(planned, expected, "mode {mode}, mul x {times}");
            }
        }
    }
}

#[test]
fn exact_compares_the_record_with_the_ratio_that_it_restores() {
    let ratio = 3u64 << 31;
    let scale = |ratio| Scale::new(ratio, 32).unwrap();
    let (header, _) = saved(abi::MODE_EXACT, scale(ratio));
    let mut now = at(&header, 0);
    now.host_tsc = header.host_tsc;
    // KVM would give the guest 200 ppm less here.
    let here = here(HOST_KHZ, scale(ratio - ratio / 5000));
    for (times, fits) in [
        (0.9999, true),
        (1.0001, true),
        (0.9997, false),
        (1.0003, false),
    ] {
        let result = plan_of(with_other_rate(header, times), now, here);
        let expected = fits.then_some(scale(ratio)).ok_or(PlanError::RecordRate);
        assert_eq!(result.map(|plan| plan.scale), expected, "mul x {times}");
    }
}

#[test]
fn exact_restores_no_ratio_of_other_hardware() {
    // 1.5, as SVM and as VMX have it.
    let (header, _) = saved(abi::MODE_EXACT, Scale::new(3 << 31, 32).unwrap());
    let mut now = at(&header, 0);
    now.host_tsc = header.host_tsc;
    let here = here(HOST_KHZ, Scale::new(3 << 47, 48).unwrap());
    assert_eq!(plan_of(header, now, here), Err(PlanError::RateMismatch));
}

#[test]
fn hops_do_not_add_up() {
    // Each host is 185 ppm faster than the one before: every hop is within the tolerance.
    let (mut header, _) = saved(abi::MODE_ADVANCE, Scale::IDENTITY);
    let mut taken = 0;
    for hop in 1..=8 {
        let khz = (f64::from(HOST_KHZ) * (1.0 + 185e-6 * f64::from(hop))) as u32;
        let rate = here(khz, Scale::IDENTITY);
        match plan_of(header, at(&header, 0), rate) {
            Ok(plan) => assert_eq!(plan.record, header.record),
            Err(error) => {
                assert_eq!(error, PlanError::RecordRate);
                break;
            }
        }
        // As that host's GET returns it.
        header.host_tsc_khz = khz;
        taken = hop;
    }
    assert_eq!(taken, 1, "the record is 370 ppm off after the second");
}

#[test]
fn reslope_keeps_the_bits_of_a_record_for_this_tsc() {
    for mode in [abi::MODE_EXACT, abi::MODE_ADVANCE, abi::MODE_FREEZE] {
        for scale in [Scale::IDENTITY, Scale::new(7 << 45, 48).unwrap()] {
            let (mut header, vcpus) = saved(mode, scale);
            let mut now = at(&header, 5_000_000_000);
            now.host_tsc = now.host_tsc.wrapping_add(header.host_tsc.0);
            let plan = |header| {
                let request = SetRequest::new(header).unwrap();
                plan(
                    &request,
                    vcpus[0].tsc_offset,
                    &now,
                    here(HOST_KHZ, scale),
                    PPM,
                )
            };
            let without = plan(header);
            header.flags = abi::FLAG_RESLOPE;
            assert_eq!(plan(header), without);
            assert_eq!(without.unwrap().record, header.record);
            assert_eq!(without.unwrap().precision_ns, 0);
        }
    }
}

#[test]
fn a_new_slope_is_that_of_the_rate_in_hz() {
    // 1,947,076.666 kHz by SVM's ratio, of which KVM's own factor has whole kHz: 0.3 ppm off.
    let scale = Scale::new((3 << 32) / 4 + 286, 32).unwrap();
    let rate = here(HOST_KHZ, scale);
    let (of_khz, of_hz) = (rate.factor().unwrap(), Factor::of_hz(rate.hz()).unwrap());
    assert_ne!(of_khz, of_hz);
    for (mul, shift, expected) in [
        (of_khz.mul, of_khz.shift, of_khz),
        (of_hz.mul, of_hz.shift, of_hz),
        (of_hz.mul + 1, of_hz.shift, of_hz),
        (1 << 31, 0, of_hz),
    ] {
        let (mut header, vcpus) = saved(abi::MODE_FREEZE, scale);
        header.flags = abi::FLAG_RESLOPE;
        (header.record.tsc_to_system_mul, header.record.tsc_shift) = (mul, shift);
        header.kvmclock_ns = header.record.kvmclock_ns(header.guest_tsc);
        let request = SetRequest::new(header).unwrap();
        let offset = vcpus[0].tsc_offset;
        let plan = plan(&request, offset, &at(&header, 0), rate, PPM).unwrap();
        assert_eq!(plan.record.factor(), expected);
        let is_other = header.record.factor() != expected;
        let rounding_ns = if is_other {
            rounding_ns(&header.record)
        } else {
            0
        };
        assert_eq!(plan.precision_ns, rounding_ns);
    }
}

#[test]
fn kvmclock_goes_at_its_own_rate_where_the_tsc_cannot() {
    // Saved on a host of 3/2 the rate; this one does not scale.
    let (mut header, _) = saved(abi::MODE_ADVANCE, Scale::IDENTITY);
    header.flags = abi::FLAG_ALLOW_RATE_MISMATCH | abi::FLAG_RESLOPE;
    let rate = here(HOST_KHZ / 3 * 2, Scale::IDENTITY);
    let second = u64::from(rate.host_khz) * 1000;
    let now = at(&header, 1_000_000_000);
    let plan = plan_of(header, now, rate).unwrap();
    // The TSC goes on by the ticks of its old rate, kvmclock by real time, then and from then on.
    let guest_tsc = (header.guest_tsc).wrapping_add(u64::from(HOST_KHZ) * 1000);
    assert_eq!(plan.record.tsc_timestamp, guest_tsc);
    assert_eq!(plan.record.system_time, header.kvmclock_ns + 1_000_000_000);
    let later = plan.record.kvmclock_ns(guest_tsc.wrapping_add(second));
    assert!(later.abs_diff(header.kvmclock_ns + 2_000_000_000) <= 1);
    assert_eq!(plan.precision_ns, rounding_ns(&header.record));
}

#[test]
fn a_resloped_record_can_go_back() {
    // So far that the record's shift leaves no room to move it.
    let (mut header, vcpus) = saved(abi::MODE_ADVANCE, Scale::IDENTITY);
    header.flags = abi::FLAG_ALLOW_BACKWARDS;
    header.record.tsc_timestamp = header.guest_tsc;
    (header.record.tsc_to_system_mul, header.record.tsc_shift) = (1 << 31, 31);
    header.kvmclock_ns = header.record.system_time;
    let slow = here(1, Scale::new(4, 2).unwrap());
    assert_eq!(slow.hz(), 1000);
    let plan = |header, rate, ppm| {
        let request = SetRequest::new(header).unwrap();
        let now = at(&header, -10_000_000_000_000_000);
        plan(&request, vcpus[0].tsc_offset, &now, rate, ppm)
    };
    header.host_tsc_khz = 1;
    assert_eq!(
        plan(header, slow, u32::MAX),
        Err(PlanError::Unrepresentable)
    );
    header.flags |= abi::FLAG_RESLOPE;
    let plan = plan(header, slow, 0).unwrap();
    assert_eq!(
        plan.record.tsc_timestamp,
        header.guest_tsc.wrapping_sub(10_000_000_000)
    );
    let ns = header.kvmclock_ns.wrapping_sub(10_000_000_000_000_000);
    assert_eq!(plan.record.system_time, ns);
}

#[test]
fn a_resloped_record_of_another_ratio_continues_at_the_anchor() {
    // Exact where the host cannot put the ratio back: the TSC jumps, as the flag allows.
    let half = Scale::new(1 << 31, 32).unwrap();
    let (mut header, vcpus) = saved(abi::MODE_EXACT, half);
    header.flags = abi::FLAG_ALLOW_RATE_MISMATCH | abi::FLAG_RESLOPE;
    let mut now = at(&header, 0);
    now.host_tsc = header.host_tsc.wrapping_add(1);
    let request = SetRequest::new(header).unwrap();
    let plan = plan(&request, vcpus[0].tsc_offset, &now, HOME, PPM).unwrap();
    let tsc = TscTransform {
        scale: plan.scale,
        offset: vcpus[0].tsc_offset,
    };
    assert_eq!((plan.scale, plan.offset_shift), (Scale::IDENTITY, 0));
    let ns = plan.record.kvmclock_ns(tsc.guest_tsc(header.host_tsc));
    assert_eq!(ns, header.kvmclock_ns);
}

#[test]
fn precision_adds_up_and_saturates() {
    let (mut header, _) = saved(abi::MODE_ADVANCE, Scale::IDENTITY);
    header.flags = abi::FLAG_RESLOPE;
    let mut now = at(&header, 0);
    let rate = here(HOST_KHZ + 1, Scale::IDENTITY);
    let precision = |header, now| plan_of(header, now, rate).unwrap().precision_ns;
    header.precision_ns = 5;
    assert_eq!(precision(header, now), 7);
    // Half of it, in ns, rounded up.
    now.read_window = 2 * 2_596_101;
    assert_eq!(precision(header, now), 1_000_007);
    header.precision_ns = u32::MAX - 1_000_000;
    assert_eq!(precision(header, now), u32::MAX);

    // If KVM cannot pin the record and its own clock is 11 ns off, either way.
    header.precision_ns = 0;
    let plan = plan_of(header, now, rate).unwrap();
    let transform = TscTransform::through(Scale::IDENTITY, now.host_tsc, GuestTsc(1 << 50));
    let ns = plan.record.kvmclock_ns(GuestTsc(1 << 50));
    for actual in [ns - 11, ns + 11] {
        let precision = plan.precision_unpinned_ns(transform, &now, actual, rate.host_khz);
        assert_eq!(precision, 11 + 1_000_000 + 1_000_002);
    }
}

#[test]
fn a_factor_is_that_of_its_rate() {
    // 2 GHz, and 1 ppm around it: exact, where whole kHz or rounded products would err.
    let factor = Factor {
        mul: 1 << 31,
        shift: 0,
    };
    for (hz, ppm, is_close) in [
        (2_000_000_000, 0, true),
        (2_000_000_001, 0, false),
        (1_999_999_999, 0, false),
        (2_000_002_000, 1, true),
        (2_000_002_001, 1, false), // 2,000.002 Hz are 1 ppm of it.
        (1_999_998_001, 1, true),
        (1_999_998_000, 1, false),
        (0, u32::MAX, false),
    ] {
        assert_eq!(factor.is_close_to(hz, ppm), is_close, "{hz} Hz, {ppm} ppm");
    }
    for (mul, shift) in [(0, 0), (1 << 31, 32), (1 << 31, -32), (1 << 31, i8::MIN)] {
        assert!(!Factor { mul, shift }.is_close_to(2_000_000_000, u32::MAX));
    }
    let record = ClockGuest {
        tsc_to_system_mul: 5,
        tsc_shift: -3,
        ..Default::default()
    };
    assert_eq!(record.factor(), Factor { mul: 5, shift: -3 });
}
