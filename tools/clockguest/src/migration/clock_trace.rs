// SPDX-License-Identifier: GPL-2.0-only

//! What the kernel's timekeeping told `KVM_SET_VM_CLOCK_GUEST`, from outside: a kprobe on the function
//! that the module reads the clocks by.
//!
//! Only so can the error that the operation made be told from that of the clocks it was given. Needs
//! root, tracefs and a kernel with kprobe events; for tests.

use super::message::SetAt;
use crate::host::{
    tracefs_with,
    TRACEFS, //
};
use anyhow::{
    bail,
    Context,
    Result, //
};
use kvm_clock_ioctls::VmClock;
use std::{
    fs::{
        self,
        OpenOptions, //
    },
    io::Write,
    path::{
        Path,
        PathBuf, //
    },
    process,
    sync::atomic::{
        AtomicU32,
        Ordering, //
    },
};
use vmm_sys_util::errno;

/// `cycles` and `systime` (CLOCK_MONOTONIC here) of `struct system_time_snapshot`, when the function
/// that filled it in returns.
const PROBE: &str = "ktime_get_snapshot_id cycles=+0($arg2):u64 mono=+16($arg2):s64";

/// A kprobe and a trace buffer of our own; dropping it removes both.
#[derive(Debug)]
pub(super) struct ClockTrace {
    tracefs: &'static Path,
    group: String,
}

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
    /// If there is no tracefs, or the kernel refuses the probe.
    pub(super) fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let Some(tracefs) = tracefs_with("kprobe_events") else {
            bail!("no kprobe_events in tracefs at {TRACEFS:?}: this needs root, and a kernel with CONFIG_KPROBE_EVENTS");
        };
        let trace = Self {
            tracefs,
            group: format!("clockguest_{}_{number}", process::id()),
        };
        let instance = trace.instance();
        fs::create_dir(&instance).with_context(|| format!("mkdir {}", instance.display()))?;
        trace.define(&format!("r:{}/snapshot {PROBE}\n", trace.group))?;
        trace.write(&format!("events/{}/snapshot/enable", trace.group), "1")?;
        Ok(trace)
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
        self.write("trace", "")?;
        let done = set();
        if done.is_err() {
            return Ok((done, None));
        }
        let of_set = self.first()?;
        self.write("trace", "")?;
        let clock = get().context("KVM_GET_VM_CLOCK_GUEST")?;
        let of_get = self.first()?;
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

    /// The first snapshot that this thread took since the buffer was cleared.
    fn first(&self) -> Result<Snapshot> {
        let path = self.instance().join("trace");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // SAFETY: It has no arguments and cannot fail.
        let thread = unsafe { libc::gettid() };
        first_of(&text, thread)
            .with_context(|| format!("no snapshot of the clocks was seen in\n{text}"))
    }

    fn instance(&self) -> PathBuf {
        self.tracefs.join("instances").join(&self.group)
    }

    fn define(&self, line: &str) -> Result<()> {
        let path = self.tracefs.join("kprobe_events");
        let written = OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        written.with_context(|| format!("{} refuses '{}'", path.display(), line.trim_end()))
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.instance().join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for ClockTrace {
    fn drop(&mut self) {
        let removed = fs::remove_dir(self.instance())
            .map_err(anyhow::Error::from)
            .and_then(|()| self.define(&format!("-:{}/snapshot\n", self.group)));
        if let Err(error) = removed {
            eprintln!("clockguest: the kprobe is left behind: {error:#}");
        }
    }
}

/// The first snapshot of `thread` in a trace.
fn first_of(trace: &str, thread: libc::pid_t) -> Option<Snapshot> {
    let of_thread = format!("-{thread}");
    trace.lines().find_map(|line| {
        let (task, event) = line.split_once(" [")?;
        if !task.trim_end().ends_with(&of_thread) {
            return None;
        }
        let field = |name: &str| {
            let (_, value) = event.split_once(&format!(" {name}="))?;
            value.split_whitespace().next()
        };
        Some(Snapshot {
            host_tsc: field("cycles")?.parse().ok()?,
            mono_ns: field("mono")?.parse().ok()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_of_its_thread() {
        let trace = "\
# tracer: nop
     other task-12    [001] .....  1.000001: snapshot: (f <- ktime_get_snapshot_id) cycles=1 mono=2
      clockguest-112   [000] .....  1.000002: snapshot: (f <- ktime_get_snapshot_id) cycles=3 mono=4
      clockguest-112   [000] .....  1.000003: snapshot: (f <- ktime_get_snapshot_id) cycles=5 mono=6
";
        let found = Snapshot {
            host_tsc: 3,
            mono_ns: 4,
        };
        assert_eq!(first_of(trace, 112), Some(found));
        assert_eq!(first_of(trace, 7), None);
    }
}
