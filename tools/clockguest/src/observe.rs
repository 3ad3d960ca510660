// SPDX-License-Identifier: GPL-2.0-only

//! Lets a VM run until every vCPU has made fresh readings, and takes them.

use crate::{
    host::rdtsc_ordered,
    measure::{Bracketed, RawTransform, Reading, VcpuReading},
    vmm::{error::Context, Error, Result, Vm},
};
use kvm_clock::tsc_scale;
use kvm_ioctls::VcpuFd;
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// Readings taken of each running vCPU; the last one before it stops comes on top.
const SAMPLES_PER_VCPU: usize = 2;
/// Sleep between two looks: short against a time slice, long enough to leave the CPU to the guest.
const POLL: Duration = Duration::from_micros(100);
/// How long a running vCPU may take for two readings.
const PATIENCE: Duration = Duration::from_secs(20);

/// A VM that runs, and what was read of it so far.
#[derive(Debug)]
pub struct Run {
    host_run: u64,
    samples: Vec<Vec<Bracketed>>,
}

/// Lets `vm` run, and takes fresh readings of every vCPU; the VM goes on running.
///
/// # Errors
///
/// If a vCPU does not run, or makes no readings.
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
    /// Completes the reading of `vm`, which was stopped at host TSC `host_stop`.
    ///
    /// # Errors
    ///
    /// Those of the ioctls that read offsets, rate and ratio.
    pub fn finish(self, vm: &Vm, host_stop: u64) -> Result<Reading> {
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

/// Scaling ratio and its fraction bits.
///
/// Without the attribute there is none: only tests that need it ask for another rate than the
/// host's.
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

/// A sample of every vCPU whose RDTSC was executed inside this function.
fn fresh_samples(vm: &Vm) -> Result<Vec<Bracketed>> {
    let host_before = rdtsc_ordered();
    // A vCPU's next sample may have been begun before `host_before`, perhaps before a pause; the
    // one after it was not.
    let fresh: Vec<_> = vm
        .vcpus()
        .iter()
        .map(|vcpu| vm.view(vcpu.index()).count() + 2)
        .collect();
    let start = Instant::now();
    let mut samples = Vec::new();
    // In order of index: while one is waited for, the others run too.
    for (vcpu, fresh) in vm.vcpus().iter().zip(fresh) {
        let view = vm.view(vcpu.index());
        while view.count() < fresh {
            vm.check()?;
            if start.elapsed() > PATIENCE {
                return Err(Error::Timeout {
                    index: vcpu.index(),
                    what: "make two readings",
                    after: PATIENCE,
                });
            }
            sleep(POLL);
        }
        let sample = view.latest().ok_or_else(|| {
            Error::Missing(format!("vCPU {} counts samples but has none", vcpu.index()))
        })?;
        samples.push(Bracketed {
            sample,
            host_before,
            host_after: rdtsc_ordered(),
        });
    }
    Ok(samples)
}
