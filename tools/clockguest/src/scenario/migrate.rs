// SPDX-License-Identifier: GPL-2.0-only

//! Streams the state over a socket to the VM of a second process, then destroys the first VM.

use super::{process::Process, program::Program, wait_downtime, worker::Channel, Config};
use crate::measure::Reading;
use anyhow::{Context, Result};
use std::time::Instant;
use vmm_sys_util::tempdir::TempDir;

pub(super) fn run(config: &Config, each: &mut dyn FnMut(Reading)) -> Result<()> {
    let folder = TempDir::new_with_prefix(std::env::temp_dir().join("clockguest-"))
        .context("cannot create a temporary folder for the socket")?;

    let program = Program::this()?;

    let mut source = Process::spawn(&program, config)?;
    let mut destination = Process::spawn(&program, config)?;
    source.create(config.vcpus)?;
    source.run()?;
    for cycle in 0..config.cycles {
        let socket = Channel::Socket(folder.as_path().join(cycle.to_string()));
        destination.load(socket.clone())?;
        destination.wait_listening()?;
        each(source.stop(Some(socket))?);
        let stopped = Instant::now();
        destination.wait_ready()?;
        source.quit()?;
        // Start the next destination's process now, while no guest competes for the CPUs.
        let next = Process::spawn(&program, config)?;
        wait_downtime(config, stopped);
        destination.run()?;
        source = destination;
        destination = next;
    }
    each(source.stop(None)?);
    source.quit()
}
