// SPDX-License-Identifier: GPL-2.0-only

//! Saves to a file, destroys the VM and its process, and restores into a new VM in a new process.

use super::{process::Process, program::Program, wait_downtime, worker::Channel, Config};
use crate::measure::Reading;
use anyhow::{Context, Result};
use std::time::Instant;
use vmm_sys_util::tempdir::TempDir;

pub(super) fn run(config: &Config, each: &mut dyn FnMut(Reading)) -> Result<()> {
    let folder = TempDir::new_with_prefix(std::env::temp_dir().join("clockguest-"))
        .context("cannot create a temporary folder for the snapshot")?;
    let file = folder.as_path().join("snapshot");

    let program = Program::this()?;
    let mut vm = Process::spawn(&program, config)?;
    vm.create(config.vcpus)?;
    vm.run()?;
    for _ in 0..config.cycles {
        each(vm.stop(Some(Channel::File(file.clone())))?);
        let stopped = Instant::now();
        vm.quit()?;
        vm = Process::spawn(&program, config)?;
        vm.load(Channel::File(file.clone()))?;
        vm.wait_ready()?;
        wait_downtime(config, stopped);
        vm.run()?;
    }
    each(vm.stop(None)?);
    vm.quit()
}
