// SPDX-License-Identifier: GPL-2.0-only

//! A guest that runs until somebody has seen enough, its clocks saved and restored now and then.

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

/// Longest sleep until somebody may have seen enough.
const POLL: Duration = Duration::from_millis(50);

/// Who watches.
pub trait Watcher {
    /// Has seen enough, or can see no more.
    fn enough(&self) -> bool;

    /// Sees what became of the clocks so far, after a cycle.
    fn see(&mut self, so_far: &Summary);
}

/// Runs a guest, and pauses it once in `interval`, as by scenario pause; at most `config.cycles` times.
///
/// What goes wrong on the way is in the summary's `first_error`.
///
/// # Errors
///
/// Only if this host cannot do it at all: [`Unavailable`](crate::host::Unavailable), or a VM that
/// cannot be made.
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
    // The reading before the first cycle needs no waiting for.
    let mut wait = Duration::ZERO;
    loop {
        let run = observe::run(vm)?;
        let since = Instant::now();
        while since.elapsed() < wait && !watcher.enough() {
            sleep(POLL.min(wait.saturating_sub(since.elapsed())));
        }
        let (saved, reading) = stop_and_save(vm, run, config.method)?;
        let stopped = Instant::now();
        tally.add(reading);
        if tally.cycles_done() > 0 {
            watcher.see(tally.so_far());
        }
        if watcher.enough() || tally.cycles_done() >= config.cycles {
            return Ok(());
        }
        wait_downtime(config, stopped);
        saved.resume(vm)?;
        wait = interval;
    }
}
