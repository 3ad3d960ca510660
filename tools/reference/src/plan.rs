// SPDX-License-Identifier: GPL-2.0-only

//! The effect that the ABI specifies for a valid SET, and the reasons for it to fail.

use crate::{
    arithmetic::{
        advanced, elapsed_ns, exact_factor, hz, is_accepted, is_ahead, is_stuck, own_factor,
    },
    rules,
};
use pvclock::{
    abi::{
        VmClockGuest, FLAG_ALLOW_BACKWARDS, FLAG_ALLOW_RATE_MISMATCH, FLAG_RESLOPE, MODE_ADVANCE,
        MODE_EXACT,
    },
    counter::GuestTsc,
    plan::{ClockSnapshot, PlanError},
    rate::{Factor, GuestRate},
    tsc::Scale,
};

/// A valid SET, and the host that carries it out.
#[derive(Clone, Copy, Debug)]
pub struct Set {
    /// The header, which breaks no [rule](rules::broken_by_set).
    pub saved: VmClockGuest,
    /// The host's clocks.
    pub now: ClockSnapshot,
    /// The guest's TSC rate before the call.
    pub here: GuestRate,
    /// The tolerance of rates, ppm.
    pub tolerance_ppm: u32,
}

impl Set {
    fn has_flag(&self, flag: u32) -> bool {
        self.saved.flags & flag != 0
    }

    fn saved_rate(&self) -> GuestRate {
        rules::rate(&self.saved).expect("the header is valid")
    }

    /// Time from the anchor to now, as far as the mode adds it, ns.
    pub fn added_ns(&self) -> i128 {
        match self.saved.mode {
            MODE_ADVANCE => elapsed_ns(&self.saved, &self.now),
            _ => 0,
        }
    }

    /// The reference vCPU's TSC after ADVANCE or FREEZE; `None` if SET fails because of it.
    pub fn guest_tsc(&self) -> Option<GuestTsc> {
        advanced(&self.saved, self.added_ns(), self.saved_rate())
    }

    /// The scaling ratio after SET; `None` if SET fails because of it.
    pub fn scale(&self) -> Option<Scale> {
        if self.saved.mode != MODE_EXACT {
            return Some(self.here.scale);
        }
        let mismatch = (self.has_flag(FLAG_ALLOW_RATE_MISMATCH)).then_some(self.here.scale);
        self.matching_scale().or(mismatch)
    }

    /// The ratio that EXACT restores, if the rates are the same.
    fn matching_scale(&self) -> Option<Scale> {
        let (saved, here) = (self.saved_rate().scale, self.here.scale);
        let is_one = |scale: Scale| match (scale.ratio(), scale.frac_bits()) {
            (0, 0) => true,
            (ratio, bits) => ratio == 1 << bits,
        };
        if is_one(saved) && is_one(here) {
            return Some(here);
        }
        let restored = GuestRate {
            scale: saved,
            ..self.here
        };
        let is_same = saved == here
            || saved.frac_bits() == here.frac_bits() && self.is_close_to_here(restored);
        is_same.then_some(saved)
    }

    /// Whether the rate here is within the tolerance of `rate`, both in whole Hz.
    fn is_close_to_here(&self, rate: GuestRate) -> bool {
        let [was, is] = [rate, self.here].map(|rate| u128::from(hz(rate)));
        was.abs_diff(is) * 1_000_000 <= was * u128::from(self.tolerance_ppm)
    }

    /// The guest's TSC rate after SET; `None` if SET fails because of it.
    fn rate(&self) -> Option<GuestRate> {
        let scale = self.scale()?;
        Some(GuestRate { scale, ..self.here })
    }

    /// The factor that replaces the record's, if RESLOPE is set and the record has neither that nor
    /// the one that KVM derives.
    pub fn other_factor(&self) -> Option<Factor> {
        let (factor, rate) = (self.saved.record.factor(), self.rate()?);
        let (own, exact) = (own_factor(rate)?, exact_factor(rate)?);
        (self.has_flag(FLAG_RESLOPE) && factor != own && factor != exact).then_some(exact)
    }

    /// Whether SET has this reason to fail.
    pub fn has(&self, error: PlanError) -> bool {
        let saved = &self.saved;
        let is_exact = saved.mode == MODE_EXACT;
        match error {
            PlanError::RateMismatch if self.has_flag(FLAG_ALLOW_RATE_MISMATCH) => false,
            PlanError::RateMismatch if is_exact => self.matching_scale().is_none(),
            PlanError::RateMismatch => !self.is_close_to_here(self.saved_rate()),
            // Without a rate of the TSC, no record can differ from it.
            PlanError::RecordRate => self.rate().is_some_and(|rate| {
                if self.has_flag(FLAG_RESLOPE) {
                    exact_factor(rate).is_none()
                } else {
                    !is_accepted(saved.record.factor(), rate, self.tolerance_ppm)
                }
            }),
            PlanError::Stale => is_exact && is_ahead(saved.host_tsc.since(self.now.host_tsc)),
            PlanError::Backwards => !self.has_flag(FLAG_ALLOW_BACKWARDS) && self.added_ns() < 0,
            PlanError::Unrepresentable if is_exact => false,
            PlanError::Unrepresentable => self.guest_tsc().is_none_or(|tsc| {
                let ahead = saved.record.tsc_timestamp.since(tsc);
                self.other_factor().is_none() && is_ahead(ahead) && is_stuck(&saved.record, ahead)
            }),
        }
    }
}
