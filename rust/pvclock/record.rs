// SPDX-License-Identifier: GPL-2.0-only

//! kvmclock as a function of guest TSC.
//!
//! Mirrors `__pvclock_read_cycles()` and `pvclock_scale_delta()` of `arch/x86/include/asm/pvclock.h`,
//! which both the guest and KVM evaluate.

use super::abi::ClockGuest;

impl ClockGuest {
    /// kvmclock (ns) at guest TSC `guest_tsc` (ticks): the record's `K(g)`.
    ///
    /// Defined for every bit pattern; a shift beyond the 63 bits a CPU can shift by yields what
    /// shifting step by step would.
    pub const fn kvmclock_ns(&self, guest_tsc: u64) -> u64 {
        let ticks = guest_tsc.wrapping_sub(self.tsc_timestamp);
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
