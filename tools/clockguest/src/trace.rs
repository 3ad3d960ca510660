// SPDX-License-Identifier: GPL-2.0-only

//! Trace buffers of our own, so that nobody else's tracing is disturbed, and kprobes in them.
//!
//! They need root and tracefs; kprobes also need a kernel with kprobe events.

use crate::host::{tracefs_with, TRACEFS};
use anyhow::{bail, Context, Result};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// A trace buffer (an instance of tracefs) with its own settings; drop removes it.
#[derive(Debug)]
pub struct Instance {
    path: PathBuf,
}

/// Probes and their buffer; drop removes both.
#[derive(Debug)]
pub struct Kprobes {
    /// Declared first: the probes can go when the buffer is gone.
    instance: Instance,
    probes: Probes,
}

#[derive(Debug)]
struct Probes {
    tracefs: &'static Path,
    group: String,
    names: Vec<String>,
}

/// A hit of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its thread.
    pub thread: libc::pid_t,
    /// The probe's or tracepoint's name.
    pub name: String,
    /// Its time in the buffer's `trace_clock`.
    pub time: String,
    /// Its location and fields.
    pub text: String,
}

impl Event {
    /// The event in a line of a trace; `None` for any other line.
    pub fn parse(line: &str) -> Option<Self> {
        let (task, event) = line.split_once(" [")?;
        let (_, thread) = task.trim_end().rsplit_once('-')?;
        // CPU, flags and time; name; location and fields.
        let (at, event) = event.split_once(": ")?;
        let (name, text) = event.split_once(": ")?;
        Some(Self {
            thread: thread.parse().ok()?,
            name: name.to_owned(),
            time: at.split_whitespace().last()?.to_owned(),
            text: text.to_owned(),
        })
    }

    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        let (_, value) = self.text.split_once(&format!(" {name}="))?;
        value.split_whitespace().next()
    }
}

impl Instance {
    /// Makes a buffer in `tracefs`. Its name has this process' ID.
    ///
    /// # Errors
    ///
    /// That of making its folder.
    pub fn new(tracefs: &Path) -> io::Result<Self> {
        let path = tracefs.join("instances").join(unique_name());
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    /// A file of the buffer, e.g. `trace_pipe`.
    pub fn file(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }

    /// Writes a file of the buffer, e.g. `trace_clock`.
    ///
    /// # Errors
    ///
    /// That of writing it.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.file(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!("clockguest: rmdir {}: {error}", self.path.display());
        }
    }
}

/// A name that no other process uses, and this one only once.
fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);

    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("clockguest_{}_{number}", process::id())
}

impl Kprobes {
    /// Sets probes, each with its name and the parts of its `kprobe_events` line before and after
    /// the name: `p` or `r`, then function and fields.
    ///
    /// # Errors
    ///
    /// If tracefs is missing, or the kernel refuses a probe.
    pub fn new(probes: &[(&str, char, &str)]) -> Result<Self> {
        let Some(tracefs) = tracefs_with("kprobe_events") else {
            bail!("no kprobe_events in tracefs at {TRACEFS:?}: this needs root, and a kernel with CONFIG_KPROBE_EVENTS");
        };
        let instance = Instance::new(tracefs)
            .with_context(|| format!("cannot make a buffer in {}", tracefs.display()))?;
        let mut this = Self {
            instance,
            probes: Probes {
                tracefs,
                group: unique_name(),
                names: Vec::new(),
            },
        };
        for (name, kind, at) in probes {
            let group = this.probes.group.clone();
            this.probes
                .define(&format!("{kind}:{group}/{name} {at}\n"))?;
            this.probes.names.push((*name).to_owned());
            this.write(&format!("events/{group}/{name}/enable"), "1")?;
        }
        Ok(this)
    }

    /// This thread's events since the buffer was cleared, oldest first.
    ///
    /// # Errors
    ///
    /// That of reading the buffer.
    pub fn of_this_thread(&self) -> Result<Vec<Event>> {
        let path = self.instance.file("trace");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // SAFETY: gettid() has no arguments and cannot fail.
        let thread = unsafe { libc::gettid() };
        Ok(events_of(&text, thread))
    }

    /// Clears the buffer.
    ///
    /// # Errors
    ///
    /// That of writing the file.
    pub fn clear(&self) -> Result<()> {
        self.write("trace", "")
    }

    /// Writes a file in the buffer's folder, e.g. `trace_clock`.
    ///
    /// # Errors
    ///
    /// That of writing it.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        self.instance.write(file, text)
    }
}

impl Probes {
    fn define(&self, line: &str) -> Result<()> {
        let path = self.tracefs.join("kprobe_events");
        let written = OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        written.with_context(|| format!("{} refuses '{}'", path.display(), line.trim_end()))
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        let mut names = self.names.iter();
        let removed = names.try_for_each(|name| self.define(&format!("-:{}/{name}\n", self.group)));
        if let Err(error) = removed {
            eprintln!("clockguest: cannot remove a kprobe: {error:#}");
        }
    }
}

/// The events of `thread` in a trace.
fn events_of(trace: &str, thread: libc::pid_t) -> Vec<Event> {
    let events = trace.lines().filter_map(Event::parse);
    events.filter(|event| event.thread == thread).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_the_thread_are_found() {
        let trace = "\
# tracer: nop
     other task-12    [001] .....  1.000001: snapshot: (f <- ktime_get_snapshot_id) cycles=1 mono=2
      clockguest-112   [000] .....  1.000002: snapshot: (f <- ktime_get_snapshot_id) cycles=3 mono=4
      clockguest-112   [000] ..... 812345: lock: (kvm_clock_guest_trylock_vcpus+0x4/0x10)
";
        let events = events_of(trace, 112);
        let seen: Vec<_> = events
            .iter()
            .map(|event| (event.name.as_str(), event.time.as_str()))
            .collect();
        assert_eq!(seen, [("snapshot", "1.000002"), ("lock", "812345")]);
        assert_eq!(
            (events[0].field("cycles"), events[0].field("mono")),
            (Some("3"), Some("4"))
        );
        assert_eq!(events[1].field("cycles"), None);
        assert!(events_of(trace, 7).is_empty());
    }
}
