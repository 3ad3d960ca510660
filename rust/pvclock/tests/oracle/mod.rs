// SPDX-License-Identifier: GPL-2.0-only

//! The arithmetic once more, with integers that have no width: what the crate's results are
//! compared with, by `big_integers.rs` and by `tools/fuzz`.

use num_bigint::{BigInt, BigUint, Sign};
use pvclock::{
    abi::{ClockGuest, VmClockGuest},
    plan::ClockSnapshot,
    rate::{Factor, GuestRate},
    tsc::Scale,
};

const NSEC_PER_SEC: u64 = 1_000_000_000;

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

/// kvmclock (ns) at guest TSC `tsc`, with the shifted ticks as 64 bits; no other width.
pub(crate) fn kvmclock_ns(record: &ClockGuest, tsc: u64) -> u64 {
    let ticks = BigUint::from(tsc.wrapping_sub(record.tsc_timestamp));
    let shift = i32::from(record.tsc_shift);
    let shifted = if shift < 0 {
        ticks >> -shift
    } else {
        (ticks << shift) % (BigUint::from(1u32) << 64)
    };
    let ns = low_64(&((shifted * record.tsc_to_system_mul) >> 32));
    record.system_time.wrapping_add(ns)
}

/// Host ticks to guest ticks, mod 2^64.
pub(crate) fn scaled(scale: Scale, ticks: u64) -> u64 {
    let (ratio, frac_bits) = fraction(scale);
    low_64(&((ratio * ticks) >> frac_bits))
}

/// Guest ticks in `ns`, rounded down, however many they are.
pub(crate) fn all_ticks(rate: GuestRate, ns: &BigUint) -> BigUint {
    let (ratio, frac_bits) = fraction(rate.scale);
    ((ns * ratio * rate.host_khz * 1000u32) >> frac_bits) / NSEC_PER_SEC
}

/// Guest ticks in `ns`, rounded down; `None` if they exceed 64 bits.
pub(crate) fn ticks(rate: GuestRate, ns: u64) -> Option<u64> {
    to_u64(all_ticks(rate, &ns.into()))
}

/// The rate that a pvclock factor is for, kHz, rounded down; `None` if it is none or exceeds 64
/// bits.
pub(crate) fn implied_khz(factor: Factor) -> Option<u64> {
    let bits = u32::from(factor.shift.unsigned_abs());
    let (up, down) = if factor.shift < 0 {
        (bits, 0)
    } else {
        (0, bits)
    };
    (factor.mul != 0)
        .then(|| (BigUint::from(1_000_000u32) << (32 + up)) / (BigUint::from(factor.mul) << down))
        .and_then(to_u64)
}

/// Whether the rate that `factor` is for is within `ppm` parts per million of `hz`.
pub(crate) fn is_close(factor: Factor, hz: u64, ppm: u32) -> bool {
    if factor.mul == 0 {
        return false;
    }
    // 10^9 * 2^32 / (mul * 2^shift), a fraction, by the common denominator.
    let denominator = BigInt::from(factor.mul) << (32 + i32::from(factor.shift));
    let implied = BigInt::from(NSEC_PER_SEC) << 64;
    let diff: BigInt = implied - &denominator * hz;
    diff.magnitude() * 1_000_000u32 <= denominator.magnitude() * hz * ppm
}

/// Whether `factor` is what KVM gives a guest of `hz` Hz.
pub(crate) fn is_factor_of(factor: Option<Factor>, hz: u64) -> bool {
    let Some(Factor { mul, shift }) = factor else {
        return hz == 0;
    };
    // Shifted into (10^9, 2 * 10^9]: by how much, and the bits that this loses, are KVM's choice.
    let ticks = if shift < 0 { hz >> -shift } else { hz << shift };
    let overshot = shift <= 0 && ticks == 2 * NSEC_PER_SEC + 1;
    let quotient = (BigUint::from(NSEC_PER_SEC) << 32) / ticks.min(2 * NSEC_PER_SEC);
    (overshot || (NSEC_PER_SEC + 1..=2 * NSEC_PER_SEC).contains(&ticks))
        && BigUint::from(mul) == quotient
}

/// The factor that KVM gives a guest of this rate, of whole kHz and at least 1; `None` if these exceed
/// 64 bits as Hz.
pub(crate) fn own_factor(rate: GuestRate) -> Option<Factor> {
    let hz = scaled(rate.scale, rate.host_khz.into())
        .max(1)
        .checked_mul(1000)?;
    let factor = Factor::of_hz(hz);
    assert!(is_factor_of(factor, hz), "{hz} Hz: {factor:?}");
    factor
}

/// The factor of a TSC of this rate, from whole Hz; `None` below 1 Hz, or where a rate in whole kHz
/// exceeds 64 bits as Hz.
pub(crate) fn exact_factor(rate: GuestRate) -> Option<Factor> {
    own_factor(rate)?;
    let hz = ticks(rate, 1_000_000_000).unwrap_or(u64::MAX);
    let factor = Factor::of_hz(hz);
    assert!(hz == 0 || is_factor_of(factor, hz), "{hz} Hz: {factor:?}");
    factor
}

/// How far an instant that was read in `read_window` ticks of `khz` kHz may be off, ns, saturating.
pub(crate) fn precision_ns(read_window: u64, khz: u32) -> u32 {
    let ticks = (BigUint::from(read_window) + 1u32) / 2u32;
    let ns = (ticks * 1_000_000u32 + khz - 1u32) / khz;
    u32::try_from(ns).unwrap_or(u32::MAX)
}

/// Whether there is no room to move `record`, which lies `ahead` ticks ahead, back behind that: as
/// many ticks, shifted, have more than 63 bits.
pub(crate) fn is_stuck(record: &ClockGuest, ahead: u64) -> bool {
    let step = BigUint::from(1u32) << record.exact_step_log2();
    let ticks = (ahead + &step - 1u32) / &step * step;
    record.tsc_shift > 0
        && (ticks << usize::from(record.tsc_shift.unsigned_abs())) >= BigUint::from(1u32) << 63
}

/// How much later than `record.tsc_timestamp` both it and `moved` can be read, its timestamp being
/// the earlier one: ticks, not included.
pub(crate) fn common_reach(record: &ClockGuest, moved: &ClockGuest) -> u128 {
    let ticks = record.tsc_timestamp.wrapping_sub(moved.tsc_timestamp);
    let left = u32::try_from(record.tsc_shift).unwrap_or(0);
    (1u128 << (64 - left)) - u128::from(ticks)
}

/// Time from the anchor of `saved` to `now`, ns: by TAI, or by UTC if one host does not know TAI.
pub(crate) fn elapsed_ns(saved: &VmClockGuest, now: &ClockSnapshot) -> BigInt {
    let mut elapsed = BigInt::from(now.tai_ns) - saved.tai_ns;
    if (saved.tai_offset_s < 10) != (now.tai_offset_s < 10) {
        elapsed -= (BigInt::from(now.tai_offset_s) - saved.tai_offset_s) * NSEC_PER_SEC;
    }
    elapsed
}

/// `ns` mod 2^64.
pub(crate) fn wrapped(ns: &BigInt) -> u64 {
    let low = low_64(ns.magnitude());
    if ns.sign() == Sign::Minus {
        low.wrapping_neg()
    } else {
        low
    }
}

/// The guest TSC, `elapsed` ns after the anchor of `saved`; `None` if that is half the ring or more
/// away from where it was or from its record.
pub(crate) fn advanced(saved: &VmClockGuest, elapsed: &BigInt, rate: GuestRate) -> Option<u64> {
    let ticks = all_ticks(rate, elapsed.magnitude());
    let is_back = elapsed.sign() == Sign::Minus;
    let age = saved.guest_tsc.wrapping_sub(saved.record.tsc_timestamp);
    let half = BigUint::from(1u32) << 63;
    let reach = ticks < half && (is_back || &ticks + age <= half);
    let fits = to_u64(elapsed.magnitude().clone()).is_some();
    to_u64(ticks).filter(|_| fits && reach).map(|ticks| {
        saved
            .guest_tsc
            .wrapping_add(if is_back { ticks.wrapping_neg() } else { ticks })
    })
}
