// SPDX-License-Identifier: GPL-2.0-only

//! What happens to a VM between two readings: pause, snapshot, migration; over and over.

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

/// A scenario by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Stop all vCPUs, wait, let the same VM go on
    Pause,
    /// Save to a file, destroy the VM, restore into a new VM in a new process
    Snapshot,
    /// Stream to the new VM of a second process on this host, then destroy the old one
    Migrate,
}

impl Scenario {
    /// All of them, in the order of the demo's rows.
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

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// What happens to the VM.
    pub scenario: Scenario,
    /// How its clocks are saved and restored.
    pub method: Method,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// How often.
    pub cycles: u32,
    /// Time between stop and go; longer if the scenario's own work takes longer.
    pub downtime: Duration,
    /// Use `/dev/kvm` whichever module is behind it.
    pub any_kvm: bool,
}

/// Runs the cycles of `config`, and sums up.
///
/// What goes wrong on the way is in the summary's `first_error`.
///
/// # Errors
///
/// Only if this host cannot do it at all: [`Unavailable`](crate::host::Unavailable), or a first VM
/// that cannot be made.
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

/// Lets the vCPUs of a new VM run once, so that KVM has done what it puts off until then: it enables
/// the master clock and re-bases it when each vCPU first runs.
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

/// Sleeps what is left of the downtime of a VM that stopped at `stopped`.
fn wait_downtime(config: &Config, stopped: Instant) {
    sleep(config.downtime.saturating_sub(stopped.elapsed()));
}
