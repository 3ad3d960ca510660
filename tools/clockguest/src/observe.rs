// SPDX-License-Identifier: GPL-2.0-only

//! Runs a VM until every vCPU has published new samples, and returns these.

use crate::{
    host::rdtsc_ordered,
    measure::{Bracketed, RawTransform, Reading, VcpuReading},
    vmm::{error::Context, Error, Result, Vm},
};
use kvm_clock::tsc_scale;
use kvm_ioctls::VcpuFd;
use pvclock::counter::HostTsc;
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// Samples of each running vCPU; the last one before it stops is extra.
const SAMPLES_PER_VCPU: usize = 2;
/// Poll interval: short against a time slice, long enough to leave the CPU to the guest.
const POLL: Duration = Duration::from_micros(100);
/// The time limit for two samples of a running vCPU.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A running VM's samples so far.
#[derive(Debug)]
pub struct Run {
    host_run: HostTsc,
    samples: Vec<Vec<Bracketed>>,
}

/// Runs `vm`, and takes new samples of every vCPU; the VM keeps running.
///
/// # Errors
///
/// [`Error::Exit`], or [`Error::Timeout`] if a vCPU does not run or publishes no samples.
pub fn run(vm: &Vm) -> Result<Run> {
    let host_run = rdtsc_ordered();
    vm.run()?;
    let mut samples = vec![Vec::new(); vm.vcpus().len()];
    for _ in 0..SAMPLES_PER_VCPU {
        for (of_vcpu, sample) in samples.iter_mut().zip(fresh_samples(vm)?) {
            of_vcpu.push(sample);
        }
    }
    Ok(Run { host_run, samples })
}

impl Run {
    /// Completes the reading of `vm`, which stopped at host TSC `host_stop`.
    ///
    /// # Errors
    ///
    /// Those of the ioctls that read offsets, rate and ratio.
    pub fn finish(self, vm: &Vm, host_stop: HostTsc) -> Result<Reading> {
        let (ratio, frac_bits) = scaling(&vm.vcpus()[0].fd())?;
        let offsets = vm.tsc_offsets()?;
        let vcpus = self.samples.into_iter().zip(offsets).enumerate();
        let vcpus = vcpus.map(|(index, (mut samples, offset))| {
            let view = vm.view(index);
            let last = samples
                .last()
                .zip(view.latest())
                .map(|(earlier, sample)| Bracketed {
                    sample,
                    host_before: earlier.host_before,
                    host_after: host_stop,
                });
            samples.extend(last);
            VcpuReading {
                tsc: RawTransform {
                    offset,
                    ratio,
                    frac_bits,
                },
                record: last.map(|last| last.sample.record).unwrap_or_default(),
                samples,
                backwards: view.backwards(),
            }
        });
        Ok(Reading {
            vcpus: vcpus.collect(),
            tsc_khz: vm.tsc_khz()?,
            host_run: self.host_run,
            host_stop,
            precision_ns: 0,
        })
    }
}

/// The scaling ratio and its number of fraction bits; both are 0 without the attribute.
///
/// Only tests that need the attribute use another TSC rate than the host's.
fn scaling(vcpu: &VcpuFd) -> Result<(u64, u32)> {
    match tsc_scale(vcpu) {
        Ok(scale) => {
            // CAST: At most 63.
            let frac_bits = scale.tsc_frac_bits as u32;
            Ok((scale.tsc_ratio, frac_bits))
        }
        Err(e) if e.errno() == libc::ENXIO => Ok((0, 0)),
        Err(e) => Err(e).context("KVM_VCPU_TSC_SCALE"),
    }
}

/// A sample of every vCPU, whose RDTSC executed during this function.
fn fresh_samples(vm: &Vm) -> Result<Vec<Bracketed>> {
    let host_before = rdtsc_ordered();
    // A vCPU may have started its next sample before `host_before`, perhaps before a pause, but not
    // the one after it.
    let fresh: Vec<_> = vm
        .vcpus()
        .iter()
        .map(|vcpu| vm.view(vcpu.index()).count() + 2)
        .collect();
    let start = Instant::now();
    let mut samples = Vec::new();
    // The vCPUs run in parallel, so their order does not matter.
    for (vcpu, fresh) in vm.vcpus().iter().zip(fresh) {
        let view = vm.view(vcpu.index());
        while view.count() < fresh {
            vm.check()?;
            if start.elapsed() > TIMEOUT {
                return Err(Error::Timeout {
                    index: vcpu.index(),
                    what: "publish two samples",
                    after: TIMEOUT,
                });
            }
            sleep(POLL);
        }
        let sample = view.latest().ok_or_else(|| {
            Error::Missing(format!(
                "vCPU {} has a sample count but no sample",
                vcpu.index()
            ))
        })?;
        samples.push(Bracketed {
            sample,
            host_before,
            host_after: rdtsc_ordered(),
        });
    }
    Ok(samples)
}
