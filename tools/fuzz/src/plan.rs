// SPDX-License-Identifier: GPL-2.0-only

//! A SET that succeeds does what the ABI says of its mode, and one that fails has a reason.

use crate::{arithmetic, input};
use pvclock::{
    abi::{ClockGuest, VmClockGuest, MODE_ADVANCE, MODE_EXACT},
    counter::{HostTsc, TscOffset},
    plan::{self, ClockSnapshot, Plan, PlanError},
    rate::GuestRate,
    request::SetRequest,
    tsc::TscTransform,
};
use pvclock_reference::{arithmetic as reference, plan::Set};
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
    let set = Set {
        saved: request.saved,
        now,
        here,
        tolerance_ppm: input.tolerance_ppm,
    };
    assert_eq!(
        plan::rate_diff_hz(&request, here),
        here.diff_hz(request.rate)
    );
    match plan::plan(&request, input.ref_offset, &now, here, input.tolerance_ppm) {
        Ok(plan) => ensure_planned(&set, &plan, input.ref_offset, input.actual_ns),
        Err(error) => assert!(set.has(error), "{error:?}: {set:x?}"),
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
    header.guest_tsc = reference::guest_tsc(scale, input.ref_offset, header.host_tsc);
    if reference::is_ahead(header.record.tsc_timestamp.since(header.guest_tsc)) {
        header.record.tsc_timestamp = header.guest_tsc;
    }
    header.paused_ns >>= 1;
    header.kvmclock_ns = reference::kvmclock_ns(&header.record, header.guest_tsc);
    // Only the rate may still be invalid.
    SetRequest::new(header).ok()
}

/// Panics unless `plan` is the effect of `set`, whose reference vCPU has the offset `ref_offset`.
fn ensure_planned(set: &Set, plan: &Plan, ref_offset: TscOffset, actual_ns: u64) {
    let Set {
        saved, now, here, ..
    } = set;
    for error in [
        PlanError::RateMismatch,
        PlanError::RecordRate,
        PlanError::Stale,
        PlanError::Backwards,
        PlanError::Unrepresentable,
    ] {
        assert!(!set.has(error), "no {error:?}: {set:x?}");
    }

    let offset = ref_offset.wrapping_add(plan.offset_shift);
    let guest_tsc = reference::guest_tsc(plan.scale, offset, now.host_tsc);
    let mut precision_ns = u64::from(saved.precision_ns);
    assert_eq!(Some(plan.scale), set.scale(), "{set:x?}");
    if saved.mode == MODE_EXACT {
        assert_eq!(plan.offset_shift, 0, "{set:x?}");
    } else {
        assert_eq!(Some(guest_tsc), set.guest_tsc(), "{set:x?}");
    }
    if let Some(factor) = set.other_factor() {
        assert_eq!(plan.record.factor(), factor, "{set:x?}");
        assert_eq!(plan.record.flags, saved.record.flags, "{set:x?}");
        // kvmclock begins at its value at the anchor, plus the time that the mode adds.
        let host_tsc = match saved.mode {
            MODE_EXACT => saved.host_tsc,
            _ => now.host_tsc,
        };
        let begin = reference::guest_tsc(plan.scale, offset, host_tsc);
        assert_eq!(plan.record.tsc_timestamp, begin, "{set:x?}");
        let added_ns = plan.record.system_time.wrapping_sub(saved.kvmclock_ns);
        // CAST: kvmclock is mod 2^64.
        assert_eq!(added_ns, set.added_ns() as u64, "{set:x?}");
        precision_ns += u64::from(reference::rounding_ns(&saved.record));
    } else if saved.mode == MODE_EXACT {
        assert_eq!(plan.record, saved.record, "{set:x?}");
    } else {
        let not_ahead = saved.record.not_ahead_of(guest_tsc);
        assert_eq!(Some(plan.record), not_ahead, "{set:x?}");
        let later = [0, 1, now.host_tsc.0, saved.host_tsc.0];
        arithmetic::moved(&saved.record, guest_tsc, &later);
    }
    let khz = here.host_khz.max(1);
    let pairing_ns = u64::from(reference::precision_ns(now.read_window, khz));
    if saved.mode == MODE_ADVANCE {
        precision_ns += pairing_ns;
    }
    let saturated = |ns: u64| u32::try_from(ns).unwrap_or(u32::MAX);
    assert_eq!(plan.precision_ns, saturated(precision_ns), "{set:x?}");

    // If KVM cannot pin the record.
    let transform = TscTransform {
        scale: plan.scale,
        offset,
    };
    let unpinned_ns = plan.precision_unpinned_ns(transform, now, actual_ns, khz);
    let expected_ns = reference::kvmclock_ns(&plan.record, guest_tsc);
    let error_ns = actual_ns
        .wrapping_sub(expected_ns)
        .min(expected_ns.wrapping_sub(actual_ns));
    let sum = u64::from(saturated(error_ns)) + pairing_ns + u64::from(plan.precision_ns);
    assert_eq!(unpinned_ns, saturated(sum), "{set:x?}");
}
