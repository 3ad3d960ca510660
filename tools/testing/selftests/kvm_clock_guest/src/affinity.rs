// SPDX-License-Identifier: GPL-2.0-only

//! Tests that move threads between host CPUs.

use crate::{fixture::run_a_little, ktap::Skip};
use anyhow::{bail, Context, Result};
use clockguest::{
    affinity::{move_vcpus, CpuSet},
    vmm::Vm,
};

/// Restricts this thread, and threads that it starts, to one CPU; restores its CPUs when dropped.
///
/// KVM updates a vCPU's clocks when the vCPU changes its CPU, which hides an update that KVM fails
/// to request.
#[derive(Debug)]
pub struct SingleCpu {
    before: CpuSet,
}

impl SingleCpu {
    /// Moves this thread to the first CPU that it may use.
    pub fn hold() -> Result<Self> {
        let before = affinity()?;
        let Some(cpu) = before.cpus().next() else {
            bail!("this thread has no CPU");
        };
        CpuSet::one(cpu).restrict(0).context("sched_setaffinity")?;
        Ok(Self { before })
    }
}

impl Drop for SingleCpu {
    fn drop(&mut self) {
        if let Err(error) = self.before.restrict(0) {
            eprintln!("this thread stays on one CPU: {error}");
        }
    }
}

/// Runs every vCPU of the stopped `vm` on one host CPU and then on another.
pub fn change_cpu(vm: &Vm) -> Result<()> {
    let allowed = affinity()?;
    let cpus: Vec<_> = allowed.cpus().take(2).collect();
    if cpus.len() < 2 {
        bail!(Skip("this host has one CPU".into()));
    }
    let changed = cpus.iter().try_for_each(|&cpu| {
        move_vcpus(vm.vcpus().len(), |_| CpuSet::one(cpu)).context("sched_setaffinity")?;
        run_a_little(vm).map(drop)
    });
    move_vcpus(vm.vcpus().len(), |_| allowed).context("sched_setaffinity")?;
    changed
}

fn affinity() -> Result<CpuSet> {
    CpuSet::of_this_thread().context("sched_getaffinity")
}
