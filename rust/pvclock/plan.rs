// SPDX-License-Identifier: GPL-2.0-only

//! From a validated request and this host's clock to what is to be written: pure arithmetic, done
//! before the first lock that a failure could not undo.

use super::{
    rate::GuestRate,
    request::{
        Mode,
        SetRequest, //
    },
    tsc::{
        is_ahead,
        Relation, //
    },
};

/// Nanoseconds per second.
const NSEC_PER_SEC: i128 = 1_000_000_000;

/// One instant of this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instant {
    /// Host TSC, ticks.
    pub host_tsc: u64,
    /// `CLOCK_TAI`, ns.
    pub tai_ns: i64,
    /// TAI - UTC, s; 0 = not known.
    pub tai_offset_s: i32,
    /// `CLOCK_MONOTONIC_RAW`, ns.
    pub monotonic_raw_ns: i64,
    /// `CLOCK_BOOTTIME` - `CLOCK_MONOTONIC`: time spent suspended, ns.
    pub boot_offset_ns: i64,
}

/// Why a well-formed request cannot be carried out here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The TSC rates differ by more than is tolerated: `ERANGE`.
    RateMismatch,
    /// Exact, but the anchor lies ahead of this host's TSC: `ESTALE`.
    Stale,
    /// Advance would move the guest backwards: `ETIME`.
    Backwards,
    /// The elapsed time does not fit 64 bits of ticks: `EINVAL`.
    Unrepresentable,
}

/// Guest TSC rate here minus the saved one, Hz, saturating.
pub fn rate_diff_hz(request: &SetRequest, here: GuestRate) -> i64 {
    here.diff_hz(request.rate)
}

/// What to add to every saved TSC offset (ticks, mod 2^64); the saved record goes with it.
///
/// `ref_offset` is the saved offset of the reference vCPU, `now` an instant of this host and
/// `here` the guest's TSC rate on it.
///
/// # Errors
///
/// See [`Refusal`].
pub fn offset_shift(
    request: &SetRequest,
    ref_offset: u64,
    now: &Instant,
    here: GuestRate,
) -> Result<u64, Refusal> {
    let saved = &request.saved;
    let same_rate = match request.mode {
        // In one domain the counter is the same whatever each kernel calibrated it to be, so the
        // ratio decides.
        Mode::Exact => {
            let (a, b) = (request.rate.scale, here.scale);
            a == b || (a.is_identity() && b.is_identity())
        }
        Mode::Advance | Mode::Freeze => request.rate.is_close_to(here),
    };
    if !same_rate && !request.allow_rate_mismatch {
        return Err(Refusal::RateMismatch);
    }

    let elapsed_ticks = match request.mode {
        Mode::Exact if is_ahead(saved.host_tsc, now.host_tsc) => return Err(Refusal::Stale),
        Mode::Exact => return Ok(0),
        Mode::Freeze => 0,
        Mode::Advance => elapsed_ticks(request, now)?,
    };
    let guest_tsc = saved.guest_tsc.wrapping_add(elapsed_ticks);
    let relation = Relation::through(here.scale, now.host_tsc, guest_tsc);
    Ok(relation.offset.wrapping_sub(ref_offset))
}

/// Guest ticks (mod 2^64) from the anchor to `now`, by TAI and at the saved rate.
fn elapsed_ticks(request: &SetRequest, now: &Instant) -> Result<u64, Refusal> {
    let saved = &request.saved;
    let mut elapsed = i128::from(now.tai_ns) - i128::from(saved.tai_ns);
    // Where one side does not know TAI - UTC its "TAI" is UTC, and the difference of the two would
    // be off by some 37 s: compare UTC then.
    if (now.tai_offset_s == 0) != (saved.tai_offset_s == 0) {
        let offset_diff = i128::from(now.tai_offset_s) - i128::from(saved.tai_offset_s);
        elapsed -= offset_diff * NSEC_PER_SEC;
    }
    if elapsed < 0 && !request.allow_backwards {
        return Err(Refusal::Backwards);
    }
    let ticks = u64::try_from(elapsed.unsigned_abs())
        .ok()
        .and_then(|ns| request.rate.ticks(ns))
        .ok_or(Refusal::Unrepresentable)?;
    Ok(if elapsed < 0 {
        ticks.wrapping_neg()
    } else {
        ticks
    })
}
