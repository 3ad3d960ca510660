// SPDX-License-Identifier: GPL-2.0-only

//! Compares every function of `rust/pvclock` with integers that have no width.

use crate::input;
use pvclock::{
    abi::ClockGuest,
    counter::{GuestTsc, HostTsc, TscOffset},
    plan::ClockSnapshot,
    rate::{Factor, GuestRate},
    tsc::TscTransform,
};
use pvclock_reference::arithmetic as reference;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The layout of an input.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Input {
    record: ClockGuest,
    tsc: GuestTsc,
    other_tsc: HostTsc,
    offset_diff: u64,
    ns: u64,
    /// Hz, or kHz.
    khz: u64,
    ratio: u64,
    frac_bits: u32,
    host_khz: u32,
}

/// The target: calls each function once.
///
/// # Panics
///
/// If a result is wrong.
pub fn arithmetic(bytes: &[u8]) {
    let (input, _): (Input, _) = input::take(bytes);
    functions_of_time(&input);
    rates(&input);
    moved(
        &input::valid(input.record),
        input.tsc,
        &[input.other_tsc.0, input.ns, input.khz, 0],
    );
}

fn functions_of_time(input: &Input) {
    let (record, tsc) = (input.record, input.tsc);
    // Defined for any record, also for one that SET refuses.
    let kvmclock_ns = record.kvmclock_ns(tsc);
    assert_eq!(
        kvmclock_ns,
        reference::kvmclock_ns(&record, tsc),
        "{record:x?}"
    );
    let shifted = record.shifted_by(input.offset_diff);
    assert_eq!(
        shifted.kvmclock_ns(tsc.wrapping_add(input.offset_diff)),
        kvmclock_ns
    );

    let scale = input::scale(input.ratio, input.frac_bits);
    assert_eq!(
        scale.apply(tsc.0),
        reference::scaled(scale, tsc.0),
        "{scale:x?}"
    );
    let transform = TscTransform::through(scale, input.other_tsc, tsc);
    assert_eq!(transform.guest_tsc(input.other_tsc), tsc);
    assert_eq!(
        transform.offset,
        TscOffset((tsc.0).wrapping_sub(reference::scaled(scale, input.other_tsc.0)))
    );
}

fn rates(input: &Input) {
    let rate = GuestRate {
        host_khz: input.host_khz,
        scale: input::scale(input.ratio, input.frac_bits),
    };
    assert_eq!(rate.ticks(input.ns), reference::ticks(rate, input.ns));
    assert_eq!(rate.hz(), reference::hz(rate));

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

    let hz = input.khz;
    assert_eq!(Factor::of_hz(hz), reference::factor_of_hz(hz), "{hz} Hz");
    let record = input::valid(input.record);
    let factor = Factor {
        mul: record.tsc_to_system_mul,
        shift: record.tsc_shift,
    };
    assert_eq!(record.factor(), factor);
    let implied_khz = reference::implied_khz(factor);
    assert_eq!(factor.khz(), implied_khz);
    let implied_hz = implied_khz.and_then(|khz| khz.checked_mul(1000));
    for hz in [input.khz, rate.hz(), implied_hz.unwrap_or(0)] {
        let is_close = reference::is_close(factor, hz, ppm);
        assert_eq!(
            factor.is_close_to(hz, ppm),
            is_close,
            "{factor:?}, {hz} Hz, {ppm} ppm"
        );
    }
    assert_eq!(rate.factor(), reference::own_factor(rate));
    let is_accepted = reference::is_accepted(factor, rate, ppm);
    assert_eq!(rate.accepts(factor, ppm), is_accepted);

    let instant = ClockSnapshot {
        read_window: input.ns,
        ..ClockSnapshot::default()
    };
    let khz = input.host_khz.max(1);
    assert_eq!(
        instant.precision_ns(khz),
        reference::precision_ns(input.ns, khz)
    );
}

/// Panics unless `record`, moved so that it is not ahead of `tsc`, reads the same at its timestamp
/// and `later` (ticks).
pub(crate) fn moved(record: &ClockGuest, tsc: GuestTsc, later: &[u64]) {
    let step = reference::exact_step(record);
    assert_eq!(1 << record.exact_step_log2(), step, "{record:x?}");
    let ahead = record.tsc_timestamp.since(tsc);
    let Some(moved) = record.not_ahead_of(tsc) else {
        assert!(
            reference::is_stuck(record, ahead),
            "{record:x?} at {tsc:#x}"
        );
        return;
    };
    assert!(!moved.tsc_timestamp.is_ahead_of(tsc));
    if !record.tsc_timestamp.is_ahead_of(tsc) {
        assert_eq!(moved, *record);
        return;
    }
    let reach = reference::common_reach(record, &moved);
    for &ticks in later {
        let ticks = u64::try_from(u128::from(ticks) % reach)
            .expect("the remainder is no more than `ticks`");
        let tsc = record.tsc_timestamp.wrapping_add(ticks);
        assert_eq!(
            reference::kvmclock_ns(&moved, tsc),
            reference::kvmclock_ns(record, tsc),
            "{record:x?} became {moved:x?}"
        );
    }
}
