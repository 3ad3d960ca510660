// SPDX-License-Identifier: GPL-2.0-only

//! Repeated cycles of save and restore: pause, snapshot, migration.

mod migrate;
mod pause;
mod process;
mod program;
mod snapshot;
pub mod watch;
pub mod worker;

use crate::{
    host::open_kvm,
    measure::Reading,
    method::{Method, Saved},
    observe::{self, Run},
    progress::Progress,
    summary::{Summary, Tally},
    vmm::{self, Vm},
};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// A scenario.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Stop all vCPUs, wait, run the same VM again
    #[default]
    Pause,
    /// Save to a file, destroy the VM, restore into a new VM in a new process
    Snapshot,
    /// Stream to a new VM in a second process on this host, then destroy the old VM
    Migrate,
}

impl Scenario {
    /// All scenarios, in the order of the demo's rows.
    pub const ALL: [Self; 3] = [Self::Pause, Self::Snapshot, Self::Migrate];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Snapshot => "snapshot",
            Self::Migrate => "migrate",
        }
    }
}

/// Parameters of a run.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The scenario.
    pub scenario: Scenario,
    /// The method to save and restore the clocks.
    pub method: Method,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Number of cycles.
    pub cycles: u32,
    /// Minimum time from stop to run.
    pub downtime: Duration,
    /// Use `/dev/kvm` even if no CPU vendor's module is loaded.
    pub any_kvm: bool,
}

/// Runs the cycles of `config`, and returns their summary.
///
/// The summary's `first_error` has failures of cycles.
///
/// # Errors
///
/// [`Unavailable`](crate::host::Unavailable), or if the first VM cannot be created.
pub fn run(config: &Config, progress: &mut Progress) -> Result<Summary> {
    let kvm = open_kvm(config.any_kvm)?;
    config.method.check(&Vm::empty(&kvm, 1)?)?;

    progress.begin();
    let mut tally = Tally::new(config);
    let mut each = |reading: Reading| {
        tally.add(reading);
        progress.update(tally.cycles_done());
    };
    let result = match config.scenario {
        Scenario::Pause => pause::run(config, &kvm, &mut each),
        Scenario::Snapshot => snapshot::run(config, &mut each),
        Scenario::Migrate => migrate::run(config, &mut each),
    };
    if let Err(error) = result {
        tally.fail(format!("after {} cycles: {error:#}", tally.cycles_done()));
    }
    Ok(tally.finish())
}

/// Runs the vCPUs of a new VM once: KVM enables the master clock, and re-bases it, when each vCPU
/// first runs.
pub(crate) fn warm_up(vm: &Vm) -> vmm::Result<()> {
    observe::run(vm)?;
    vm.stop()
}

/// Stops `vm`, saves its clocks at once, and completes the reading.
pub(crate) fn stop_and_save(vm: &Vm, run: Run, method: Method) -> vmm::Result<(Saved, Reading)> {
    vm.stop()?;
    let host_stop = crate::host::rdtsc_ordered();
    let saved = method.save(vm)?;
    let precision_ns = saved.precision_ns();
    let reading = Reading {
        precision_ns,
        ..run.finish(vm, host_stop)?
    };
    Ok((saved, reading))
}

/// Sleeps for the rest of the downtime of a VM that stopped at `stopped`.
fn wait_downtime(config: &Config, stopped: Instant) {
    sleep(config.downtime.saturating_sub(stopped.elapsed()));
}
