// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR BSD-3-Clause

//! From a validated request and this host's clock to what is to be written: pure arithmetic, done
//! before the first lock that a failure could not undo.

use super::{
    abi::{
        ClockGuest,
        VmClockGuest, //
    },
    counter::{
        HostTsc,
        TscOffset, //
    },
    rate::{
        Factor,
        GuestRate, //
    },
    request::{
        Mode,
        SetRequest, //
    },
    tsc::{
        Scale,
        TscTransform, //
    },
};

/// Nanoseconds per second.
const NSEC_PER_SEC: i128 = 1_000_000_000;

/// One instant of this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockSnapshot {
    /// Host TSC.
    pub host_tsc: HostTsc,
    /// `CLOCK_TAI`, ns.
    pub tai_ns: i64,
    /// TAI - UTC, s; see [`knows_tai`].
    pub tai_offset_s: i32,
    /// `CLOCK_MONOTONIC_RAW`, ns.
    pub monotonic_raw_ns: i64,
    /// Host TSC ticks between the two readings that `host_tsc` lies in the middle of, and the other
    /// clocks were read between; 0 if all was read as one.
    pub read_window: u64,
}

impl ClockSnapshot {
    /// How far `host_tsc` may be from the instant of the other clocks, ns, on a host of `host_khz`;
    /// saturating.
    pub fn precision_ns(&self, host_khz: u32) -> u32 {
        const NSEC_PER_MSEC: u64 = 1_000_000;
        let ticks = self.read_window.div_ceil(2);
        let ns = ticks
            .saturating_mul(NSEC_PER_MSEC)
            .div_ceil(u64::from(host_khz.max(1)));
        u32::try_from(ns).unwrap_or(u32::MAX)
    }
}

/// Why a well-formed request cannot be carried out here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The TSC rates differ by more than is tolerated: `ERANGE`.
    RateMismatch,
    /// The rate that the record implies differs by more than is tolerated from the guest's TSC rate
    /// here: `ERANGE`.
    RecordRate,
    /// Exact, but the anchor lies ahead of this host's TSC: `ESTALE`.
    Stale,
    /// Advance would move the guest backwards: `ETIME`.
    Backwards,
    /// The elapsed time takes the guest 2^63 ticks or more from where it was or from its record, or
    /// the record cannot reach as far back as the guest is to go: `EINVAL`.
    Unrepresentable,
}

/// What is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to add to every saved TSC offset, ticks mod 2^64.
    pub offset_shift: u64,
    /// Scaling ratio of every vCPU: the one it has, but for exact after another calibration.
    pub scale: Scale,
    /// The record of the reference vCPU: the saved one, to the bit, unless the guest is to go back
    /// behind its `tsc_timestamp`, or the request asks for this host's slope and it has another.
    pub record: ClockGuest,
    /// How far guest TSC or kvmclock may be from what they should be, ns, saturating.
    pub precision_ns: u32,
}

impl Plan {
    /// The precision, ns, saturating, where KVM could not pin the record: on a host of `host_khz`,
    /// whose kvmclock is `actual_ns` at `now`, for the vCPU whose TSC is `transform`.
    pub fn precision_unpinned_ns(
        &self,
        transform: TscTransform,
        now: &ClockSnapshot,
        actual_ns: u64,
        host_khz: u32,
    ) -> u32 {
        let expected_ns = self.record.kvmclock_ns(transform.guest_tsc(now.host_tsc));
        // CAST: the sign of the wrapped difference.
        let off_by_ns = (actual_ns.wrapping_sub(expected_ns) as i64).unsigned_abs();
        u32::try_from(off_by_ns)
            .unwrap_or(u32::MAX)
            .saturating_add(now.precision_ns(host_khz))
            .saturating_add(self.precision_ns)
    }
}

/// Whether a host whose TAI - UTC is `tai_offset_s` (s) knows what it is.
///
/// It has been 10 s or more since UTC has leap seconds, 1972. A host that does not know it counts
/// the leap seconds that it took from 0 on, and its `CLOCK_TAI` is UTC but for these.
pub const fn knows_tai(tai_offset_s: i32) -> bool {
    tai_offset_s >= 10
}

/// Guest TSC rate here minus the saved one, Hz, saturating.
pub fn rate_diff_hz(request: &SetRequest, here: GuestRate) -> i64 {
    here.diff_hz(request.rate)
}

/// What is to be written.
///
/// `ref_offset` is the saved offset of the reference vCPU, `now` an instant of this host
/// and `here` the guest's TSC rate on it. `tolerance_ppm` is the largest difference of two rates
/// that counts as none, in parts per million: KVM's module parameter `tsc_tolerance_ppm`.
///
/// # Errors
///
/// See [`PlanError`].
pub fn plan(
    request: &SetRequest,
    ref_offset: TscOffset,
    now: &ClockSnapshot,
    here: GuestRate,
    tolerance_ppm: u32,
) -> Result<Plan, PlanError> {
    let saved = &request.saved;
    let scale = match request.mode {
        Mode::Exact => exact_scale(request.rate.scale, here, tolerance_ppm),
        Mode::Advance | Mode::Freeze => request
            .rate
            .is_close_to(here, tolerance_ppm)
            .then_some(here.scale),
    };
    let scale = match scale {
        Some(scale) => scale,
        None if request.allow_rate_mismatch => here.scale,
        None => return Err(PlanError::RateMismatch),
    };
    let rate = GuestRate { scale, ..here };
    let other_factor = other_factor(request, rate, tolerance_ppm)?;

    let elapsed_ns = match request.mode {
        Mode::Exact if saved.host_tsc.is_ahead_of(now.host_tsc) => return Err(PlanError::Stale),
        Mode::Exact | Mode::Freeze => 0,
        Mode::Advance => allowed_elapsed_ns(request, now)?,
    };
    // The guest TSC at which kvmclock is what it was at the anchor, plus the elapsed time.
    let (offset_shift, guest_tsc) = match request.mode {
        Mode::Exact => {
            let transform = TscTransform {
                scale,
                offset: ref_offset,
            };
            (0, transform.guest_tsc(saved.host_tsc))
        }
        Mode::Advance | Mode::Freeze => {
            let ticks = elapsed_ticks(request.rate, elapsed_ns)?;
            // CAST: Ticks mod 2^64.
            let guest_tsc = saved.guest_tsc.wrapping_add(ticks as u64);
            // Beyond half the ring, forwards and backwards cannot be distinguished.
            if ticks > 0 && saved.record.tsc_timestamp.is_ahead_of(guest_tsc) {
                return Err(PlanError::Unrepresentable);
            }
            let transform = TscTransform::through(scale, now.host_tsc, guest_tsc);
            (transform.offset.since(ref_offset), guest_tsc)
        }
    };
    let record = match (other_factor, request.mode) {
        (Some(Factor { mul, shift }), _) => ClockGuest {
            tsc_timestamp: guest_tsc,
            // CAST: kvmclock is mod 2^64 as well.
            system_time: saved.kvmclock_ns.wrapping_add(elapsed_ns as u64),
            tsc_to_system_mul: mul,
            tsc_shift: shift,
            ..saved.record
        },
        (None, Mode::Exact) => saved.record,
        (None, Mode::Advance | Mode::Freeze) => saved
            .record
            .not_ahead_of(guest_tsc)
            .ok_or(PlanError::Unrepresentable)?,
    };
    let pairing_ns = match request.mode {
        // Takes no notice of the time of day.
        Mode::Exact | Mode::Freeze => 0,
        Mode::Advance => now.precision_ns(here.host_khz),
    };
    // kvmclock was rounded down to whole ns where another slope begins.
    let rounding_ns = match other_factor {
        Some(_) => saved.record.rounding_ns(),
        None => 0,
    };
    Ok(Plan {
        offset_shift,
        scale,
        record,
        precision_ns: saved
            .precision_ns
            .saturating_add(pairing_ns)
            .saturating_add(rounding_ns),
    })
}

/// The factor that replaces the record's, if the request asks for the slope of a TSC of `rate` and
/// the record has another.
///
/// KVM's own factor stays, although KVM computes it from whole kHz: the guest had it before. Any
/// other is replaced by that of the rate in Hz, as a scaled rate is up to 1 kHz above what KVM
/// takes it for.
///
/// # Errors
///
/// [`PlanError::RecordRate`] if the request does not ask and the record is for another rate, or if
/// it asks and the TSC's rate has no factor.
fn other_factor(
    request: &SetRequest,
    rate: GuestRate,
    tolerance_ppm: u32,
) -> Result<Option<Factor>, PlanError> {
    let factor = request.saved.record.factor();
    if request.reslope {
        let of_khz = rate.factor().ok_or(PlanError::RecordRate)?;
        let of_hz = Factor::of_hz(rate.hz()).ok_or(PlanError::RecordRate)?;
        Ok((factor != of_khz && factor != of_hz).then_some(of_hz))
    } else if rate.accepts(factor, tolerance_ppm) {
        Ok(None)
    } else {
        Err(PlanError::RecordRate)
    }
}

/// The scaling ratio that mode exact gives a guest whose rate is `here`; `None` if it had another
/// rate.
///
/// In one domain the counter is the same whatever each kernel calibrated it to be. But KVM computes
/// a ratio from that, so it may be a few ppm off the one that the guest had: that one is put back.
fn exact_scale(saved: Scale, here: GuestRate, tolerance_ppm: u32) -> Option<Scale> {
    if saved == here.scale || (saved.is_identity() && here.scale.is_identity()) {
        return Some(here.scale);
    }
    let would_be = GuestRate {
        scale: saved,
        ..here
    };
    let is_same_hardware = saved.frac_bits() == here.scale.frac_bits();
    (is_same_hardware && would_be.is_close_to(here, tolerance_ppm)).then_some(saved)
}

/// Time from the anchor of `saved` to `now` by TAI, ns; negative if `now` is before the anchor.
///
/// Where one side does not know TAI - UTC its "TAI" is UTC, and the difference of the two would be
/// off by some 37 s: UTC is compared then.
pub fn elapsed_ns(saved: &VmClockGuest, now: &ClockSnapshot) -> i128 {
    let elapsed = i128::from(now.tai_ns) - i128::from(saved.tai_ns);
    if knows_tai(now.tai_offset_s) == knows_tai(saved.tai_offset_s) {
        return elapsed;
    }
    let offset_diff = i128::from(now.tai_offset_s) - i128::from(saved.tai_offset_s);
    elapsed - offset_diff * NSEC_PER_SEC
}

/// [`elapsed_ns`], as the request allows it.
///
/// # Errors
///
/// [`PlanError::Backwards`] if it is negative, and the request does not allow that.
fn allowed_elapsed_ns(request: &SetRequest, now: &ClockSnapshot) -> Result<i128, PlanError> {
    let elapsed = elapsed_ns(&request.saved, now);
    if elapsed < 0 && !request.allow_backwards {
        return Err(PlanError::Backwards);
    }
    Ok(elapsed)
}

/// Ticks in `elapsed_ns` (ns), rounded towards 0, of a guest whose TSC rate is `rate`.
///
/// # Errors
///
/// [`PlanError::Unrepresentable`] for 2^63 ticks or more.
fn elapsed_ticks(rate: GuestRate, elapsed_ns: i128) -> Result<i64, PlanError> {
    let ticks = u64::try_from(elapsed_ns.unsigned_abs())
        .ok()
        .and_then(|ns| rate.ticks(ns))
        .and_then(|ticks| i64::try_from(ticks).ok())
        .ok_or(PlanError::Unrepresentable)?;
    Ok(if elapsed_ns < 0 { -ticks } else { ticks })
}
