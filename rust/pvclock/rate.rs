// SPDX-License-Identifier: GPL-2.0-only

//! TSC rates: Hz from kHz and ratio, ticks from nanoseconds, and a rate as a pvclock multiplier.

use super::{
    tsc::Scale,
    wide::mul_mul_shr_div, //
};

/// Nanoseconds per millisecond.
const NSEC_PER_MSEC: u64 = 1_000_000;

/// Nanoseconds per second, as the 32-bit divisor the kernel can divide by.
const NSEC_PER_SEC: u32 = 1_000_000_000;

/// Largest difference of two guest TSC rates that SET takes for the same rate, in parts per
/// million: KVM's own `tsc_tolerance_ppm`, below which it does not scale a guest's TSC.
pub const TOLERANCE_PPM: u64 = 250;

/// A guest's TSC rate: the host's calibrated one, times the scaling ratio.
///
/// Kept as the pair, not as a number of Hz: rounding to Hz first would cost one tick per second of
/// downtime.
///
/// # Example
///
/// ```
/// use pvclock::{rate::GuestRate, tsc::Scale};
///
/// // A third of 2 GHz, by VMX's 48 fraction bits.
/// let scale = Scale::new((1 << 48) / 3, 48).unwrap();
/// let rate = GuestRate { host_khz: 2_000_000, scale };
/// assert_eq!(rate.hz(), 666_666_666);
/// // In an hour, by a rate in Hz, 2,399 ticks would get lost.
/// assert_eq!(rate.ticks(3_600_000_000_000), Some(666_666_666 * 3_600 + 2_399));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRate {
    /// Host TSC rate, kHz.
    pub host_khz: u32,
    /// Host ticks to guest ticks.
    pub scale: Scale,
}

impl GuestRate {
    /// The rate in Hz, rounded down; `u64::MAX` where a hostile ratio exceeds that.
    pub fn hz(self) -> u64 {
        if self.scale.is_identity() {
            // Every SET asks three times.
            return u64::from(self.host_khz) * 1000;
        }
        self.ticks(u64::from(NSEC_PER_SEC)).unwrap_or(u64::MAX)
    }

    /// Guest ticks in `ns` nanoseconds, rounded down; `None` if they exceed 64 bits.
    pub fn ticks(self, ns: u64) -> Option<u64> {
        let (factor, shift) = match self.scale {
            Scale::IDENTITY => (1, 0),
            scale => (scale.ratio(), scale.frac_bits()),
        };
        let host_hz = u64::from(self.host_khz) * 1000;
        mul_mul_shr_div(ns, host_hz, factor, shift, NSEC_PER_SEC)
    }

    /// The rate in kHz, rounded down: what KVM derives a pvclock factor from.
    pub fn khz(self) -> u64 {
        self.scale.apply(u64::from(self.host_khz))
    }

    /// This rate minus `other`, in Hz, saturating.
    pub fn diff_hz(self, other: Self) -> i64 {
        let (a, b) = (self.hz(), other.hz());
        let magnitude = i64::try_from(a.abs_diff(b)).unwrap_or(i64::MAX);
        if a < b {
            -magnitude
        } else {
            magnitude
        }
    }

    /// Whether `other` differs by no more than [`TOLERANCE_PPM`] of this rate.
    pub fn is_close_to(self, other: Self) -> bool {
        let (a, b) = (self.hz(), other.hz());
        u128::from(a.abs_diff(b)) * 1_000_000 <= u128::from(a) * u128::from(TOLERANCE_PPM)
    }
}

/// A pvclock factor: ns = ticks shifted by `shift`, times `mul`, in units of 2^-32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factor {
    /// `tsc_to_system_mul` of the record.
    pub mul: u32,
    /// `tsc_shift` of the record.
    pub shift: i8,
}

impl Factor {
    /// The rate that the factor is for, in kHz, rounded down; `None` if `mul` is 0 or the rate
    /// exceeds 64 bits. `shift` must be in -31..=31.
    ///
    /// What `pvclock_tsc_khz()` computes, without the low bits that it loses where `shift` is
    /// negative.
    pub fn khz(self) -> Option<u64> {
        let bits = u32::from(self.shift.unsigned_abs());
        let (up, down) = if self.shift < 0 { (bits, 0) } else { (0, bits) };
        // 10^6 ns in a ms, as mul / 2^32 ns to the shifted tick.
        mul_mul_shr_div(NSEC_PER_MSEC << 32, 1 << up, 1, down, self.mul)
    }

    /// The factor KVM gives a guest of `khz` kHz; `None` for a rate of 0.
    ///
    /// Mirrors `kvm_get_time_scale(NSEC_PER_SEC, khz * 1000)`, bit for bit: it must equal what the
    /// guest will be handed if nobody keeps a record.
    pub const fn of_khz(khz: u64) -> Option<Self> {
        let mut scaled = NSEC_PER_SEC as u64;
        let mut ticks = match khz.checked_mul(1000) {
            None | Some(0) => return None,
            Some(hz) => hz,
        };
        let mut shift = 0i8;

        while ticks > scaled * 2 || ticks >> 32 != 0 {
            ticks >>= 1;
            shift -= 1;
        }
        while ticks <= scaled {
            // `scaled` has 30 bits and `ticks` at most as many, so neither needs 33.
            if ticks & 0x8000_0000 != 0 {
                scaled >>= 1;
            } else {
                ticks <<= 1;
            }
            shift += 1;
        }

        Some(Self {
            // CAST: `scaled < ticks`, so the quotient is below 2^32.
            mul: ((scaled << 32) / ticks) as u32,
            shift,
        })
    }
}
