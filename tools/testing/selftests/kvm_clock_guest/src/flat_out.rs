// SPDX-License-Identifier: GPL-2.0-only

//! A guest that reads its clocks without a pause: how much it read, and whether anything went back.

use anyhow::{ensure, Result};
use clockguest::{
    guest::Backwards,
    vmm::{vcpu::Vcpu, Vm},
};
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// Sleep between two looks.
const POLL: Duration = Duration::from_micros(100);
/// How long vCPUs may take to make their readings.
const PATIENCE: Duration = Duration::from_secs(60);

/// What every vCPU of a VM read and saw up to some moment.
#[derive(Clone, Debug)]
pub struct Progress(Vec<(u64, Backwards)>);

impl Progress {
    /// As of now.
    pub fn of(vm: &Vm) -> Self {
        let views = vm.vcpus().iter().map(|vcpu| vm.view(vcpu.index()));
        Self(views.map(|view| (view.count(), view.backwards())).collect())
    }

    /// Readings made since `earlier`, by vCPU.
    pub fn since(&self, earlier: &Self) -> Vec<u64> {
        let pairs = self.0.iter().zip(&earlier.0);
        pairs.map(|((now, _), (then, _))| now - then).collect()
    }

    /// Returns when every vCPU of the running `vm` has published `readings` more than at this
    /// moment. The first of these may have been begun before it; the others were not.
    ///
    /// # Errors
    ///
    /// If a vCPU left KVM_RUN, or does not get on.
    pub fn wait(&self, vm: &Vm, readings: u64) -> Result<()> {
        self.wait_for(vm, self.0.len(), readings)
    }

    /// As [`wait`](Self::wait), but returns when at least so many `vcpus` have, whichever.
    ///
    /// # Errors
    ///
    /// If a vCPU left KVM_RUN, or too few get on.
    pub fn wait_for(&self, vm: &Vm, vcpus: usize, readings: u64) -> Result<()> {
        let start = Instant::now();
        loop {
            let since = Self::of(vm).since(self);
            if since.iter().filter(|count| **count >= readings).count() >= vcpus {
                return Ok(());
            }
            vm.vcpus().iter().try_for_each(Vcpu::check)?;
            ensure!(
                start.elapsed() < PATIENCE,
                "in {PATIENCE:?} the vCPUs made {since:?} readings, not {readings} each of {vcpus}"
            );
            sleep(POLL);
        }
    }

    /// Fails if since this moment a vCPU saw its own clocks, or kvmclock of any two vCPUs, go back;
    /// and if `comparable`, also if the TSCs of any two did.
    ///
    /// # Errors
    ///
    /// Says how often each.
    pub fn ensure_none_went_back(&self, vm: &Vm, comparable: bool) -> Result<()> {
        for (vcpu, (_, earlier)) in vm.vcpus().iter().zip(&self.0) {
            let mut seen = vm.view(vcpu.index()).backwards() - *earlier;
            if !comparable {
                seen.cross_tsc = 0;
            }
            ensure!(
                seen == Backwards::default(),
                "vCPU {} saw steps back: {seen:?}",
                vcpu.index()
            );
        }
        Ok(())
    }
}
