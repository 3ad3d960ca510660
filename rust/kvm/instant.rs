// SPDX-License-Identifier: GPL-2.0-only

//! The anchor: host TSC and host clocks of one instant, or as close to one as the host allows.
//!
//! C header: [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use super::bindings;
use crate::pvclock::plan::Instant;
use core::mem::MaybeUninit;

const NSEC_PER_SEC: i64 = 1_000_000_000;

/// The present instant. Its `spread` is 0 if the host keeps its time by a stable TSC, and only
/// then.
///
/// `None` if timekeeping has no snapshot to give.
pub(crate) fn now() -> Option<Instant> {
    loop {
        let before = rdtsc();
        let snapshot = snapshot()?;
        let after = rdtsc();
        let mono = snapshot.systime;
        let tai_ns = mono_to(mono, bindings::tk_offsets_TK_OFFS_TAI);
        let real_ns = mono_to(mono, bindings::tk_offsets_TK_OFFS_REAL);
        let boot_ns = mono_to(mono, bindings::tk_offsets_TK_OFFS_BOOT);

        // `ktime_get_snapshot_id()` has no CLOCK_TAI. The offsets are good for the snapshot unless
        // the clock was set, or a leap second taken, in between.
        if self::snapshot()?.clock_was_set_seq != snapshot.clock_was_set_seq {
            continue;
        }
        let bracket = after.wrapping_sub(before).max(1);
        let (host_tsc, spread) = match host_tsc_of(&snapshot) {
            Some(host_tsc) => (host_tsc, 0),
            None => (before.wrapping_add(bracket / 2), bracket),
        };
        return Some(Instant {
            host_tsc,
            spread,
            tai_ns,
            // CAST: A count of leap seconds.
            tai_offset_s: ((tai_ns - real_ns) / NSEC_PER_SEC) as i32,
            monotonic_raw_ns: snapshot.monoraw,
            boot_offset_ns: boot_ns - mono,
        });
    }
}

/// The host's calibrated TSC rate, kHz; `None` while it is not known.
pub(crate) fn host_tsc_khz() -> Option<u32> {
    // SAFETY: `tsc_khz` is written by the calibration only, as one word.
    let khz = unsafe { core::ptr::addr_of!(bindings::tsc_khz).read_volatile() };
    (khz != 0).then_some(khz)
}

fn snapshot() -> Option<bindings::system_time_snapshot> {
    let mut snapshot = MaybeUninit::<bindings::system_time_snapshot>::zeroed();
    // CAST: A small constant; `clockid_t` is signed.
    let clock = bindings::CLOCK_MONOTONIC as bindings::clockid_t;
    // SAFETY: `snapshot` is valid for writes.
    unsafe { bindings::ktime_get_snapshot_id(clock, snapshot.as_mut_ptr()) };
    // SAFETY: The structure holds integers only, and was zeroed.
    let snapshot = unsafe { snapshot.assume_init() };
    (snapshot.valid != 0).then_some(snapshot)
}

/// The host TSC that a snapshot was computed from, if it was, and if that TSC is stable.
fn host_tsc_of(snapshot: &bindings::system_time_snapshot) -> Option<u64> {
    // SAFETY: No requirements.
    if unsafe { bindings::check_tsc_unstable() } != 0 {
        return None;
    }
    const TSC: bindings::clocksource_ids = bindings::clocksource_ids_CSID_X86_TSC;
    match (snapshot.cs_id, snapshot.hw_csid) {
        (TSC, _) => Some(snapshot.cycles),
        // E.g. Hyper-V's TSC page, which is computed from the TSC.
        (_, TSC) => Some(snapshot.hw_cycles),
        _ => None,
    }
}

fn rdtsc() -> u64 {
    // SAFETY: No requirements.
    unsafe { bindings::rust_helper_rdtsc_ordered() }
}

fn mono_to(mono_ns: i64, offset: bindings::tk_offsets) -> i64 {
    // SAFETY: `offset` is one of `enum tk_offsets`.
    unsafe { bindings::ktime_mono_to_any(mono_ns, offset) }
}
