// SPDX-License-Identifier: GPL-2.0-only

//! Counts a save and a restore of the clocks of a whole VM.

use crate::{
    count::{self, minimum},
    locked::LockedTime,
    procedure::{Procedure, Saved},
    slope::slope,
    vm::{self, Vm},
};
use anyhow::{Context, Result};
use clockguest::progress::Progress;
use kvm_clock::{set_tsc_offset, tsc_offset};
use kvm_ioctls::Kvm;
use serde::Serialize;
use std::fmt::Write as _;

/// The operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Operation {
    Save,
    Restore,
}

/// The state of the clocks before the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Case {
    /// The saved clocks: the VM was paused, and resumes.
    Unchanged,
    /// Other TSC offsets on all vCPUs: the VM is a new one.
    Written,
}

/// The measured cases.
const CASES: [(Operation, Case); 3] = [
    (Operation::Save, Case::Unchanged),
    (Operation::Restore, Case::Unchanged),
    (Operation::Restore, Case::Written),
];

/// The change of the offsets before a restore that has to write them, ticks.
const OFFSET_CHANGE: u64 = 1_000_000;

/// A count.
#[derive(Clone, Debug, Serialize)]
struct Count {
    method: Procedure,
    operation: Operation,
    case: Case,
    vcpus: u32,
    instructions: u64,
    syscalls: u64,
    /// Instructions with vCPUs locked. Procedures with several calls count fully, as no vCPU may
    /// run in between.
    locked: u64,
}

/// The cost of another vCPU.
#[derive(Clone, Debug, Serialize)]
struct Slope {
    method: Procedure,
    operation: Operation,
    case: Case,
    instructions_per_vcpu: f64,
    locked_per_vcpu: f64,
}

/// All counts.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Whole {
    results: Vec<Count>,
    slopes: Vec<Slope>,
}

impl Whole {
    /// Counts for VMs with these numbers of vCPUs.
    pub(crate) fn measure(kvm: &Kvm, vcpus: &[u32], repeat: u32) -> Result<Self> {
        // CAST: A few.
        let total = (vcpus.len() * Procedure::ALL.len() * CASES.len()) as u32;
        let mut progress = Progress::new("instructions of save and restore".to_owned(), total);
        progress.begin();
        let mut results = Vec::new();
        for &count in vcpus {
            let vm = vm::new(kvm, count).with_context(|| format!("VM with {count} vCPUs"))?;
            for method in Procedure::ALL {
                for (operation, case) in CASES {
                    let measurement = Measurement {
                        vm: &vm,
                        method,
                        operation,
                        case,
                    };
                    let what = || format!("{count} vCPUs, {}, {operation:?}", method.name());
                    results.push(measurement.count(repeat).with_context(what)?);
                    // CAST: A few.
                    progress.update(results.len() as u32);
                }
            }
        }
        progress.finish(total);
        let slopes = Procedure::ALL.into_iter().flat_map(|method| {
            let results = &results;
            CASES
                .into_iter()
                .filter_map(move |(operation, case)| slope_of(results, method, operation, case))
        });
        Ok(Self {
            slopes: slopes.collect(),
            results,
        })
    }

    /// A table per operation: instructions against vCPUs.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        for (operation, case) in CASES {
            let of = |count: &&Count| count.operation == operation && count.case == case;
            let _ = writeln!(
                text,
                "{}",
                match (operation, case) {
                    (Operation::Save, _) => "save",
                    (_, Case::Unchanged) => "restore, nothing to write",
                    (_, Case::Written) => "restore, every TSC offset to write",
                }
            );
            let _ = writeln!(
                text,
                "  {:<11} {:>6} {:>13} {:>9} {:>13}",
                "procedure", "vCPUs", "instructions", "syscalls", "locked"
            );
            for count in self.results.iter().filter(of) {
                let _ = writeln!(
                    text,
                    "  {:<11} {:>6} {:>13} {:>9} {:>13}",
                    count.method.name(),
                    count.vcpus,
                    count.instructions,
                    count.syscalls,
                    count.locked
                );
            }
            for slope in self
                .slopes
                .iter()
                .filter(|slope| slope.operation == operation && slope.case == case)
            {
                let _ = writeln!(
                    text,
                    "  {:<11} {:>20.1} instructions per vCPU, {:.1} of them with vCPUs locked",
                    slope.method.name(),
                    slope.instructions_per_vcpu,
                    slope.locked_per_vcpu
                );
            }
        }
        text
    }
}

fn slope_of(
    results: &[Count],
    method: Procedure,
    operation: Operation,
    case: Case,
) -> Option<Slope> {
    let of = results
        .iter()
        .filter(|count| (count.method, count.operation, count.case) == (method, operation, case));
    let of: Vec<_> = of.collect();
    let points = |value: fn(&Count) -> u64| {
        of.iter()
            .map(|count| (count.vcpus, value(count)))
            .collect::<Vec<_>>()
    };
    Some(Slope {
        method,
        operation,
        case,
        instructions_per_vcpu: slope(&points(|count| count.instructions))?,
        locked_per_vcpu: slope(&points(|count| count.locked))?,
    })
}

/// Runs one operation between two marks.
pub(crate) fn mark(
    kvm: &Kvm,
    vcpus: u32,
    method: Procedure,
    operation: Operation,
    case: Case,
) -> Result<()> {
    let vm = vm::new(kvm, vcpus)?;
    let measurement = Measurement {
        vm: &vm,
        method,
        operation,
        case,
    };
    let mut saved = Saved::new(&vm)?;
    // The first time warms up code and data.
    for _ in 0..2 {
        measurement.prepare(&mut saved)?;
        count::mark();
        let done = measurement.work(&mut saved);
        count::mark();
        done?;
    }
    Ok(())
}

/// A measurement.
#[derive(Clone, Copy)]
struct Measurement<'a> {
    vm: &'a Vm,
    method: Procedure,
    operation: Operation,
    case: Case,
}

impl Measurement<'_> {
    fn prepare(&self, saved: &mut Saved) -> Result<()> {
        if self.operation == Operation::Restore {
            saved.save(self.method, self.vm)?;
            match self.case {
                Case::Unchanged => {
                    // Write the clocks, so that nothing is left to write.
                    self.work(saved)?;
                    saved.save(self.method, self.vm)?;
                }
                Case::Written => change_offsets(self.vm)?,
            }
        }
        saved.calls = 0;
        Ok(())
    }

    fn work(&self, saved: &mut Saved) -> Result<()> {
        match self.operation {
            Operation::Save => saved.save(self.method, self.vm),
            Operation::Restore => saved.restore(self.method, self.vm, self.case == Case::Written),
        }
    }

    fn count(&self, repeat: u32) -> Result<Count> {
        let mut saved = Saved::new(self.vm)?;
        let instructions = minimum(
            repeat,
            &mut saved,
            |saved| self.prepare(saved),
            |saved| self.work(saved),
        )?;
        let syscalls = saved.calls;
        let locked = match (self.method, self.operation) {
            (Procedure::Atomic, Operation::Save) => 0,
            (Procedure::Atomic, Operation::Restore) => {
                let probes = LockedTime::new()?;
                let mut locked = u64::MAX;
                for _ in 0..repeat {
                    self.prepare(&mut saved)?;
                    locked = locked.min(probes.during(|| self.work(&mut saved))?.unwrap_or(0));
                }
                locked
            }
            _ => instructions,
        };
        Ok(Count {
            method: self.method,
            operation: self.operation,
            case: self.case,
            // CAST: KVM has far fewer than 2^32.
            vcpus: self.vm.vcpus.len() as u32,
            instructions,
            syscalls,
            locked,
        })
    }
}

/// Changes the TSC offset of every vCPU.
fn change_offsets(vm: &Vm) -> Result<()> {
    for vcpu in &vm.vcpus {
        let offset = tsc_offset(vcpu).context("KVM_VCPU_TSC_OFFSET")?;
        set_tsc_offset(vcpu, offset.wrapping_sub(OFFSET_CHANGE)).context("KVM_VCPU_TSC_OFFSET")?;
    }
    Ok(())
}
