// SPDX-License-Identifier: GPL-2.0-only

//! What the kernel's timekeeping told `KVM_SET_VM_CLOCK_GUEST`, from outside: a kprobe on the function
//! that the module reads the clocks by.
//!
//! Only so can the error that the operation made be told from that of the clocks it was given; for tests.

use super::message::SetAt;
use crate::trace::{Event, Kprobes};
use anyhow::{bail, Context, Result};
use kvm_clock::VmClock;
use vmm_sys_util::errno;

/// `cycles` and `systime` (CLOCK_MONOTONIC here) of `struct system_time_snapshot`, when the function
/// that filled it in returns.
const PROBE: (&str, char, &str) = (
    "snapshot",
    'r',
    "ktime_get_snapshot_id cycles=+0($arg2):u64 mono=+16($arg2):s64",
);

/// The probe, set.
#[derive(Debug)]
pub(super) struct ClockTrace(Kprobes);

/// What the function returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Snapshot {
    host_tsc: u64,
    mono_ns: i64,
}

impl ClockTrace {
    /// Sets the probe.
    ///
    /// # Errors
    ///
    /// Those of [`Kprobes::new`].
    pub(super) fn new() -> Result<Self> {
        Ok(Self(Kprobes::new(&[PROBE])?))
    }

    /// Runs `set`, which calls the ioctl on this thread, then `get`; returns what `set` did, and, if it
    /// succeeded, the instant that it did it by.
    ///
    /// # Errors
    ///
    /// Those of `get` and tracefs.
    pub(super) fn around(
        &self,
        set: impl FnOnce() -> errno::Result<()>,
        get: impl FnOnce() -> errno::Result<VmClock>,
    ) -> Result<(errno::Result<()>, Option<SetAt>)> {
        self.0.clear()?;
        let done = set();
        if done.is_err() {
            return Ok((done, None));
        }
        let of_set = self.used()?;
        self.0.clear()?;
        let clock = get().context("KVM_GET_VM_CLOCK_GUEST")?;
        let of_get = self.used()?;
        if clock.header.host_tsc != of_get.host_tsc {
            bail!(
                "GET says host TSC {}, but the clocks were read at {}: the probe does not see what \
                 the module reads",
                clock.header.host_tsc,
                of_get.host_tsc
            );
        }
        // TAI minus MONOTONIC changes only when a clock is set.
        let tai_minus_mono_ns = clock.header.tai_ns - of_get.mono_ns;
        let at = SetAt {
            host_tsc: of_set.host_tsc,
            tai_ns: of_set.mono_ns + tai_minus_mono_ns,
            tai_offset_s: clock.header.tai_offset_s,
        };
        Ok((done, Some(at)))
    }

    /// The snapshot by which this thread's last call since the buffer was cleared did its work. SET
    /// reads the clocks to see whether anything is to be written at all, and again when no vCPU can run;
    /// each reading is followed by a second snapshot, to see that nobody set the clocks meanwhile.
    fn used(&self) -> Result<Snapshot> {
        let events = self.0.of_this_thread()?;
        let used = events.iter().rev().nth(1).and_then(snapshot);
        used.with_context(|| format!("no snapshot of the clocks was seen in {events:?}"))
    }
}

fn snapshot(event: &Event) -> Option<Snapshot> {
    Some(Snapshot {
        host_tsc: event.field("cycles")?.parse().ok()?,
        mono_ns: event.field("mono")?.parse().ok()?,
    })
}
