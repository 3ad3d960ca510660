// SPDX-License-Identifier: GPL-2.0-only

//! The documentation's definitions, with integers wide enough for every argument.

use kvm_clock_guest_selftests::{expect::ticks, prelude::*};

/// Half the ring of TSC values.
const HALF: f64 = 9_223_372_036_854_775_808.0;

/// A scaling ratio and its fraction bits; both 0 for none.
pub(crate) type Ratio = (u64, u32);

/// Whether the pair is a ratio.
pub(crate) fn is_ratio((ratio, frac_bits): Ratio) -> bool {
    (ratio, frac_bits) == (0, 0) || ratio != 0 && (1..64).contains(&frac_bits)
}

/// Whether a guest tick is as long as a host tick.
pub(crate) fn is_identity((ratio, frac_bits): Ratio) -> bool {
    ratio == 0 || u128::from(ratio) == 1 << frac_bits
}

/// Host ticks to guest ticks, mod 2^64.
pub(crate) fn scaled((ratio, frac_bits): Ratio, host_ticks: u64) -> u64 {
    match ratio {
        0 => host_ticks,
        // CAST: mod 2^64.
        _ => ((u128::from(host_ticks) * u128::from(ratio)) >> frac_bits) as u64,
    }
}

/// The guest's TSC at host TSC `host_tsc`.
pub(crate) fn guest_tsc(ratio: Ratio, host_tsc: HostTsc, offset: TscOffset) -> GuestTsc {
    GuestTsc(scaled(ratio, host_tsc.0).wrapping_add(offset.0))
}

/// The ratio of `header`.
pub(crate) fn ratio(header: &VmClockGuest) -> Ratio {
    (header.tsc_ratio, header.tsc_frac_bits)
}

/// The guest's TSC rate (Hz) of `header`, which has a valid ratio; at most `u64::MAX`.
pub(crate) fn hz(header: &VmClockGuest) -> u64 {
    let hz = u128::from(header.host_tsc_khz) * 1000;
    let hz = match ratio(header) {
        (0, _) => hz,
        (ratio, frac_bits) => (hz * u128::from(ratio)) >> frac_bits,
    };
    u64::try_from(hz).unwrap_or(u64::MAX)
}

/// The guest's TSC rate of `header`, kHz.
pub(crate) fn khz(header: &VmClockGuest) -> u64 {
    scaled(ratio(header), header.host_tsc_khz.into())
}

/// How far rate `b` (Hz) is from `a`, in millionths of `a`.
pub(crate) fn ppm(a: u64, b: u64) -> f64 {
    // CAST: more exact than needed.
    a.abs_diff(b) as f64 * 1e6 / a as f64
}

/// Whether a TSC value that many `ticks` (mod 2^64) after another lies ahead of it.
pub(crate) fn is_ahead(ticks: u64) -> bool {
    (1..1 << 63).contains(&ticks)
}

/// kvmclock (ns, mod 2^64) that a guest computes from `record` at TSC `tsc`, as documented.
pub(crate) fn reads(record: &ClockGuest, tsc: GuestTsc) -> u64 {
    let ticks = u128::from(tsc.since(record.tsc_timestamp));
    let bits = u32::from(record.tsc_shift.unsigned_abs());
    let shifted = match record.tsc_shift {
        ..0 => ticks.checked_shr(bits).unwrap_or(0),
        // CAST: a guest shifts within 64 bits.
        _ => u128::from(ticks.checked_shl(bits).unwrap_or(0) as u64),
    };
    // CAST: mod 2^64.
    let ns = ((shifted * u128::from(record.tsc_to_system_mul)) >> 32) as u64;
    record.system_time.wrapping_add(ns)
}

/// Guest ticks in `ns` at the rate of `header`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ticks {
    /// This number.
    Of(i128),
    /// Clearly 2^63 or more, or less than -2^63.
    TooMany,
    /// Too close to that limit to say.
    Nearly,
}

/// How many guest ticks there are in `ns`.
pub(crate) fn ticks_in(header: &VmClockGuest, ns: i128) -> Ticks {
    let factor = match ratio(header) {
        (0, _) => 1.0,
        // CAST: only the magnitude matters.
        (ratio, frac_bits) => ratio as f64 / f64::from(frac_bits).exp2(),
    };
    let estimate = ns.unsigned_abs() as f64 * f64::from(header.host_tsc_khz) / 1e6 * factor;
    match estimate / HALF {
        ..0.999 => Ticks::Of(ticks(header, ns)),
        0.999..1.001 => Ticks::Nearly,
        _ => Ticks::TooMany,
    }
}
