// SPDX-License-Identifier: GPL-2.0-only

//! The anchor: host TSC and host clocks of one instant.
//!
//! C header: [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use super::bindings;
use crate::pvclock::plan::Instant;
use core::mem::MaybeUninit;

const NSEC_PER_SEC: i64 = 1_000_000_000;

/// The present instant; `None` if the host does not keep its time by a stable TSC.
pub(crate) fn now() -> Option<Instant> {
    // SAFETY: No requirements.
    if unsafe { bindings::check_tsc_unstable() } != 0 {
        return None;
    }
    loop {
        let snapshot = snapshot()?;
        let mono = snapshot.systime;
        let tai_ns = mono_to(mono, bindings::tk_offsets_TK_OFFS_TAI);
        let real_ns = mono_to(mono, bindings::tk_offsets_TK_OFFS_REAL);
        let boot_ns = mono_to(mono, bindings::tk_offsets_TK_OFFS_BOOT);

        // `ktime_get_snapshot_id()` has no CLOCK_TAI. The offsets are good for the snapshot unless
        // the clock was set, or a leap second taken, in between.
        if self::snapshot()?.clock_was_set_seq != snapshot.clock_was_set_seq {
            continue;
        }
        return Some(Instant {
            host_tsc: host_tsc_of(&snapshot)?,
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

fn host_tsc_of(snapshot: &bindings::system_time_snapshot) -> Option<u64> {
    const TSC: bindings::clocksource_ids = bindings::clocksource_ids_CSID_X86_TSC;
    match (snapshot.cs_id, snapshot.hw_csid) {
        (TSC, _) => Some(snapshot.cycles),
        // E.g. Hyper-V's TSC page, which is computed from the TSC.
        (_, TSC) => Some(snapshot.hw_cycles),
        _ => None,
    }
}

fn mono_to(mono_ns: i64, offset: bindings::tk_offsets) -> i64 {
    // SAFETY: `offset` is one of `enum tk_offsets`.
    unsafe { bindings::ktime_mono_to_any(mono_ns, offset) }
}
