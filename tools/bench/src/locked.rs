// SPDX-License-Identifier: GPL-2.0-only

//! Measures how long the module locks the vCPUs, with kprobes on the functions that lock and unlock
//! them. The probes themselves take some instructions, which no other count includes.

use anyhow::{Context, Result};
use clockguest::trace::Kprobes;

/// The probes: name, kind and function.
const PROBES: [(&str, char, &str); 2] = [
    ("lock", 'p', "kvm_clock_guest_trylock_vcpus"),
    ("unlock", 'p', "kvm_clock_guest_unlock_vcpus"),
];

/// The active probes.
pub(crate) struct LockedTime(Kprobes);

impl LockedTime {
    /// Sets the probes.
    pub(crate) fn new() -> Result<Self> {
        let probes = Kprobes::new(&PROBES)?;
        probes.write("trace_clock", "x86-tsc")?;
        Ok(Self(probes))
    }

    /// Instructions from locking the first vCPU to unlocking the first one during `work`; `None` if
    /// none was locked.
    pub(crate) fn during(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<u64>> {
        self.0.clear()?;
        work()?;
        let trace = self.0.of_this_thread()?;
        let at = |name: &str| {
            trace
                .iter()
                .find(|event| event.name == name)
                .map(|event| event.time.parse::<u64>())
        };
        let Some(lock) = at("lock") else {
            return Ok(None);
        };
        let unlock = at("unlock").context("the vCPUs were not released")?;
        Ok(Some(unlock?.wrapping_sub(lock?)))
    }
}
