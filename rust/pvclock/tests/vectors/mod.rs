// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR BSD-3-Clause

//! Runs the vectors: in the kernel (KUnit, `kvm_clock_guest/tests.rs`), and on the host
//! (`big_integers.rs`).
//!
//! The parent brings the crate's modules into scope. Nothing here panics: each table returns the
//! index of the first wrong row.

mod rows;

use super::{
    abi::{self, ClockGuest, VmClockGuest},
    counter::{GuestTsc, HostTsc, TscOffset},
    plan::{plan, ClockSnapshot, PlanError},
    rate::{Factor, GuestRate},
    request::SetRequest,
    tsc::{Scale, TscTransform},
};

/// A table's name, and the function that finds its first wrong row.
pub(crate) type Table = (&'static str, fn() -> Option<usize>);

/// All of them.
pub(crate) const TABLES: &[Table] = &[
    ("kvmclock", kvmclock),
    ("not_ahead", not_ahead),
    ("transform", transform),
    ("ticks", ticks),
    ("factor", factor),
    ("implied", implied),
    ("close", close),
    ("advance", advance),
    ("rate", rate),
    ("accepted", accepted),
    ("reslope", reslope),
    ("precision", precision),
];

fn record(tsc_timestamp: u64, system_time: u64, mul: u32, shift: i8) -> ClockGuest {
    ClockGuest {
        tsc_timestamp: GuestTsc(tsc_timestamp),
        system_time,
        tsc_to_system_mul: mul,
        tsc_shift: shift,
        ..Default::default()
    }
}

fn kvmclock() -> Option<usize> {
    rows::KVMCLOCK
        .iter()
        .position(|&(tsc_timestamp, system_time, mul, shift, tsc, ns)| {
            let record = record(tsc_timestamp, system_time, mul, shift);
            let tsc = GuestTsc(tsc);
            // Any difference of offsets is right here.
            let other = record.shifted_by(ns);
            record.kvmclock_ns(tsc) != ns || other.kvmclock_ns(tsc.wrapping_add(ns)) != ns
        })
}

fn not_ahead() -> Option<usize> {
    rows::NOT_AHEAD
        .iter()
        .position(|&(tsc_timestamp, system_time, mul, shift, tsc, moved)| {
            let expected = moved
                .map(|(tsc_timestamp, system_time)| record(tsc_timestamp, system_time, mul, shift));
            record(tsc_timestamp, system_time, mul, shift).not_ahead_of(GuestTsc(tsc)) != expected
        })
}

fn transform() -> Option<usize> {
    rows::TRANSFORM
        .iter()
        .position(|&(ratio, frac_bits, host, guest, offset, other, there)| {
            let Some(scale) = Scale::new(ratio, frac_bits) else {
                return true;
            };
            let transform = TscTransform::through(scale, HostTsc(host), GuestTsc(guest));
            transform.offset != TscOffset(offset)
                || transform.guest_tsc(HostTsc(other)) != GuestTsc(there)
        })
}

fn ticks() -> Option<usize> {
    rows::TICKS
        .iter()
        .position(|&(host_khz, ratio, frac_bits, ns, ticks)| {
            guest_rate(host_khz, ratio, frac_bits).is_none_or(|rate| rate.ticks(ns) != ticks)
        })
}

fn factor() -> Option<usize> {
    rows::FACTOR.iter().position(|&(hz, factor, implied)| {
        let factor = factor.map(|(mul, shift)| Factor { mul, shift });
        Factor::of_hz(hz) != factor || factor.and_then(Factor::khz) != implied
    })
}

fn implied() -> Option<usize> {
    rows::IMPLIED
        .iter()
        .position(|&(mul, shift, khz)| Factor { mul, shift }.khz() != khz)
}

fn close() -> Option<usize> {
    rows::CLOSE
        .iter()
        .position(|&(mul, shift, hz, ppm, is_close)| {
            Factor { mul, shift }.is_close_to(hz, ppm) != is_close
        })
}

fn advance() -> Option<usize> {
    /// Guest TSC and host TSC from which the ticks count.
    const SAVED_TSC: u64 = 0xfedc_ba98_7654_3210;
    const NOW_TSC: HostTsc = HostTsc(987_654_321);
    const OFFSET: TscOffset = TscOffset(0x8000_0000_0000_0001);

    let wrong = |row: &rows::AdvanceRow| {
        let &(saved_tai, saved_offset, now_tai, now_offset, khz, ratio, frac_bits, expected) = row;
        let saved = VmClockGuest {
            mode: abi::MODE_ADVANCE,
            // Most rows have another rate than the record.
            flags: abi::FLAG_ALLOW_BACKWARDS | abi::FLAG_RESLOPE,
            guest_tsc: GuestTsc(SAVED_TSC),
            tai_ns: saved_tai,
            tai_offset_s: saved_offset,
            host_tsc_khz: khz,
            tsc_ratio: ratio,
            tsc_frac_bits: frac_bits,
            record: record(SAVED_TSC, 0, 1 << 31, 0),
            ..Default::default()
        };
        let now = ClockSnapshot {
            host_tsc: NOW_TSC,
            tai_ns: now_tai,
            tai_offset_s: now_offset,
            ..Default::default()
        };
        let Ok(request) = SetRequest::new(saved) else {
            return true;
        };
        let scale = request.rate.scale;
        // Without the flag, the plan fails for going backwards only.
        let mut forwards = request;
        forwards.allow_backwards = false;
        let forwards = plan(&forwards, OFFSET, &now, request.rate, 0);

        match plan(&request, OFFSET, &now, request.rate, 0) {
            Ok(plan) => {
                let transform = TscTransform {
                    scale,
                    offset: OFFSET.wrapping_add(plan.offset_shift),
                };
                let ticks = transform.guest_tsc(NOW_TSC).since(saved.guest_tsc);
                Some(ticks) != expected
                    || forwards.is_ok_and(|forwards| forwards != plan)
                    || forwards.is_err_and(|error| error != PlanError::Backwards)
            }
            Err(error) => error != PlanError::Unrepresentable || expected.is_some(),
        }
    };
    rows::ADVANCE.iter().position(wrong)
}

/// The rate of a row; `None` if its ratio is none.
fn guest_rate(host_khz: u32, ratio: u64, frac_bits: u32) -> Option<GuestRate> {
    Scale::new(ratio, frac_bits).map(|scale| GuestRate { host_khz, scale })
}

fn rate() -> Option<usize> {
    rows::RATE
        .iter()
        .position(|&(khz, ratio, frac_bits, hz, factor)| {
            let factor = factor.map(|(mul, shift)| Factor { mul, shift });
            guest_rate(khz, ratio, frac_bits)
                .is_none_or(|rate| rate.hz() != hz || rate.factor() != factor)
        })
}

fn accepted() -> Option<usize> {
    rows::ACCEPTED
        .iter()
        .position(|&(khz, ratio, frac_bits, (mul, shift), ppm, is_accepted)| {
            guest_rate(khz, ratio, frac_bits)
                .is_none_or(|rate| rate.accepts(Factor { mul, shift }, ppm) != is_accepted)
        })
}

fn reslope() -> Option<usize> {
    const HOST_TSC: HostTsc = HostTsc(1_000_000_007);
    const TAI_NS: i64 = 1_795_000_000_000_000_000;

    let wrong = |row: &rows::ReslopeRow| {
        let &(mode, khz_there, khz_here, ratio, frac_bits, (mul_there, shift_there), ..) = row;
        let &(.., guest_tsc, kvmclock_ns, elapsed_ns, expected) = row;
        let saved = VmClockGuest {
            mode,
            flags: abi::FLAG_ALLOW_BACKWARDS | abi::FLAG_ALLOW_RATE_MISMATCH | abi::FLAG_RESLOPE,
            host_tsc: HOST_TSC,
            guest_tsc: GuestTsc(guest_tsc),
            kvmclock_ns,
            tai_ns: TAI_NS,
            host_tsc_khz: khz_there,
            tsc_ratio: ratio,
            tsc_frac_bits: frac_bits,
            record: record(guest_tsc, kvmclock_ns, mul_there, shift_there),
            precision_ns: 7,
            ..Default::default()
        };
        let now = ClockSnapshot {
            host_tsc: HOST_TSC,
            tai_ns: TAI_NS.wrapping_add(elapsed_ns),
            ..Default::default()
        };
        let Ok(request) = SetRequest::new(saved) else {
            return true;
        };
        let here = GuestRate {
            host_khz: khz_here,
            scale: request.rate.scale,
        };
        let offset = TscTransform::through(here.scale, HOST_TSC, saved.guest_tsc).offset;
        let planned = plan(&request, offset, &now, here, 0);
        let Some((tsc_timestamp, system_time, mul, shift)) = expected else {
            return planned != Err(PlanError::RecordRate);
        };
        let expected = record(tsc_timestamp, system_time, mul, shift);
        let is_same = expected.factor() == saved.record.factor();
        let rounding_ns = if is_same {
            0
        } else {
            1 + u32::from(shift_there < 0)
        };
        planned.map_or(true, |plan| {
            plan.record != expected || plan.precision_ns != 7 + rounding_ns
        })
    };
    rows::RESLOPE.iter().position(wrong)
}

fn precision() -> Option<usize> {
    rows::PRECISION.iter().position(|&(read_window, khz, ns)| {
        let instant = ClockSnapshot {
            read_window,
            ..Default::default()
        };
        instant.precision_ns(khz) != ns
    })
}
