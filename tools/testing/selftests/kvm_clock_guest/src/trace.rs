// SPDX-License-Identifier: GPL-2.0-only

//! Tracepoints of the kernel; and the clock updates that KVM makes, counted with them.

use crate::ktap::Skip;
use anyhow::{bail, Context, Result};
use clockguest::host::{tracefs_with, TRACEFS};
use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// KVM updates a VM's master clock.
const MASTER: &str = "kvm_update_master_clock";
/// KVM writes a vCPU's record.
const RECORD: &str = "kvm_pvclock_update";

/// A trace buffer of our own; dropping it ends the tracing.
#[derive(Debug)]
pub struct Buffer {
    instance: PathBuf,
}

impl Buffer {
    /// Starts tracing `events` of `group`.
    ///
    /// Fails with [`Skip`] if the kernel does not have tracefs or these events.
    pub fn new(group: &str, events: &[&str], size_kb: Option<u32>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        let Some(tracefs) = tracefs_with(&format!("events/{group}/{}", events[0])) else {
            bail!(Skip(format!(
                "no tracepoint {group}:{} in tracefs at {TRACEFS:?}",
                events[0]
            )));
        };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("instances/kvm-clock-guest-{}-{number}", process::id());
        let instance = tracefs.join(name);
        fs::create_dir(&instance).with_context(|| format!("mkdir {}", instance.display()))?;
        let buffer = Self { instance };
        if let Some(size) = size_kb {
            buffer.write("buffer_size_kb", &size.to_string())?;
        }
        for event in events {
            buffer.write(&format!("events/{group}/{event}/enable"), "1")?;
        }
        Ok(buffer)
    }

    /// The lines of the trace since the last call.
    pub fn take(&self) -> Result<String> {
        let path = self.instance.join("trace");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        self.write("trace", "")?;
        Ok(text)
    }

    /// Writes a file of the buffer.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.instance.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.instance) {
            eprintln!("cannot remove {}: {error}", self.instance.display());
        }
    }
}

/// Clock updates that vCPUs of this process, or its ioctls, made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Updates {
    /// Master clock updates after which the VM has a master clock.
    pub master_on: usize,
    /// Master clock updates after which it has none; the creation of a VM is one.
    pub master_off: usize,
    /// Records written to guest memory.
    pub records: usize,
}

impl Updates {
    /// Master clock updates.
    pub fn master(self) -> usize {
        self.master_on + self.master_off
    }
}

/// Counts clock updates.
#[derive(Debug)]
pub struct Trace(Buffer);

impl Trace {
    /// Starts counting; as [`Buffer::new`].
    pub fn new() -> Result<Self> {
        Ok(Self(Buffer::new("kvm", &[MASTER, RECORD], None)?))
    }

    /// The updates since the last call. No vCPU of this process runs meanwhile.
    pub fn take(&self) -> Result<Updates> {
        let mut updates = Updates::default();
        for line in self.0.take()?.lines() {
            let Some((task, event)) = line.split_once(" [") else {
                continue;
            };
            // The name of a task may have any characters, its id is the last word.
            let id = task.trim_end().rsplit('-').next().unwrap_or_default();
            if !Path::new("/proc/self/task").join(id).is_dir() {
                continue;
            }
            if let Some((_, about)) = event.split_once(&format!(" {MASTER}: ")) {
                match about.starts_with("masterclock 0") {
                    true => updates.master_off += 1,
                    false => updates.master_on += 1,
                }
            } else if event.contains(&format!(" {RECORD}: ")) {
                updates.records += 1;
            }
        }
        Ok(updates)
    }
}
