// SPDX-License-Identifier: GPL-2.0-only

//! Runs a guest until the watcher is done, and pauses it regularly.

use super::{stop_and_save, wait_downtime, warm_up, Config};
use crate::{
    host::open_kvm,
    observe,
    summary::{Summary, Tally},
    vmm::Vm,
};
use anyhow::Result;
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// Interval at which to ask the watcher whether it is done.
const POLL: Duration = Duration::from_millis(50);

/// Receives the results.
pub trait Watcher {
    /// Whether to end the run.
    fn is_done(&self) -> bool;

    /// Receives the summary so far, after each cycle.
    fn update(&mut self, summary: &Summary);
}

/// Runs a guest, and pauses it once per `interval`, as scenario pause does; at most `config.cycles`
/// times.
///
/// The summary's `first_error` has failures of cycles.
///
/// # Errors
///
/// [`Unavailable`](crate::host::Unavailable), or if the VM cannot be created.
pub fn watch(config: &Config, interval: Duration, watcher: &mut dyn Watcher) -> Result<Summary> {
    let kvm = open_kvm(config.any_kvm)?;
    config.method.check(&Vm::empty(&kvm, 1)?)?;
    let vm = Vm::new(&kvm, config.vcpus)?;
    let mut tally = Tally::new(config);
    if let Err(error) = cycles(config, interval, &vm, &mut tally, watcher) {
        tally.fail(format!("after {} cycles: {error:#}", tally.cycles_done()));
    }
    Ok(tally.finish())
}

fn cycles(
    config: &Config,
    interval: Duration,
    vm: &Vm,
    tally: &mut Tally,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    warm_up(vm)?;
    // The reading before the first cycle needs no wait.
    let mut wait = Duration::ZERO;
    loop {
        let run = observe::run(vm)?;
        let since = Instant::now();
        while since.elapsed() < wait && !watcher.is_done() {
            sleep(POLL.min(wait.saturating_sub(since.elapsed())));
        }
        let (saved, reading) = stop_and_save(vm, run, config.method)?;
        let stopped = Instant::now();
        tally.add(reading);
        if tally.cycles_done() > 0 {
            watcher.update(tally.summary());
        }
        if watcher.is_done() || tally.cycles_done() >= config.cycles {
            return Ok(());
        }
        wait_downtime(config, stopped);
        saved.resume(vm)?;
        wait = interval;
    }
}
