// SPDX-License-Identifier: GPL-2.0-only

//! TSC and pvclock arithmetic with integers that have no width.

use num_bigint::{BigInt, BigUint};
use pvclock::{
    abi::{ClockGuest, VmClockGuest},
    counter::{GuestTsc, HostTsc, TscOffset},
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
pub fn kvmclock_ns(record: &ClockGuest, tsc: GuestTsc) -> u64 {
    let ticks = BigUint::from(tsc.0.wrapping_sub(record.tsc_timestamp.0));
    let shift = i32::from(record.tsc_shift);
    let shifted = if shift < 0 {
        ticks >> -shift
    } else {
        (ticks << shift) % (BigUint::from(1u32) << 64)
    };
    let ns = low_64(&((shifted * record.tsc_to_system_mul) >> 32));
    record.system_time.wrapping_add(ns)
}

/// The same for a guest TSC on either side of the record's timestamp, with ticks of any width.
/// `shift` must be in -31..=31.
pub fn extended_kvmclock_ns(record: &ClockGuest, tsc: GuestTsc) -> u64 {
    // CAST: the sign of a difference mod 2^64 is the order.
    let ticks = BigInt::from(tsc.since(record.tsc_timestamp) as i64);
    // A right shift rounds down, also below 0.
    let shifted = (ticks << 31) >> (31 - i32::from(record.tsc_shift));
    let ns: BigInt = (shifted * record.tsc_to_system_mul) >> 32;
    let ring = BigInt::from(1) << 64;
    let sum: BigInt = ns % &ring + &ring + record.system_time;
    low_64(sum.magnitude())
}

/// Whether a TSC value that many `ticks` (mod 2^64) after another lies ahead of it. Half the ring
/// counts as behind.
pub fn is_ahead(ticks: u64) -> bool {
    (1..1 << 63).contains(&ticks)
}

/// Host ticks to guest ticks, mod 2^64.
pub fn scaled(scale: Scale, ticks: u64) -> u64 {
    let (ratio, frac_bits) = fraction(scale);
    low_64(&((ratio * ticks) >> frac_bits))
}

/// The guest TSC at host TSC `host_tsc`.
pub fn guest_tsc(scale: Scale, offset: TscOffset, host_tsc: HostTsc) -> GuestTsc {
    GuestTsc(scaled(scale, host_tsc.0).wrapping_add(offset.0))
}

/// Guest ticks in `ns`, rounded down; `None` if they exceed 64 bits.
pub fn ticks(rate: GuestRate, ns: u64) -> Option<u64> {
    let (ratio, frac_bits) = fraction(rate.scale);
    to_u64(((ratio * ns * rate.host_khz * 1000u32) >> frac_bits) / NSEC_PER_SEC)
}

/// Guest ticks in `ns`, rounded towards 0; `None` for 2^63 or more, in either direction.
pub fn signed_ticks(rate: GuestRate, ns: i128) -> Option<i64> {
    let ticks = ticks(rate, u64::try_from(ns.unsigned_abs()).ok()?)?;
    let ticks = i64::try_from(ticks).ok()?;
    Some(if ns < 0 { -ticks } else { ticks })
}

/// The rate that a pvclock factor is for, kHz, rounded down; `None` if it is none or exceeds 64
/// bits.
pub fn implied_khz(factor: Factor) -> Option<u64> {
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
pub fn is_close(factor: Factor, hz: u64, ppm: u32) -> bool {
    if factor.mul == 0 {
        return false;
    }
    // 10^9 * 2^32 / (mul * 2^shift), a fraction, by the common denominator.
    let denominator = BigInt::from(factor.mul) << (32 + i32::from(factor.shift));
    let implied = BigInt::from(NSEC_PER_SEC) << 64;
    let diff: BigInt = implied - &denominator * hz;
    diff.magnitude() * 1_000_000u32 <= denominator.magnitude() * hz * ppm
}

/// The factor that KVM gives a guest of `hz` Hz; `None` for a rate of 0.
pub fn factor_of_hz(hz: u64) -> Option<Factor> {
    if hz == 0 {
        return None;
    }
    let (mut ticks, mut shift) = (hz, 0);
    // Shifted into (10^9, 2 * 10^9], a bit at a time as KVM does: each loses the lowest one.
    while ticks > 2 * NSEC_PER_SEC {
        (ticks, shift) = (ticks / 2, shift - 1);
    }
    while ticks <= NSEC_PER_SEC {
        (ticks, shift) = (ticks * 2, shift + 1);
    }
    let mul = u32::try_from((BigUint::from(NSEC_PER_SEC) << 32) / ticks).ok()?;
    Some(Factor { mul, shift })
}

/// The guest's TSC rate in whole Hz, at most `u64::MAX`.
pub fn hz(rate: GuestRate) -> u64 {
    ticks(rate, NSEC_PER_SEC).unwrap_or(u64::MAX)
}

/// The factor that KVM gives a guest of this rate, of whole kHz and at least 1; `None` if these
/// exceed 64 bits as Hz.
pub fn own_factor(rate: GuestRate) -> Option<Factor> {
    let khz = scaled(rate.scale, rate.host_khz.into()).max(1);
    khz.checked_mul(1000).and_then(factor_of_hz)
}

/// The factor of a TSC of this rate, from whole Hz; `None` below 1 Hz, or where a rate in whole kHz
/// exceeds 64 bits as Hz.
pub fn exact_factor(rate: GuestRate) -> Option<Factor> {
    own_factor(rate).and(factor_of_hz(hz(rate)))
}

/// Whether a record with `factor` is for a TSC of this rate: KVM's own, or within `ppm` parts per
/// million.
pub fn is_accepted(factor: Factor, rate: GuestRate, ppm: u32) -> bool {
    own_factor(rate) == Some(factor) || is_close(factor, hz(rate), ppm)
}

/// How far an instant that was read in `read_window` ticks of `khz` kHz may be off, ns, saturating.
pub fn precision_ns(read_window: u64, khz: u32) -> u32 {
    let ticks = (BigUint::from(read_window) + 1u32) / 2u32;
    let ns = (ticks * 1_000_000u32 + khz - 1u32) / khz;
    u32::try_from(ns).unwrap_or(u32::MAX)
}

/// The fewest ticks, of those that are a power of 2, in which the time of `record` is a whole
/// number of ns and its shift drops no bit. `mul` must not be 0, nor `shift` outside -31..=31.
pub fn exact_step(record: &ClockGuest) -> u64 {
    let ns = BigUint::from(record.tsc_to_system_mul);
    let is_whole = |bits: &i32| {
        let shifted = bits + i32::from(record.tsc_shift);
        shifted >= 0 && (&ns << shifted).trailing_zeros() >= Some(32)
    };
    1 << (0..64).find(is_whole).expect("64 bits are enough")
}

/// By how much kvmclock may be behind the record's exact value, in whole ns: a fraction of a ns is
/// dropped, and before it the ticks that a shift to the right drops.
pub fn rounding_ns(record: &ClockGuest) -> u32 {
    1 + u32::from(record.tsc_shift < 0)
}

/// `record`, or if it lies ahead of `tsc`, the same function from the last point that does not, a
/// whole number of [exact steps](exact_step) back.
pub fn not_ahead_of(record: &ClockGuest, tsc: GuestTsc) -> ClockGuest {
    let ahead = record.tsc_timestamp.since(tsc);
    if !is_ahead(ahead) {
        return *record;
    }
    let step = exact_step(record);
    let ticks = ahead.div_ceil(step).wrapping_mul(step);
    let tsc_timestamp = record.tsc_timestamp.wrapping_sub(ticks);
    ClockGuest {
        tsc_timestamp,
        system_time: extended_kvmclock_ns(record, tsc_timestamp),
        ..*record
    }
}

/// Whether there is no room to move `record`, which lies `ahead` ticks ahead, back behind that: as
/// many ticks, shifted, have more than 63 bits.
pub fn is_stuck(record: &ClockGuest, ahead: u64) -> bool {
    let step = u128::from(exact_step(record));
    let ticks = u128::from(ahead).div_ceil(step) * step;
    record.tsc_shift > 0 && (ticks << record.tsc_shift) >= 1 << 63
}

/// How much later than `record.tsc_timestamp` both it and `moved` can be read, its timestamp being
/// the earlier one: ticks, not included.
pub fn common_reach(record: &ClockGuest, moved: &ClockGuest) -> u128 {
    let ticks = record.tsc_timestamp.0.wrapping_sub(moved.tsc_timestamp.0);
    let left = u32::try_from(record.tsc_shift).unwrap_or(0);
    (1u128 << (64 - left)) - u128::from(ticks)
}

/// Time from the anchor of `saved` to `now`, ns: in TAI, or in UTC if one host does not know TAI.
pub fn elapsed_ns(saved: &VmClockGuest, now: &ClockSnapshot) -> i128 {
    let mut elapsed = BigInt::from(now.tai_ns) - saved.tai_ns;
    if (saved.tai_offset_s < 10) != (now.tai_offset_s < 10) {
        elapsed -= (BigInt::from(now.tai_offset_s) - saved.tai_offset_s) * NSEC_PER_SEC;
    }
    i128::try_from(elapsed).expect("it has 66 bits at most")
}

/// The guest TSC, `elapsed` ns after the anchor of `saved`; `None` if that is half the ring or more
/// away from where it was or from its record.
pub fn advanced(saved: &VmClockGuest, elapsed: i128, rate: GuestRate) -> Option<GuestTsc> {
    let ticks = signed_ticks(rate, elapsed)?;
    let age = saved.guest_tsc.since(saved.record.tsc_timestamp);
    let is_near = ticks < 0 || u128::from(ticks.unsigned_abs()) + u128::from(age) <= 1 << 63;
    // CAST: mod 2^64.
    is_near.then(|| saved.guest_tsc.wrapping_add(ticks as u64))
}
