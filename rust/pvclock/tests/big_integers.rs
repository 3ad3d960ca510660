// SPDX-License-Identifier: GPL-2.0-only

//! The arithmetic against integers without a width: at full width on random inputs, and on the
//! vectors of `tools/prove`.

use num_bigint::{
    BigInt,
    BigUint, //
};
use proptest::prelude::*;
use pvclock::{
    abi::{
        self,
        ClockGuest, //
    },
    plan::{
        self,
        Instant, //
    },
    rate::{
        self,
        Factor,
        GuestRate, //
    },
    request::{
        self,
        SetRequest, //
    },
    tsc::{
        self,
        is_ahead,
        Relation,
        Scale, //
    },
};

mod common;
mod vectors;

const NSEC_PER_SEC: u64 = 1_000_000_000;

#[test]
fn vectors_hold() {
    for (name, first_wrong) in vectors::TABLES {
        assert_eq!(first_wrong(), None, "row of {name}");
    }
}

/// 64-bit numbers of all magnitudes, and those at the edges.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (any::<u64>(), 0u32..64).prop_map(|(number, shift)| number >> shift),
        1 => (0u64..4).prop_map(|number| number.wrapping_sub(2)),
        1 => (0u32..64, 0u64..3).prop_map(|(bit, more)| (1u64 << bit).wrapping_add(more).wrapping_sub(1)),
    ]
}

/// Every record that SET takes.
fn record() -> impl Strategy<Value = ClockGuest> {
    let mul = (1u32.., 0u32..32).prop_map(|(mul, zeros)| (mul << zeros).max(1 << zeros));
    (number(), number(), mul, -31i8..=31).prop_map(
        |(tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift)| ClockGuest {
            tsc_timestamp,
            system_time,
            tsc_to_system_mul,
            tsc_shift,
            ..Default::default()
        },
    )
}

/// Every scale that hardware can have.
fn scale() -> impl Strategy<Value = Scale> {
    let ratio = number().prop_map(|ratio| ratio.max(1));
    prop_oneof![
        1 => Just(Scale::IDENTITY),
        4 => (ratio, prop_oneof![Just(32), Just(48), 1u32..64])
            .prop_map(|(ratio, frac_bits)| Scale::new(ratio, frac_bits).unwrap()),
    ]
}

/// Ratio and fraction bits such that no scaling needs no exception.
fn fraction(scale: Scale) -> (BigUint, u32) {
    match scale {
        Scale::IDENTITY => (1u32.into(), 0),
        _ => (scale.ratio().into(), scale.frac_bits()),
    }
}

fn low_64(number: &BigUint) -> u64 {
    number.iter_u64_digits().next().unwrap_or(0)
}

fn to_u64(number: BigUint) -> Option<u64> {
    u64::try_from(number).ok()
}

/// ns that a record adds on the way of `ticks`, with the shifted ticks as 64 bits; no other width.
fn ns_in(record: &ClockGuest, ticks: u64) -> u64 {
    let shift = i32::from(record.tsc_shift);
    let shifted = if shift < 0 {
        BigUint::from(ticks) >> -shift
    } else {
        (BigUint::from(ticks) << shift) % (BigUint::from(1u32) << 64)
    };
    low_64(&((shifted * record.tsc_to_system_mul) >> 32))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn record_reads(record in record(), ticks in number()) {
        let tsc = record.tsc_timestamp.wrapping_add(ticks);
        let expected = record.system_time.wrapping_add(ns_in(&record, ticks));
        prop_assert_eq!(record.kvmclock_ns(tsc), expected);
    }

    #[test]
    fn scale_applies(scale in scale(), ticks in number()) {
        let (ratio, frac_bits) = fraction(scale);
        prop_assert_eq!(scale.apply(ticks), low_64(&((ratio * ticks) >> frac_bits)));
    }

    #[test]
    fn relation_goes_through(scale in scale(), host in number(), guest in number(), offset_diff in number()) {
        let relation = Relation::through(scale, host, guest);
        prop_assert_eq!(relation.guest_tsc(host), guest);
        let other = Relation { scale, offset: relation.offset.wrapping_add(offset_diff) };
        prop_assert_eq!(other.guest_tsc(host).wrapping_sub(guest), offset_diff);
    }

    #[test]
    fn rate_counts(host_khz: u32, scale in scale(), ns in number()) {
        let (ratio, frac_bits) = fraction(scale);
        let exact = ((ratio * ns * host_khz * 1000u32) >> frac_bits) / NSEC_PER_SEC;
        let rate = GuestRate { host_khz, scale };
        prop_assert_eq!(rate.ticks(ns), to_u64(exact));
    }

    #[test]
    fn factor_is_the_quotient(khz in number()) {
        let Some(Factor { mul, shift }) = Factor::of_khz(khz) else {
            prop_assert!(khz == 0 || khz > u64::MAX / 1000);
            return Ok(());
        };
        let hz = khz * 1000;
        // Shifted into (10^9, 2 * 10^9]: by how much, and the bits that this loses, are KVM's choice.
        let ticks = if shift < 0 { hz >> -shift } else { hz << shift };
        let overshot = shift <= 0 && ticks == 2 * NSEC_PER_SEC + 1;
        prop_assert!(overshot || (NSEC_PER_SEC + 1..=2 * NSEC_PER_SEC).contains(&ticks));
        let quotient = (BigUint::from(NSEC_PER_SEC) << 32) / ticks.min(2 * NSEC_PER_SEC);
        prop_assert_eq!(BigUint::from(mul), quotient);
    }

    #[test]
    fn factor_implies_a_rate(mul: u32, shift in -31i8..=31) {
        let bits = u32::from(shift.unsigned_abs());
        let (up, down) = if shift < 0 { (bits, 0) } else { (0, bits) };
        let expected = (mul != 0)
            .then(|| (BigUint::from(1_000_000u32) << (32 + up)) / (BigUint::from(mul) << down))
            .and_then(to_u64);
        prop_assert_eq!(Factor { mul, shift }.khz(), expected);
    }

    /// Two independent roundings: to a factor and back.
    #[test]
    fn factor_implies_its_own_rate(khz in 1u64..=16_000_000) {
        prop_assert_eq!(Factor::of_khz(khz).and_then(Factor::khz), Some(khz));
    }

    #[test]
    fn moved_record_reads_the_same(record in record(), ahead in number(), later in number()) {
        let guest_tsc = record.tsc_timestamp.wrapping_sub(ahead);
        let Some(moved) = record.not_ahead_of(guest_tsc) else {
            // No room: as many ticks, shifted, have more than 63 bits.
            prop_assert!(record.tsc_shift > 0);
            let step = BigUint::from(1u32) << record.lattice_bits();
            let ticks = (ahead + &step - 1u32) / &step * step;
            prop_assert!((ticks << record.tsc_shift.unsigned_abs() as usize) >= BigUint::from(1u32) << 63);
            return Ok(());
        };
        prop_assert!(!is_ahead(moved.tsc_timestamp, guest_tsc));
        let ticks = record.tsc_timestamp.wrapping_sub(moved.tsc_timestamp);
        let left = u32::try_from(record.tsc_shift).unwrap_or(0);
        let end = (1u128 << (64 - left)) - u128::from(ticks);
        let later = u64::try_from(u128::from(later) % end).unwrap();
        let tsc = record.tsc_timestamp.wrapping_add(later);
        prop_assert_eq!(moved.kvmclock_ns(tsc), record.kvmclock_ns(tsc));
    }

    #[test]
    fn shifted_record_reads_the_same(record in record(), tsc in number(), offset_diff in number()) {
        let other = record.shifted_by(offset_diff);
        prop_assert_eq!(other.kvmclock_ns(tsc.wrapping_add(offset_diff)), record.kvmclock_ns(tsc));
    }

    #[test]
    fn precision_rounds_up(spread in number(), khz in 1u32..) {
        let instant = Instant { spread, ..Default::default() };
        let ticks = (BigUint::from(spread) + 1u32) / 2u32;
        let ns = (ticks * 1_000_000u32 + khz - 1u32) / khz;
        prop_assert_eq!(instant.precision_ns(khz), u32::try_from(ns).unwrap_or(u32::MAX));
    }

    /// At full width and of either sign: whole days, centuries, and what fits no counter.
    #[test]
    fn advance_adds_elapsed_time(
        taken: i64, now_tai: i64, near in proptest::option::of(-1_000_000_000_000i64..1_000_000_000_000),
        offsets in (prop_oneof![0..12, Just(37), any::<i32>()], prop_oneof![0..12, Just(37), any::<i32>()]),
        host_khz in 1_000u32.., scale in scale(), now_tsc in number(),
    ) {
        let (mut header, vcpus) = common::saved(abi::MODE_ADVANCE, Scale::IDENTITY);
        (header.tai_ns, header.tai_offset_s) = (taken, offsets.0);
        (header.host_tsc_khz, header.tsc_ratio, header.tsc_frac_bits) = (host_khz, scale.ratio(), scale.frac_bits());
        header.flags = abi::FLAG_ALLOW_BACKWARDS;
        // Without a left shift the record can go back as far as it must.
        header.record.tsc_shift = -1;
        let now = Instant {
            host_tsc: now_tsc,
            tai_ns: near.map_or(now_tai, |near| taken.wrapping_add(near)),
            tai_offset_s: offsets.1,
            ..Default::default()
        };
        let Ok(request) = SetRequest::new(header) else {
            return Ok(()); // Less than 1 Hz.
        };

        let mut elapsed = BigInt::from(now.tai_ns) - taken;
        if (offsets.0 < 10) != (offsets.1 < 10) {
            elapsed -= (BigInt::from(offsets.1) - offsets.0) * NSEC_PER_SEC;
        }
        let (ratio, frac_bits) = fraction(scale);
        let ticks = ((elapsed.magnitude() * ratio * host_khz * 1000u32) >> frac_bits) / NSEC_PER_SEC;
        let is_back = elapsed.sign() == num_bigint::Sign::Minus;

        // No more than half the ring away from where it was, or from its record.
        let age = header.guest_tsc.wrapping_sub(header.record.tsc_timestamp);
        let half = BigUint::from(1u32) << 63;
        let reach = ticks < half && (is_back || &ticks + age <= half);
        let fits = u64::try_from(elapsed.magnitude()).is_ok();
        let expected = to_u64(ticks).filter(|_| fits && reach).map(|ticks| {
            header.guest_tsc.wrapping_add(if is_back { ticks.wrapping_neg() } else { ticks })
        });
        let planned = plan::plan(&request, vcpus[0].tsc_offset, &now, request.rate).ok().map(|plan| {
            let offset = vcpus[0].tsc_offset.wrapping_add(plan.offset_shift);
            Relation { scale, offset }.guest_tsc(now.host_tsc)
        });
        prop_assert_eq!(planned, expected);

        let mut forwards = request;
        forwards.allow_backwards = false;
        let refused = plan::plan(&forwards, vcpus[0].tsc_offset, &now, request.rate) == Err(plan::Refusal::Backwards);
        prop_assert_eq!(refused, is_back);
    }
}
