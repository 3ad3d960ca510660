// SPDX-License-Identifier: GPL-2.0-only

//! How long the module holds all vCPUs out of the guest, by kprobes on the functions that take and release
//! them. A probe costs some instructions itself: these are no part of any other count.

use anyhow::{Context, Result};
use clockguest::trace::Kprobes;

/// The probes, by name, and where they are.
const PROBES: [(&str, char, &str); 2] = [
    ("hold", 'p', "kvm_clock_guest_trylock_vcpus"),
    ("release", 'p', "kvm_clock_guest_unlock_vcpus"),
];

/// The probes, set.
pub(crate) struct Held(Kprobes);

impl Held {
    /// Sets them.
    pub(crate) fn new() -> Result<Self> {
        let probes = Kprobes::new(&PROBES)?;
        probes.write("trace_clock", "x86-tsc")?;
        Ok(Self(probes))
    }

    /// Instructions from before the first vCPU is taken to the release of the first, while `work` is done; `None` if none was
    /// taken.
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
        let Some(hold) = at("hold") else {
            return Ok(None);
        };
        let release = at("release").context("the vCPUs were not released")?;
        Ok(Some(release?.wrapping_sub(hold?)))
    }
}
