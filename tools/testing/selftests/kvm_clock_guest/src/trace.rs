// SPDX-License-Identifier: GPL-2.0-only

//! The clock updates that KVM makes, counted by its tracepoints.

use crate::ktap::Skip;
use anyhow::{bail, Context, Result};
use clockguest::host::{tracefs_with, TRACEFS};
use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// A VM's master clock is taken anew.
const MASTER: &str = "kvm_update_master_clock";
/// A vCPU's record is written.
const RECORD: &str = "kvm_pvclock_update";

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

/// A trace buffer of our own; dropping it ends the tracing.
#[derive(Debug)]
pub struct Trace {
    instance: PathBuf,
}

impl Trace {
    /// Starts counting.
    ///
    /// # Errors
    ///
    /// [`Skip`] if the kernel does not have tracefs or KVM's tracepoints; those of tracefs.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        let Some(tracefs) = tracefs_with(&format!("events/kvm/{MASTER}")) else {
            bail!(Skip(format!(
                "no tracepoint kvm:{MASTER} in tracefs at {TRACEFS:?}"
            )));
        };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let instance = tracefs.join(format!(
            "instances/kvm-clock-guest-{}-{number}",
            process::id()
        ));
        fs::create_dir(&instance).with_context(|| format!("mkdir {}", instance.display()))?;
        let trace = Self { instance };
        for event in [MASTER, RECORD] {
            trace.write(&format!("events/kvm/{event}/enable"), "1")?;
        }
        Ok(trace)
    }

    /// The updates since the last call. No vCPU of this process runs meanwhile.
    ///
    /// # Errors
    ///
    /// Those of tracefs.
    pub fn take(&self) -> Result<Updates> {
        let path = self.instance.join("trace");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        self.write("trace", "")?;
        let mut updates = Updates::default();
        for line in text.lines() {
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

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.instance.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.instance) {
            eprintln!("cannot remove {}: {error}", self.instance.display());
        }
    }
}
