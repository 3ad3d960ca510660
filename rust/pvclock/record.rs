// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR BSD-3-Clause

//! kvmclock as a function of guest TSC.
//!
//! Mirrors `__pvclock_read_cycles()` and `pvclock_scale_delta()` of
//! `arch/x86/include/asm/pvclock.h`, which both the guest and KVM evaluate.
//!
//! # Example
//!
//! ```
//! use pvclock::{abi::ClockGuest, counter::GuestTsc, rate::Factor};
//!
//! // kvmclock of a guest of 3 GHz, whose record was made at TSC 1,000, 5 ns after its boot.
//! let factor = Factor::of_hz(3_000_000_000).unwrap();
//! let record = ClockGuest {
//!     tsc_timestamp: GuestTsc(1_000),
//!     system_time: 5,
//!     tsc_to_system_mul: factor.mul,
//!     tsc_shift: factor.shift,
//!     ..ClockGuest::default()
//! };
//! assert_eq!(record.kvmclock_ns(GuestTsc(1_000)), 5);
//! // 3 ticks are a ns, but for what the factor's 32 bits round down.
//! assert_eq!(record.kvmclock_ns(GuestTsc(1_000 + 3_000_000_000)), 5 + 999_999_999);
//!
//! // A vCPU whose TSC is 42 ticks ahead has the same time by a record of its own.
//! assert_eq!(record.shifted_by(42).kvmclock_ns(GuestTsc(1_000 + 42)), 5);
//!
//! // A record that moves to where nothing is rounded changes no later reading.
//! let moved = record.not_ahead_of(GuestTsc(999)).unwrap();
//! let ticks = record.tsc_timestamp.since(moved.tsc_timestamp);
//! assert_eq!(ticks, 1 << record.exact_step_log2());
//! let mut later = (1_000..2_000).map(GuestTsc);
//! assert!(later.all(|tsc| moved.kvmclock_ns(tsc) == record.kvmclock_ns(tsc)));
//! ```

use super::{
    abi::ClockGuest,
    counter::GuestTsc,
    rate::Factor, //
};

impl ClockGuest {
    /// The record's slope.
    pub const fn factor(&self) -> Factor {
        Factor {
            mul: self.tsc_to_system_mul,
            shift: self.tsc_shift,
        }
    }

    /// kvmclock (ns) at guest TSC `guest_tsc`: the record's `K(g)`.
    ///
    /// Defined for every bit pattern; a shift beyond the 63 bits a CPU can shift by yields what
    /// shifting step by step would.
    pub const fn kvmclock_ns(&self, guest_tsc: GuestTsc) -> u64 {
        let ticks = guest_tsc.since(self.tsc_timestamp);
        let shift = self.tsc_shift.unsigned_abs() as u32;
        let shifted = if shift > 63 {
            0
        } else if self.tsc_shift < 0 {
            ticks >> shift
        } else {
            ticks << shift
        };
        // CAST: a 64x32-bit product has 96 bits; the upper 64 are the ns.
        let ns = ((shifted as u128 * self.tsc_to_system_mul as u128) >> 32) as u64;
        self.system_time.wrapping_add(ns)
    }

    /// More than kvmclock drops of the record's exact value at any guest TSC, in whole ns.
    ///
    /// It drops a fraction of 1 ns; and if the shift is to the right, less than one shifted tick,
    /// which lasts less than 1 ns.
    pub const fn rounding_ns(&self) -> u32 {
        if self.tsc_shift < 0 {
            2
        } else {
            1
        }
    }

    /// The record's exact step: every so many ticks from `tsc_timestamp` on, kvmclock is a whole
    /// number of ns with nothing floored away. Returned as a power of 2, i.e. the step is `1 <<
    /// exact_step_log2()` ticks; at most 63 for a record with `mul` not 0 and `shift` in -31..=31.
    ///
    /// A record that is moved by whole steps reads the same afterwards at every later TSC. Moved to
    /// any other tick it loses up to 1 ns.
    pub const fn exact_step_log2(&self) -> u32 {
        let shift = self.tsc_shift as i32;
        let right = if shift < 0 { shift.unsigned_abs() } else { 0 };
        let left = if shift > 0 { shift.unsigned_abs() } else { 0 };
        // The product has a fraction of 32 bits, of which `mul` and a left shift clear some.
        right + 32u32.saturating_sub(self.tsc_to_system_mul.trailing_zeros() + left)
    }

    /// The same clock by a record that does not lie ahead of guest TSC `guest_tsc`: itself,
    /// or else itself moved back by whole [exact steps](Self::exact_step_log2).
    ///
    /// Guests take the ticks since `tsc_timestamp` for unsigned, so a record ahead of their TSC
    /// would send them centuries into the future.
    ///
    /// `None` if the record's shift leaves no room for as many ticks.
    pub const fn not_ahead_of(&self, guest_tsc: GuestTsc) -> Option<Self> {
        if !self.tsc_timestamp.is_ahead_of(guest_tsc) {
            return Some(*self);
        }
        // Below 2^63, as it is ahead; so is the step, hence the sum is below 2^64.
        let ahead = self.tsc_timestamp.since(guest_tsc);
        let step = match 1u64.checked_shl(self.exact_step_log2()) {
            Some(step) => step,
            None => return None,
        };
        let ticks = (ahead + (step - 1)) & !(step - 1);
        let moved = Self {
            tsc_timestamp: self.tsc_timestamp.wrapping_sub(ticks),
            ..*self
        };
        if self.tsc_shift > 0 && ticks.leading_zeros() <= self.tsc_shift.unsigned_abs() as u32 {
            return None;
        }
        // What the moved record adds on the way to the old timestamp, exactly.
        let ns = moved
            .kvmclock_ns(self.tsc_timestamp)
            .wrapping_sub(self.system_time);
        Some(Self {
            system_time: self.system_time.wrapping_sub(ns),
            ..moved
        })
    }

    /// The record of a vCPU whose TSC offset is `offset_diff` ticks (mod 2^64) above this one's.
    ///
    /// At any host TSC both say the same time.
    pub const fn shifted_by(&self, offset_diff: u64) -> Self {
        Self {
            tsc_timestamp: self.tsc_timestamp.wrapping_add(offset_diff),
            ..*self
        }
    }
}
