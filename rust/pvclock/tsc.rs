// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR BSD-3-Clause

//! Guest TSC as a function of host TSC.
//!
//! Mirrors `kvm_scale_tsc()` and `kvm_read_l1_tsc()` of `arch/x86/kvm/x86.c`.

use super::counter::{
    GuestTsc,
    HostTsc,
    TscOffset, //
};

/// A TSC scaling ratio: a fixed-point factor from host ticks to guest ticks.
///
/// # Example
///
/// ```
/// use pvclock::tsc::Scale;
///
/// // A guest of 2.5 GHz on a host of 2 GHz, by SVM's 32 fraction bits.
/// let scale = Scale::new((5 << 32) / 4, 32).unwrap();
/// assert_eq!(scale.apply(2_000_000_000), 2_500_000_000);
/// // The ABI's (0, 0) is a host that cannot scale; a ratio of 0 would be a TSC that stands still.
/// assert_eq!(Scale::new(0, 0), Some(Scale::IDENTITY));
/// assert_eq!(Scale::new(0, 32), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    ratio: u64,
    frac_bits: u32,
}

impl Scale {
    /// No scaling: one guest tick per host tick, without a multiplication.
    pub const IDENTITY: Self = Self {
        ratio: 0,
        frac_bits: 0,
    };

    /// Makes a scale from the ABI's pair; `None` if the pair cannot be a hardware ratio.
    ///
    /// (0, 0) is a host without hardware scaling. Hardware has 32 (SVM) or 48 (VMX) fraction bits;
    /// anything from 1 to 63 is computed rightly.
    pub const fn new(ratio: u64, frac_bits: u32) -> Option<Self> {
        match (ratio, frac_bits) {
            (0, 0) => Some(Self::IDENTITY),
            (0, _) | (_, 0 | 64..) => None,
            _ => Some(Self { ratio, frac_bits }),
        }
    }

    /// The ratio as the ABI has it; 0 without hardware scaling.
    pub const fn ratio(self) -> u64 {
        self.ratio
    }

    /// The ratio's fraction bits; 0 without hardware scaling.
    pub const fn frac_bits(self) -> u32 {
        self.frac_bits
    }

    /// Whether a guest tick is exactly a host tick.
    pub const fn is_identity(self) -> bool {
        self.ratio == 1 << self.frac_bits || self.ratio == 0
    }

    /// Host ticks to guest ticks, mod 2^64: `(ticks * ratio) >> frac_bits`.
    pub const fn apply(self, ticks: u64) -> u64 {
        if self.is_identity() {
            return ticks;
        }
        // CAST: a 64x64 product fits 128 bits; KVM truncates the shifted one to 64 bits as well.
        ((ticks as u128 * self.ratio as u128) >> self.frac_bits) as u64
    }
}

/// What makes a vCPU's L1 TSC: `G(h) = scale(h) + offset`, mod 2^64.
///
/// # Example
///
/// ```
/// use pvclock::{counter::{GuestTsc, HostTsc, TscOffset}, tsc::{Scale, TscTransform}};
///
/// // A guest that booted, with its TSC at 0, when the host's was 7,000,000: a "negative" offset.
/// let transform = TscTransform::through(Scale::IDENTITY, HostTsc(7_000_000), GuestTsc(0));
/// assert_eq!(transform.offset, TscOffset(7_000_000u64.wrapping_neg()));
/// assert_eq!(transform.guest_tsc(HostTsc(7_000_042)), GuestTsc(42));
/// // A tick before that its TSC was 2^64 - 1, and not ahead of what came then.
/// assert_eq!(transform.guest_tsc(HostTsc(6_999_999)), GuestTsc(u64::MAX));
/// assert!(GuestTsc(0).is_ahead_of(GuestTsc(u64::MAX)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscTransform {
    /// Scaling ratio of the vCPU.
    pub scale: Scale,
    /// L1 TSC offset of the vCPU.
    pub offset: TscOffset,
}

impl TscTransform {
    /// The guest TSC at host TSC `host_tsc`.
    pub const fn guest_tsc(self, host_tsc: HostTsc) -> GuestTsc {
        GuestTsc(self.scale.apply(host_tsc.0)).wrapping_add(self.offset.0)
    }

    /// The transform whose guest TSC is `guest_tsc` at `host_tsc`.
    pub const fn through(scale: Scale, host_tsc: HostTsc, guest_tsc: GuestTsc) -> Self {
        Self {
            scale,
            offset: TscOffset(guest_tsc.0.wrapping_sub(scale.apply(host_tsc.0))),
        }
    }
}
