// SPDX-License-Identifier: GPL-2.0-only

//! Counts of the calls and of the guest's readings.

use crate::observers::Stop;
use kvm_clock_guest_selftests::prelude::*;
use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

/// How often everything must happen, and how long that may take.
const ENOUGH: u64 = 50;
const PATIENCE: Duration = Duration::from_secs(120);

/// Counts that threads add to.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// How often everything happened; vectors have an element per state.
#[derive(Debug)]
pub(crate) struct Counts {
    /// GETs of the VM.
    pub(crate) gets: Vec<Counter>,
    /// GETs of a vCPU.
    pub(crate) vcpu_gets: Vec<Counter>,
    /// SETs that succeeded.
    pub(crate) sets: Vec<Counter>,
    /// SETs that failed with EBUSY.
    pub(crate) busy: Counter,
    /// SETs that failed because a vCPU was created meanwhile.
    pub(crate) outdated: Counter,
    /// The guest's readings.
    pub(crate) readings: Vec<Counter>,
    /// vCPUs created.
    pub(crate) created: Counter,
    /// VM descriptors duplicated and closed.
    pub(crate) closed: Counter,
}

impl Counts {
    pub(crate) fn new(states: usize) -> Self {
        let by_state = || (0..states).map(|_| Counter::default()).collect();
        Self {
            gets: by_state(),
            vcpu_gets: by_state(),
            sets: by_state(),
            busy: Counter::default(),
            outdated: Counter::default(),
            readings: by_state(),
            created: Counter::default(),
            closed: Counter::default(),
        }
    }

    /// Whether every state was SET, and seen by all observers, so `often`.
    pub(crate) fn has_seen(&self, often: u64) -> bool {
        let counts = [&self.gets, &self.vcpu_gets, &self.sets, &self.readings];
        counts
            .into_iter()
            .flatten()
            .all(|count| count.get() >= often)
    }
}

/// How often everything must happen.
pub(crate) struct Enough {
    least: u64,
    patience: Duration,
}

impl Enough {
    /// From `--times=N`.
    pub(crate) fn new() -> Result<Self> {
        let least = option("times", ENOUGH)?;
        // CAST: More is not useful.
        let patience = PATIENCE * least.div_ceil(ENOUGH) as u32;
        Ok(Self { least, patience })
    }

    /// Returns when every state was SET, and seen by all observers, so often and `also` is true; or
    /// when all threads end.
    pub(crate) fn wait(
        &self,
        counts: &Counts,
        stop: &Stop,
        also: impl Fn(u64) -> bool,
    ) -> Result<()> {
        let Self { least, patience } = *self;
        let start = Instant::now();
        while !(stop.is_now() || counts.has_seen(least) && also(least)) {
            ensure!(
                start.elapsed() < patience,
                "in {patience:?} only {counts:?}"
            );
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}
