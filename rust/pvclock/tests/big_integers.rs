// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR BSD-3-Clause

//! Compares the arithmetic with integers that have no width: for random numbers of all 64 bits, and
//! for the vectors of `tools/prove`.

use proptest::prelude::*;
use pvclock::{
    abi::{self, ClockGuest},
    counter::{self, GuestTsc, HostTsc},
    plan::{self, ClockSnapshot},
    rate::{self, Factor, GuestRate},
    request::{self, SetRequest},
    tsc::{self, Scale, TscTransform},
};
use pvclock_reference::arithmetic as reference;

mod common;
mod vectors;

#[test]
fn vectors_hold() {
    for (name, first_wrong) in vectors::TABLES {
        assert_eq!(first_wrong(), None, "row of {name}");
    }
}

/// 64-bit numbers of all magnitudes, and some next to powers of 2.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (any::<u64>(), 0u32..64).prop_map(|(number, shift)| number >> shift),
        1 => (0u64..4).prop_map(|number| number.wrapping_sub(2)),
        1 => (0u32..64, 0u64..3).prop_map(|(bit, more)| (1u64 << bit).wrapping_add(more).wrapping_sub(1)),
    ]
}

/// Any record that SET accepts, and some with a smaller `mul`.
fn record() -> impl Strategy<Value = ClockGuest> {
    let mul = (1u32.., 0u32..32).prop_map(|(mul, zeros)| (mul << zeros).max(1 << zeros));
    (number(), number(), mul, -31i8..=31).prop_map(
        |(tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift)| ClockGuest {
            tsc_timestamp: GuestTsc(tsc_timestamp),
            system_time,
            tsc_to_system_mul,
            tsc_shift,
            ..Default::default()
        },
    )
}

/// Any scale that hardware can have.
fn scale() -> impl Strategy<Value = Scale> {
    let ratio = number().prop_map(|ratio| ratio.max(1));
    prop_oneof![
        1 => Just(Scale::IDENTITY),
        4 => (ratio, prop_oneof![Just(32), Just(48), 1u32..64])
            .prop_map(|(ratio, frac_bits)| Scale::new(ratio, frac_bits).unwrap()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn record_reads(record in record(), ticks in number()) {
        let tsc = record.tsc_timestamp.wrapping_add(ticks);
        prop_assert_eq!(record.kvmclock_ns(tsc), reference::kvmclock_ns(&record, tsc));
    }

    #[test]
    fn scale_applies(scale in scale(), ticks in number()) {
        prop_assert_eq!(scale.apply(ticks), reference::scaled(scale, ticks));
    }

    #[test]
    fn transform_goes_through(scale in scale(), host in number(), guest in number(), offset_diff in number()) {
        let (host, guest) = (HostTsc(host), GuestTsc(guest));
        let transform = TscTransform::through(scale, host, guest);
        prop_assert_eq!(transform.guest_tsc(host), guest);
        let other = TscTransform { scale, offset: transform.offset.wrapping_add(offset_diff) };
        prop_assert_eq!(other.guest_tsc(host).since(guest), offset_diff);
    }

    #[test]
    fn rate_counts(host_khz: u32, scale in scale(), ns in number()) {
        let rate = GuestRate { host_khz, scale };
        prop_assert_eq!(rate.ticks(ns), reference::ticks(rate, ns));
    }

    #[test]
    fn factor_is_the_quotient(hz in number()) {
        prop_assert_eq!(Factor::of_hz(hz), reference::factor_of_hz(hz));
    }

    #[test]
    fn rate_has_the_factor_of_whole_khz(host_khz in 1u32.., scale in scale()) {
        let rate = GuestRate { host_khz, scale };
        let own = reference::own_factor(rate);
        prop_assert_eq!(rate.factor(), own);
        // However the kHz were rounded, and with no tolerance at all.
        prop_assert!(own.is_none_or(|own| rate.accepts(own, 0)));
    }

    #[test]
    fn rate_accepts_close_factors(host_khz: u32, scale in scale(), mul: u32, shift in -31i8..=31, ppm in number()) {
        let (rate, factor) = (GuestRate { host_khz, scale }, Factor { mul, shift });
        let ppm = ppm as u32;
        prop_assert_eq!(rate.hz(), reference::hz(rate));
        prop_assert_eq!(rate.accepts(factor, ppm), reference::is_accepted(factor, rate, ppm));
    }

    #[test]
    fn factor_is_compared_exactly(mul: u32, shift in -31i8..=31, ppm in number(), hz in number(), off in -3i64..=3) {
        let (factor, ppm) = (Factor { mul, shift }, ppm as u32);
        prop_assert_eq!(factor.is_close_to(hz, ppm), reference::is_close(factor, hz, ppm));
        // Next to where the result changes: the implied rate, more or less `ppm`.
        if let Some(khz) = reference::implied_khz(factor) {
            let implied = u128::from(khz) * 1000;
            let part = implied * u128::from(ppm) / 1_000_000;
            for edge in [implied, implied + part, implied.saturating_sub(part)] {
                let hz = u64::try_from(edge).unwrap_or(u64::MAX).saturating_add_signed(off);
                prop_assert_eq!(factor.is_close_to(hz, ppm), reference::is_close(factor, hz, ppm));
            }
        }
    }

    #[test]
    fn factor_implies_a_rate(mul: u32, shift in -31i8..=31) {
        let factor = Factor { mul, shift };
        prop_assert_eq!(factor.khz(), reference::implied_khz(factor));
    }

    /// Two independent roundings: to a factor and back.
    #[test]
    fn factor_implies_its_own_rate(khz in 1u64..=16_000_000) {
        prop_assert_eq!(Factor::of_hz(khz * 1000).and_then(Factor::khz), Some(khz));
    }

    #[test]
    fn exact_step_is_the_least(record in record()) {
        prop_assert_eq!(1 << record.exact_step_log2(), reference::exact_step(&record));
    }

    #[test]
    fn moved_record_reads_the_same(record in record(), ahead in number(), later in number()) {
        let guest_tsc = record.tsc_timestamp.wrapping_sub(ahead);
        let Some(moved) = record.not_ahead_of(guest_tsc) else {
            prop_assert!(reference::is_stuck(&record, ahead));
            return Ok(());
        };
        prop_assert!(!moved.tsc_timestamp.is_ahead_of(guest_tsc));
        let end = reference::common_reach(&record, &moved);
        let later = u64::try_from(u128::from(later) % end).unwrap();
        let tsc = record.tsc_timestamp.wrapping_add(later);
        prop_assert_eq!(moved.kvmclock_ns(tsc), record.kvmclock_ns(tsc));
    }

    #[test]
    fn shifted_record_reads_the_same(record in record(), tsc in number(), offset_diff in number()) {
        let tsc = GuestTsc(tsc);
        let other = record.shifted_by(offset_diff);
        prop_assert_eq!(other.kvmclock_ns(tsc.wrapping_add(offset_diff)), record.kvmclock_ns(tsc));
    }

    #[test]
    fn precision_rounds_up(read_window in number(), khz in 1u32..) {
        let instant = ClockSnapshot { read_window, ..Default::default() };
        prop_assert_eq!(instant.precision_ns(khz), reference::precision_ns(read_window, khz));
    }

    /// For times of either sign, from ns to more than a counter can hold.
    #[test]
    fn advance_adds_elapsed_time(
        taken: i64, now_tai: i64, near in proptest::option::of(-1_000_000_000_000i64..1_000_000_000_000),
        offsets in (prop_oneof![0..12, Just(37), any::<i32>()], prop_oneof![0..12, Just(37), any::<i32>()]),
        host_khz in 1_000u32.., scale in scale(), now_tsc in number(),
    ) {
        let (mut header, vcpus) = common::saved(abi::MODE_ADVANCE, Scale::IDENTITY);
        (header.tai_ns, header.tai_offset_s) = (taken, offsets.0);
        (header.host_tsc_khz, header.tsc_ratio, header.tsc_frac_bits) = (host_khz, scale.ratio(), scale.frac_bits());
        // The record is for another rate; without a left shift it can go back any distance.
        header.flags = abi::FLAG_ALLOW_BACKWARDS | abi::FLAG_RESLOPE;
        header.record.tsc_shift = -1;
        let now = ClockSnapshot {
            host_tsc: HostTsc(now_tsc),
            tai_ns: near.map_or(now_tai, |near| taken.wrapping_add(near)),
            tai_offset_s: offsets.1,
            ..Default::default()
        };
        let Ok(request) = SetRequest::new(header) else {
            return Ok(()); // Less than 1 Hz.
        };

        let elapsed = reference::elapsed_ns(&header, &now);
        let expected = reference::advanced(&header, elapsed, request.rate);
        let Some(factor) = reference::exact_factor(request.rate) else {
            return Ok(()); // More than 2^64 Hz.
        };
        let planned = plan::plan(&request, vcpus[0].tsc_offset, &now, request.rate, 0).ok();
        let tsc = planned.map(|plan| {
            let offset = vcpus[0].tsc_offset.wrapping_add(plan.offset_shift);
            TscTransform { scale, offset }.guest_tsc(now.host_tsc)
        });
        prop_assert_eq!(tsc, expected);
        // kvmclock goes on by the same time, with this rate's slope.
        if let (Some(plan), Some(tsc)) = (planned, tsc) {
            let is_own = Some(header.record.factor()) == request.rate.factor();
            if header.record.factor() != factor && !is_own {
                prop_assert_eq!(plan.record.factor(), factor);
                let ns = plan.record.kvmclock_ns(tsc).wrapping_sub(header.kvmclock_ns);
                // CAST: kvmclock is mod 2^64.
                prop_assert_eq!(ns, elapsed as u64);
            }
        }

        let mut forwards = request;
        forwards.allow_backwards = false;
        let refused = plan::plan(&forwards, vcpus[0].tsc_offset, &now, request.rate, 0) == Err(plan::PlanError::Backwards);
        prop_assert_eq!(refused, elapsed < 0);
    }
}
