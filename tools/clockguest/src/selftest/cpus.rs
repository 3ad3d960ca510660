// SPDX-License-Identifier: GPL-2.0-only

//! Mode exact with a vCPU on each host CPU, and each vCPU on another one after every cycle.

use super::Config;
use crate::{
    affinity::{move_vcpus, CpuSet},
    guest::layout::MAX_VCPUS,
    observe,
    scenario::{self, stop_and_save, warm_up, Scenario},
    summary::{Summary, Tally},
    vmm::Vm,
};
use anyhow::{Context, Result};
use kvm_ioctls::Kvm;
use std::thread::sleep;

pub(super) fn run(config: &Config, kvm: &Kvm) -> Result<Summary> {
    let allowed = CpuSet::of_this_thread().context("sched_getaffinity")?;
    let cpus: Vec<_> = allowed.cpus().collect();
    let vcpus = u32::try_from(cpus.len())?.min(MAX_VCPUS);
    // Each CPU has a vCPU in one of the readings, even if there are more CPUs than vCPUs.
    let rounds = u32::try_from(cpus.len())?.div_ceil(vcpus);
    let config = scenario::Config {
        vcpus,
        cycles: config.cycles.max(rounds),
        ..config.of(Scenario::Pause)
    };
    let mut tally = Tally::new(&config);
    if let Err(error) = cycles(&config, kvm, &cpus, &mut tally) {
        tally.fail(format!("after {} cycles: {error:#}", tally.cycles_done()));
    }
    Ok(tally.finish())
}

fn cycles(config: &scenario::Config, kvm: &Kvm, cpus: &[usize], tally: &mut Tally) -> Result<()> {
    let vm = Vm::new(kvm, config.vcpus)?;
    warm_up(&vm)?;
    for cycle in 0..=config.cycles as usize {
        // One CPU further if there is a vCPU for each, otherwise to the CPUs that had none.
        let first = match cpus.len() - vm.vcpus().len() {
            0 => cycle,
            _ => cycle * vm.vcpus().len(),
        };
        let cpu = |index: usize| CpuSet::one(cpus[(first + index) % cpus.len()]);
        move_vcpus(vm.vcpus().len(), cpu).context("cannot move the vCPUs")?;
        let run = observe::run(&vm)?;
        let (saved, reading) = stop_and_save(&vm, run, config.method)?;
        tally.add(reading);
        sleep(config.downtime);
        saved.resume(&vm)?;
    }
    Ok(())
}
