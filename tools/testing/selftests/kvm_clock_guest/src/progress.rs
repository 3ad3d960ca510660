// SPDX-License-Identifier: GPL-2.0-only

//! A guest that reads its clocks without a pause: its readings, and their steps back.

use crate::{ensure_eq, wait::wait_for_guest};
use anyhow::{Context, Result};
use clockguest::{guest::Backwards, vmm::Vm};
use std::time::Duration;

/// How long vCPUs may take to make their readings.
const PATIENCE: Duration = Duration::from_secs(60);

/// Number of readings of every vCPU, and their steps back, up to some moment.
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
    /// moment. The first of these may have begun before it.
    pub fn wait(&self, vm: &Vm, readings: u64) -> Result<()> {
        self.wait_for(vm, self.0.len(), readings)
    }

    /// As [`wait`](Self::wait), but returns when any `vcpus` of them have.
    pub fn wait_for(&self, vm: &Vm, vcpus: usize, readings: u64) -> Result<()> {
        let what = format!("{vcpus} vCPUs make {readings} readings each");
        let since = || Self::of(vm).since(self);
        wait_for_guest(vm, &what, PATIENCE, || {
            since().iter().filter(|count| **count >= readings).count() >= vcpus
        })
        .with_context(|| format!("they made {:?}", since()))
    }

    /// Fails if since this moment a vCPU's own clocks, or kvmclock of any two vCPUs, stepped back;
    /// if `comparable`, also if the TSCs of any two did.
    pub fn ensure_none_went_back(&self, vm: &Vm, comparable: bool) -> Result<()> {
        for (vcpu, (_, earlier)) in vm.vcpus().iter().zip(&self.0) {
            let mut seen = vm.view(vcpu.index()).backwards() - *earlier;
            if !comparable {
                seen.cross_tsc = 0;
            }
            ensure_eq!(
                seen,
                Backwards::default(),
                "steps back of vCPU {}",
                vcpu.index()
            );
        }
        Ok(())
    }
}
