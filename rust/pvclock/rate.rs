// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR BSD-3-Clause

//! TSC rates: Hz from kHz and ratio, ticks from nanoseconds, and a rate as a pvclock multiplier.

use super::{
    tsc::Scale,
    wide::mul_mul_shr_div, //
};

/// Nanoseconds per millisecond.
const NSEC_PER_MSEC: u64 = 1_000_000;

/// Nanoseconds per second, as the 32-bit divisor the kernel can divide by.
const NSEC_PER_SEC: u32 = 1_000_000_000;

/// Parts per million.
const PPM: u128 = 1_000_000;

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

    /// The rate in kHz, rounded down.
    pub const fn khz(self) -> u64 {
        // CAST: `u64::from()` is not const.
        self.scale.apply(self.host_khz as u64)
    }

    /// The factor that KVM derives for a guest of this rate, bit for bit: from whole kHz, 1 at
    /// least. `None` if a hostile ratio exceeds 64 bits.
    pub const fn factor(self) -> Option<Factor> {
        let khz = match self.khz() {
            0 => 1,
            khz => khz,
        };
        match khz.checked_mul(1000) {
            Some(hz) => Factor::of_hz(hz),
            None => None,
        }
    }

    /// Whether `factor` belongs to a TSC of this rate: it is KVM's [own](Self::factor), or the rate
    /// that it implies differs by no more than `tolerance_ppm` parts per million of this one.
    pub fn accepts(self, factor: Factor, tolerance_ppm: u32) -> bool {
        // Rounding alone takes KVM's own factor off the rate, so that no tolerance of 0 has it.
        self.factor() == Some(factor) || factor.is_close_to(self.hz(), tolerance_ppm)
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

    /// Whether `other` differs by no more than `tolerance_ppm` parts per million of this rate.
    pub fn is_close_to(self, other: Self, tolerance_ppm: u32) -> bool {
        let (a, b) = (self.hz(), other.hz());
        u128::from(a.abs_diff(b)) * PPM <= u128::from(a) * u128::from(tolerance_ppm)
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

    /// Whether the rate that the factor is for differs by no more than `tolerance_ppm` parts per
    /// million of `hz` from `hz`: an exact comparison of rational numbers. `false` for a `mul` of 0
    /// or a `shift` outside -31..=31.
    ///
    /// # Example
    ///
    /// ```
    /// use pvclock::rate::Factor;
    ///
    /// // 0.5 ns a tick are 2 GHz, and 250 ppm of 2,000,500,126 Hz are 500,125.03 Hz.
    /// let factor = Factor { mul: 1 << 31, shift: 0 };
    /// assert!(factor.is_close_to(2_000_000_000, 0));
    /// assert!(factor.is_close_to(2_000_500_125, 250));
    /// assert!(!factor.is_close_to(2_000_500_126, 250));
    /// ```
    pub fn is_close_to(self, hz: u64, tolerance_ppm: u32) -> bool {
        if !(-31..=31).contains(&self.shift) {
            return false;
        }
        // The implied rate is 10^9 * 2^32 / (mul * 2^shift) Hz: both it and `hz`, times `mul`.
        // These have at most 93 and 96 bits, so that the products below fit 116 and 128.
        let implied = u128::from(NSEC_PER_SEC) << (32 - i32::from(self.shift));
        let rate = u128::from(hz) * u128::from(self.mul);
        implied.abs_diff(rate) * PPM <= rate * u128::from(tolerance_ppm)
    }

    /// The factor KVM gives a guest of `hz` Hz; `None` for a rate of 0.
    ///
    /// Mirrors `kvm_get_time_scale(NSEC_PER_SEC, hz)`, bit for bit: it must equal what KVM hands
    /// the guest of an unpinned clock.
    pub const fn of_hz(hz: u64) -> Option<Self> {
        if hz == 0 {
            return None;
        }
        let mut scaled = NSEC_PER_SEC as u64;
        let mut ticks = hz;
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
