// SPDX-License-Identifier: GPL-2.0-only

//! Stops all vCPUs, waits, and runs the same VM again.

use super::{stop_and_save, wait_downtime, warm_up, Config};
use crate::{measure::Reading, observe, vmm::Vm};
use anyhow::Result;
use kvm_ioctls::Kvm;
use std::time::Instant;

pub(super) fn run(config: &Config, kvm: &Kvm, each: &mut dyn FnMut(Reading)) -> Result<()> {
    let vm = Vm::new(kvm, config.vcpus)?;
    warm_up(&vm)?;
    let mut run = observe::run(&vm)?;
    for _ in 0..config.cycles {
        let (saved, reading) = stop_and_save(&vm, run, config.method)?;
        let stopped = Instant::now();
        each(reading);
        wait_downtime(config, stopped);
        saved.resume(&vm)?;
        run = observe::run(&vm)?;
    }
    let (_, reading) = stop_and_save(&vm, run, config.method)?;
    each(reading);
    Ok(())
}
