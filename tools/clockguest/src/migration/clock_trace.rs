// SPDX-License-Identifier: GPL-2.0-only

//! Traces the clock snapshot that `KVM_SET_VM_CLOCK_GUEST` uses, with a kprobe on the function from
//! which the module reads the clocks. For tests: it separates the restore's error from that of
//! the clocks.

use super::message::SetAt;
use crate::trace::{Event, Kprobes};
use anyhow::{bail, Context, Result};
use kvm_clock::VmClock;
use pvclock::counter::HostTsc;

/// `cycles` and `systime` (CLOCK_MONOTONIC here) of `struct system_time_snapshot`, when the
/// function that fills it in returns.
const PROBE: (&str, char, &str) = (
    "snapshot",
    'r',
    "ktime_get_snapshot_id cycles=+0($arg2):u64 mono=+16($arg2):s64",
);

/// The active probe.
#[derive(Debug)]
pub(super) struct ClockTrace(Kprobes);

/// The result of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Snapshot {
    host_tsc: HostTsc,
    mono_ns: i64,
}

impl ClockTrace {
    /// Sets the probe.
    pub(super) fn new() -> Result<Self> {
        Ok(Self(Kprobes::new(&[PROBE])?))
    }

    /// Runs `set`, which calls the ioctl on this thread, then `get`; returns the result of `set`,
    /// and, if it succeeded, the instant that it used.
    ///
    /// # Errors
    ///
    /// Those of `get` and tracefs.
    pub(super) fn trace_set<T, E>(
        &self,
        set: impl FnOnce() -> Result<T, E>,
        get: impl FnOnce() -> kvm_clock::Result<VmClock>,
    ) -> Result<(Result<T, E>, Option<SetAt>)> {
        self.0.clear()?;
        let done = set();
        if done.is_err() {
            return Ok((done, None));
        }
        let of_set = self.snapshot_used()?;
        self.0.clear()?;
        let clock = get().context("KVM_GET_VM_CLOCK_GUEST")?;
        let of_get = self.snapshot_used()?;
        if clock.header.host_tsc != of_get.host_tsc {
            bail!(
                "GET returned host TSC {}, but the traced snapshot is of {}: the probe does not see the \
                 module's snapshots",
                clock.header.host_tsc,
                of_get.host_tsc
            );
        }
        // TAI minus MONOTONIC changes only when somebody sets a clock.
        let tai_minus_mono_ns = clock.header.tai_ns - of_get.mono_ns;
        let at = SetAt {
            host_tsc: of_set.host_tsc,
            tai_ns: of_set.mono_ns + tai_minus_mono_ns,
            tai_offset_s: clock.header.tai_offset_s,
        };
        Ok((done, Some(at)))
    }

    /// The snapshot that this thread's last call since [`Kprobes::clear`] used. SET takes one to
    /// find out whether anything needs writing, and another with all vCPUs locked.
    fn snapshot_used(&self) -> Result<Snapshot> {
        let events = self.0.of_this_thread()?;
        let used = events.last().and_then(snapshot);
        used.with_context(|| format!("no clock snapshot in the trace {events:?}"))
    }
}

fn snapshot(event: &Event) -> Option<Snapshot> {
    Some(Snapshot {
        host_tsc: HostTsc(event.field("cycles")?.parse().ok()?),
        mono_ns: event.field("mono")?.parse().ok()?,
    })
}
