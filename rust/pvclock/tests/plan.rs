// SPDX-License-Identifier: GPL-2.0-only

//! Exact, advance and freeze put the guest TSC where they should.

mod common;

use common::{
    saved,
    HOST_KHZ, //
};
use proptest::prelude::*;
use pvclock::{
    abi::{
        self,
        VmClockGuest, //
    },
    plan::{
        plan,
        rate_diff_hz,
        ClockSnapshot,
        Plan,
        PlanError, //
    },
    rate::GuestRate,
    request::SetRequest,
    tsc::{
        TscTransform,
        Scale, //
    },
};

/// The rate that the guest had where it was saved.
const HOME: GuestRate = GuestRate {
    host_khz: HOST_KHZ,
    scale: Scale::IDENTITY,
};

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
    ref_offset: u64,
    now: ClockSnapshot,
    rate: GuestRate,
) -> Result<u64, PlanError> {
    let request = SetRequest::new(header).unwrap();
    let shift = plan(&request, ref_offset, &now, rate)?.offset_shift;
    let relation = TscTransform {
        scale: rate.scale,
        offset: ref_offset.wrapping_add(shift),
    };
    Ok(relation.guest_tsc(now.host_tsc))
}

fn at(header: &VmClockGuest, elapsed_ns: i64) -> ClockSnapshot {
    ClockSnapshot {
        // Another domain: its counter has nothing to do with the saved one.
        host_tsc: 987_654_321,
        tai_ns: header.tai_ns + elapsed_ns,
        tai_offset_s: header.tai_offset_s,
        ..Default::default()
    }
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
        let ticks = i128::from(tsc.wrapping_sub(header.guest_tsc) as i64);

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
    fn exact_changes_no_bit(later in 0u64..1 << 62, khz in 1u32.., scale in scales()) {
        // The same counter, whatever it was calibrated to: a live update by kexec.
        let (header, vcpus) = saved(abi::MODE_EXACT, scale);
        let now = ClockSnapshot { host_tsc: header.host_tsc.wrapping_add(later), ..Default::default() };
        let request = SetRequest::new(header).unwrap();
        let expected = Plan { offset_shift: 0, scale, record: request.saved.record, precision_ns: 0 };
        prop_assert_eq!(plan(&request, vcpus[0].tsc_offset, &now, here(khz, scale)), Ok(expected));
    }

    #[test]
    fn exact_puts_the_ratio_of_another_calibration_back(
        later in 0u64..1 << 62, ratio in 1u64 << 31..1 << 33, ppm in -1000i64..1000,
    ) {
        let scale = |ratio| Scale::new(ratio, 32).unwrap();
        let (header, vcpus) = saved(abi::MODE_EXACT, scale(ratio));
        let now = ClockSnapshot { host_tsc: header.host_tsc.wrapping_add(later), ..Default::default() };
        let here = here(HOST_KHZ, scale(ratio.wrapping_add_signed(ratio as i64 / 1_000_000 * ppm)));
        let planned = plan(&SetRequest::new(header).unwrap(), vcpus[0].tsc_offset, &now, here);
        // The bounds are those of two rates in Hz; what is that close to them may be either.
        match ppm.abs() {
            0..=248 => {
                let planned = planned.unwrap();
                prop_assert_eq!((planned.scale, planned.offset_shift), (scale(ratio), 0));
            }
            252.. => prop_assert_eq!(planned, Err(PlanError::RateMismatch)),
            _ => {}
        }
    }

    /// No bit pattern makes planning panic.
    #[test]
    fn any_numbers_are_answered(
        numbers: [u64; 8], khz: (u32, u32), frac_bits in 1u32..64, mode in 1u32..4,
    ) {
        let [host_tsc, guest_tsc, tai, ratio, now_tsc, now_tai, offset, here_ratio] = numbers;
        let (mut header, _) = saved(mode, Scale::IDENTITY);
        header.flags = abi::FLAGS_KNOWN;
        (header.host_tsc, header.guest_tsc, header.tai_ns) = (host_tsc, guest_tsc, tai as i64);
        (header.host_tsc_khz, header.tsc_ratio, header.tsc_frac_bits) = (khz.0, ratio, frac_bits);
        let now = ClockSnapshot { host_tsc: now_tsc, tai_ns: now_tai as i64, ..Default::default() };
        if let (Ok(request), Some(scale)) = (SetRequest::new(header), Scale::new(here_ratio, frac_bits)) {
            let _ = rate_diff_hz(&request, here(khz.1, scale));
            let _ = plan(&request, offset, &now, here(khz.1, scale));
        }
    }
}

#[test]
fn exact_refuses_an_anchor_in_the_future() {
    let (header, vcpus) = saved(abi::MODE_EXACT, Scale::IDENTITY);
    let now = ClockSnapshot {
        host_tsc: header.host_tsc - 1,
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
        Ok(header.guest_tsc - u64::from(HOST_KHZ))
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
            Ok(header.guest_tsc + u64::from(HOST_KHZ))
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
        Ok(header.guest_tsc + u64::from(HOST_KHZ))
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
    header.flags = abi::FLAG_ALLOW_RATE_MISMATCH;
    let rate = here(HOST_KHZ * 2 / 3, Scale::IDENTITY);
    assert_eq!(
        planned(header, vcpus[0].tsc_offset, now, rate),
        Ok(header.guest_tsc)
    );
}
