// SPDX-License-Identifier: GPL-2.0-only

//! Every function of `rust/pvclock` against integers that have no width.

use crate::{input, oracle};
use pvclock::{
    abi::ClockGuest,
    plan::ClockSnapshot,
    rate::{Factor, GuestRate},
    tsc::{is_ahead, TscTransform},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What an input says.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Input {
    record: ClockGuest,
    tsc: u64,
    other_tsc: u64,
    offset_diff: u64,
    ns: u64,
    /// Hz, or kHz.
    khz: u64,
    ratio: u64,
    frac_bits: u32,
    host_khz: u32,
}

/// The target: each function once.
///
/// # Panics
///
/// If one is wrong.
pub fn arithmetic(bytes: &[u8]) {
    let (input, _): (Input, _) = input::take(bytes);
    functions_of_time(&input);
    rates(&input);
    moved(
        &input::sound(input.record),
        input.tsc,
        &[input.other_tsc, input.ns, input.khz, 0],
    );
}

fn functions_of_time(input: &Input) {
    let (record, tsc) = (input.record, input.tsc);
    // Of any record, whether SET takes it or not.
    let kvmclock_ns = record.kvmclock_ns(tsc);
    assert_eq!(
        kvmclock_ns,
        oracle::kvmclock_ns(&record, tsc),
        "{record:x?}"
    );
    let shifted = record.shifted_by(input.offset_diff);
    assert_eq!(
        shifted.kvmclock_ns(tsc.wrapping_add(input.offset_diff)),
        kvmclock_ns
    );

    let scale = input::scale(input.ratio, input.frac_bits);
    assert_eq!(scale.apply(tsc), oracle::scaled(scale, tsc), "{scale:x?}");
    let transform = TscTransform::through(scale, input.other_tsc, tsc);
    assert_eq!(transform.guest_tsc(input.other_tsc), tsc);
    assert_eq!(
        transform.offset,
        tsc.wrapping_sub(oracle::scaled(scale, input.other_tsc))
    );
}

fn rates(input: &Input) {
    let rate = GuestRate {
        host_khz: input.host_khz,
        scale: input::scale(input.ratio, input.frac_bits),
    };
    assert_eq!(rate.ticks(input.ns), oracle::ticks(rate, input.ns));
    let hz = oracle::ticks(rate, 1_000_000_000).unwrap_or(u64::MAX);
    assert_eq!(rate.hz(), hz);

    let other = GuestRate {
        // CAST: any other number.
        host_khz: input.khz as u32,
        ..rate
    };
    let diff = i128::from(rate.hz()) - i128::from(other.hz());
    let magnitude = i64::try_from(diff.unsigned_abs()).unwrap_or(i64::MAX);
    assert_eq!(
        rate.diff_hz(other),
        if diff < 0 { -magnitude } else { magnitude }
    );
    // CAST: any tolerance.
    let ppm = input.frac_bits.rotate_left(16) ^ input.ns as u32;
    assert_eq!(
        rate.is_close_to(other, ppm),
        diff.unsigned_abs() * 1_000_000 <= u128::from(rate.hz()) * u128::from(ppm)
    );

    let factor = Factor::of_hz(input.khz);
    assert!(
        oracle::is_factor_of(factor, input.khz),
        "{} Hz: {factor:?}",
        input.khz
    );
    let record = input::sound(input.record);
    let factor = Factor {
        mul: record.tsc_to_system_mul,
        shift: record.tsc_shift,
    };
    assert_eq!(record.factor(), factor);
    let implied_khz = oracle::implied_khz(factor);
    assert_eq!(factor.khz(), implied_khz);
    let implied_hz = implied_khz.and_then(|khz| khz.checked_mul(1000));
    for hz in [input.khz, rate.hz(), implied_hz.unwrap_or(0)] {
        let is_close = oracle::is_close(factor, hz, ppm);
        assert_eq!(
            factor.is_close_to(hz, ppm),
            is_close,
            "{factor:?}, {hz} Hz, {ppm} ppm"
        );
    }
    let own = oracle::own_factor(rate);
    assert_eq!(rate.factor(), own);
    let accepted = own == Some(factor) || oracle::is_close(factor, rate.hz(), ppm);
    assert_eq!(rate.accepts(factor, ppm), accepted);

    let instant = ClockSnapshot {
        read_window: input.ns,
        ..ClockSnapshot::default()
    };
    let khz = input.host_khz.max(1);
    assert_eq!(
        instant.precision_ns(khz),
        oracle::precision_ns(input.ns, khz)
    );
}

/// Fails unless `record` that `tsc` went back behind reads the same at its timestamp and `later`, ticks,
/// and is not ahead.
pub(crate) fn moved(record: &ClockGuest, tsc: u64, later: &[u64]) {
    let ahead = record.tsc_timestamp.wrapping_sub(tsc);
    let Some(moved) = record.not_ahead_of(tsc) else {
        assert!(oracle::is_stuck(record, ahead), "{record:x?} at {tsc:#x}");
        return;
    };
    assert!(!is_ahead(moved.tsc_timestamp, tsc));
    if !is_ahead(record.tsc_timestamp, tsc) {
        assert_eq!(moved, *record);
        return;
    }
    let reach = oracle::common_reach(record, &moved);
    for &ticks in later {
        let ticks = u64::try_from(u128::from(ticks) % reach).expect("it is no more than `ticks`");
        let tsc = record.tsc_timestamp.wrapping_add(ticks);
        assert_eq!(
            oracle::kvmclock_ns(&moved, tsc),
            oracle::kvmclock_ns(record, tsc),
            "{record:x?} became {moved:x?}"
        );
    }
}
