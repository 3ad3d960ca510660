// SPDX-License-Identifier: GPL-2.0-only

//! A SET that succeeds does what the ABI says of its mode, and one that fails has a reason.

use crate::{arithmetic, input};
use pvclock::{
    abi::{ClockGuest, VmClockGuest},
    counter::{GuestTsc, HostTsc, TscOffset},
    plan::{self, ClockSnapshot, Plan, PlanError},
    rate::{Factor, GuestRate},
    request::{Mode, SetRequest},
    tsc::{Scale, TscTransform},
};
use pvclock_reference::arithmetic as reference;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The layout of an input: the saved clocks, and the clocks of this host.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Input {
    header: VmClockGuest,
    ref_offset: TscOffset,
    host_tsc: HostTsc,
    tai_ns: i64,
    monotonic_raw_ns: i64,
    read_window: u64,
    ratio: u64,
    actual_ns: u64,
    tai_offset_s: i32,
    frac_bits: u32,
    host_khz: u32,
    tolerance_ppm: u32,
}

/// The target: plans a SET with a header made valid, a clock snapshot and a rate.
///
/// # Panics
///
/// If the plan is not what the ABI says.
pub fn plan(bytes: &[u8]) {
    let (input, _): (Input, _) = input::take(bytes);
    let now = ClockSnapshot {
        host_tsc: input.host_tsc,
        tai_ns: input.tai_ns,
        tai_offset_s: input.tai_offset_s,
        monotonic_raw_ns: input.monotonic_raw_ns,
        read_window: input.read_window,
    };
    let here = GuestRate {
        host_khz: input.host_khz,
        scale: input::scale(input.ratio, input.frac_bits),
    };
    let Some(request) = request(&input, here) else {
        return;
    };
    let case = Case {
        request,
        ref_offset: input.ref_offset,
        now,
        here,
        tolerance_ppm: input.tolerance_ppm,
    };
    assert_eq!(
        plan::rate_diff_hz(&case.request, here),
        here.diff_hz(case.request.rate)
    );
    let ppm = case.tolerance_ppm;
    match plan::plan(&case.request, case.ref_offset, &now, here, ppm) {
        Ok(plan) => case.ensure_planned(&plan, input.actual_ns),
        Err(error) => assert!(case.has(error), "{error:?}: {case:x?}"),
    }
}

/// Gives `record`, for some values of `which`, KVM's own factor for a rate of `here` or one near
/// it: random factors hardly ever are.
fn near_rate(record: &mut ClockGuest, which: u32, here: GuestRate) {
    let own = reference::own_factor(here).filter(|own| which % 2 == 1 && own.shift >= -31);
    if let Some(own) = own {
        // CAST: a few bits.
        let more = (which >> 1) as i16;
        let mul = own.mul.saturating_add_signed(more.into());
        (record.tsc_to_system_mul, record.tsc_shift) = (mul | 1 << 31, own.shift);
    }
}

/// The guest TSC at host TSC `host_tsc`, by the reference.
fn guest_tsc(scale: Scale, offset: TscOffset, host_tsc: HostTsc) -> GuestTsc {
    GuestTsc(reference::scaled(scale, host_tsc.0).wrapping_add(offset.0))
}

/// A valid and consistent request: the module plans no other.
fn request(input: &Input, here: GuestRate) -> Option<SetRequest> {
    let mut header = input.header;
    header.mode = header.mode % 3 + 1;
    header.flags %= 16;
    header.status %= 4;
    header.record = input::valid(header.record);
    near_rate(&mut header.record, input.header.record.version, here);
    let scale = input::scale(header.tsc_ratio, header.tsc_frac_bits);
    (header.tsc_ratio, header.tsc_frac_bits) = (scale.ratio(), scale.frac_bits());
    header.guest_tsc = guest_tsc(scale, input.ref_offset, header.host_tsc);
    let age = header.guest_tsc.since(header.record.tsc_timestamp);
    if age > 1 << 63 {
        header.record.tsc_timestamp = header.guest_tsc;
    }
    header.paused_ns >>= 1;
    header.kvmclock_ns = reference::kvmclock_ns(&header.record, header.guest_tsc);
    // Only the rate may still be invalid.
    SetRequest::new(header).ok()
}

/// A valid request, and the clocks of this host.
#[derive(Debug)]
struct Case {
    request: SetRequest,
    ref_offset: TscOffset,
    now: ClockSnapshot,
    here: GuestRate,
    tolerance_ppm: u32,
}

impl Case {
    fn ensure_planned(&self, plan: &Plan, actual_ns: u64) {
        let (request, saved, now) = (&self.request, &self.request.saved, &self.now);
        for error in [
            PlanError::RateMismatch,
            PlanError::RecordRate,
            PlanError::Stale,
            PlanError::Backwards,
            PlanError::Unrepresentable,
        ] {
            assert!(!self.has(error), "no {error:?}: {self:x?}");
        }

        let offset = self.ref_offset.wrapping_add(plan.offset_shift);
        let guest_tsc = guest_tsc(plan.scale, offset, now.host_tsc);
        let mut precision_ns = u64::from(saved.precision_ns);
        if request.mode == Mode::Exact {
            assert_eq!(plan.offset_shift, 0, "{self:x?}");
            assert_eq!(Some(plan.scale), self.exact_scale(), "{self:x?}");
        } else {
            assert_eq!(plan.scale, self.here.scale, "{self:x?}");
            assert_eq!(Some(guest_tsc), self.expected_tsc(), "{self:x?}");
        }
        if let Some(factor) = self.other_factor() {
            assert_eq!(plan.record.factor(), factor, "{self:x?}");
            assert_eq!(plan.record.flags, saved.record.flags, "{self:x?}");
            self.ensure_continued(plan, offset);
            precision_ns += 1 + u64::from(saved.record.tsc_shift < 0);
        } else if request.mode == Mode::Exact {
            assert_eq!(plan.record, saved.record, "{self:x?}");
        } else {
            let not_ahead = saved.record.not_ahead_of(guest_tsc);
            assert_eq!(Some(plan.record), not_ahead, "{self:x?}");
            let later = [0, 1, now.host_tsc.0, saved.host_tsc.0];
            arithmetic::moved(&saved.record, guest_tsc, &later);
        }
        if request.mode == Mode::Advance {
            let khz = self.here.host_khz.max(1);
            precision_ns += u64::from(reference::precision_ns(now.read_window, khz));
        }
        let saturated = |ns: u64| u32::try_from(ns).unwrap_or(u32::MAX);
        assert_eq!(plan.precision_ns, saturated(precision_ns), "{self:x?}");

        // If KVM cannot pin the record.
        let transform = TscTransform {
            scale: plan.scale,
            offset,
        };
        let khz = self.here.host_khz.max(1);
        let unpinned_ns = plan.precision_unpinned_ns(transform, now, actual_ns, khz);
        let expected_ns = reference::kvmclock_ns(&plan.record, guest_tsc);
        let error_ns = actual_ns
            .wrapping_sub(expected_ns)
            .min(expected_ns.wrapping_sub(actual_ns));
        let sum = u64::from(saturated(error_ns))
            + u64::from(reference::precision_ns(now.read_window, khz))
            + u64::from(plan.precision_ns);
        assert_eq!(unpinned_ns, saturated(sum), "{self:x?}");
    }

    /// Panics unless kvmclock with another slope begins at its value at the anchor, plus the time
    /// that the mode adds.
    fn ensure_continued(&self, plan: &Plan, offset: TscOffset) {
        let saved = &self.request.saved;
        let (host_tsc, elapsed_ns) = match self.request.mode {
            Mode::Exact => (saved.host_tsc, 0),
            Mode::Freeze => (self.now.host_tsc, 0),
            Mode::Advance => {
                let elapsed = reference::elapsed_ns(saved, &self.now);
                // CAST: kvmclock is mod 2^64.
                (self.now.host_tsc, elapsed as u64)
            }
        };
        let guest_tsc = guest_tsc(plan.scale, offset, host_tsc);
        assert_eq!(plan.record.tsc_timestamp, guest_tsc, "{self:x?}");
        let ns = plan.record.system_time.wrapping_sub(saved.kvmclock_ns);
        assert_eq!(ns, elapsed_ns, "{self:x?}");
    }

    /// The factor of the TSC here, if the request asks for it and the record's is neither that nor
    /// KVM's own.
    fn other_factor(&self) -> Option<Factor> {
        let (factor, rate) = (self.request.saved.record.factor(), self.rate()?);
        let (own, exact) = (reference::own_factor(rate)?, reference::exact_factor(rate)?);
        (self.request.reslope && factor != own && factor != exact).then_some(exact)
    }

    /// The rate of the guest's TSC here, with the scale that SET gives it.
    fn rate(&self) -> Option<GuestRate> {
        let scale = match self.request.mode {
            Mode::Exact => self.exact_scale()?,
            Mode::Advance | Mode::Freeze => self.here.scale,
        };
        Some(GuestRate { scale, ..self.here })
    }

    /// Whether the record is for the TSC here, or RESLOPE makes it so.
    fn fits_record(&self, rate: GuestRate) -> bool {
        if self.request.reslope {
            return reference::exact_factor(rate).is_some();
        }
        let factor = self.request.saved.record.factor();
        reference::is_accepted(factor, rate, self.tolerance_ppm)
    }

    /// Whether there is this reason to fail.
    fn has(&self, error: PlanError) -> bool {
        let (request, saved) = (&self.request, &self.request.saved);
        let elapsed = reference::elapsed_ns(saved, &self.now);
        match error {
            PlanError::RateMismatch => !request.allow_rate_mismatch && !self.is_same_rate(),
            // Without a rate of the TSC, no record can differ from it.
            PlanError::RecordRate => self.rate().is_some_and(|rate| !self.fits_record(rate)),
            PlanError::Stale => {
                let passed = self.now.host_tsc.since(saved.host_tsc);
                request.mode == Mode::Exact && passed > 1 << 63
            }
            PlanError::Backwards => {
                request.mode == Mode::Advance && !request.allow_backwards && elapsed < 0
            }
            PlanError::Unrepresentable if request.mode == Mode::Exact => false,
            PlanError::Unrepresentable => self.expected_tsc().is_none_or(|tsc| {
                let ahead = saved.record.tsc_timestamp.since(tsc);
                self.other_factor().is_none()
                    && (1..1 << 63).contains(&ahead)
                    && reference::is_stuck(&saved.record, ahead)
            }),
        }
    }

    /// The guest TSC that advance or freeze must give the guest now.
    fn expected_tsc(&self) -> Option<GuestTsc> {
        let (request, saved) = (&self.request, &self.request.saved);
        match request.mode {
            Mode::Exact | Mode::Freeze => Some(saved.guest_tsc),
            Mode::Advance => {
                let elapsed = reference::elapsed_ns(saved, &self.now);
                reference::advanced(saved, elapsed, request.rate)
            }
        }
    }

    fn is_same_rate(&self) -> bool {
        match self.request.mode {
            Mode::Exact => self.matching_scale().is_some(),
            Mode::Advance | Mode::Freeze => self.is_close(self.request.rate),
        }
    }

    fn exact_scale(&self) -> Option<Scale> {
        let mismatch = self.request.allow_rate_mismatch.then_some(self.here.scale);
        self.matching_scale().or(mismatch)
    }

    /// The ratio that exact restores, if the rates are the same.
    fn matching_scale(&self) -> Option<Scale> {
        let (saved, here) = (self.request.rate.scale, self.here.scale);
        let is_one = |scale: Scale| match (scale.ratio(), scale.frac_bits()) {
            (0, 0) => true,
            (ratio, bits) => ratio == 1 << bits,
        };
        let put_back = GuestRate {
            scale: saved,
            ..self.here
        };
        if is_one(saved) && is_one(here) {
            return Some(here);
        }
        let fits = saved == here || saved.frac_bits() == here.frac_bits();
        (fits && (saved == here || self.is_close(put_back))).then_some(saved)
    }

    /// Whether the rate here is within the tolerance of `rate`, both in whole Hz.
    fn is_close(&self, rate: GuestRate) -> bool {
        let hz = |rate| u128::from(reference::hz(rate));
        let tolerance = hz(rate) * u128::from(self.tolerance_ppm);
        hz(rate).abs_diff(hz(self.here)) * 1_000_000 <= tolerance
    }
}
