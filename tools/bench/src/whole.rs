// SPDX-License-Identifier: GPL-2.0-only

//! One save and one restore of the clocks of a whole VM.

use crate::{
    count::{self, least},
    held::Held,
    procedure::{Procedure, Saved},
    slope::slope,
    vm::Vm,
};
use anyhow::{Context, Result};
use clockguest::progress::Progress;
use kvm_clock::{set_tsc_offset, tsc_offset};
use kvm_ioctls::Kvm;
use serde::Serialize;
use std::fmt::Write as _;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Operation {
    Save,
    Restore,
}

/// What is there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Case {
    /// What was saved: the VM was paused, and goes on.
    Unchanged,
    /// Other TSC offsets on all vCPUs: it was restored elsewhere.
    Written,
}

/// What is measured.
const CASES: [(Operation, Case); 3] = [
    (Operation::Save, Case::Unchanged),
    (Operation::Restore, Case::Unchanged),
    (Operation::Restore, Case::Written),
];

/// How many ticks the offsets are moved by before a restore that has to write them.
const AWAY: u64 = 1_000_000;

/// A count.
#[derive(Clone, Debug, Serialize)]
struct Count {
    method: Procedure,
    operation: Operation,
    case: Case,
    vcpus: u32,
    instructions: u64,
    syscalls: u64,
    /// Instructions with vCPUs held out of the guest: with more than one call, all of them, as no vCPU may
    /// run in between.
    held: u64,
}

/// What another vCPU costs.
#[derive(Clone, Debug, Serialize)]
struct Slope {
    method: Procedure,
    operation: Operation,
    case: Case,
    instructions_per_vcpu: f64,
    held_per_vcpu: f64,
}

/// All counts.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Whole {
    results: Vec<Count>,
    slopes: Vec<Slope>,
}

impl Whole {
    /// Counts, for VMs of so many `vcpus`.
    pub(crate) fn measure(kvm: &Kvm, vcpus: &[u32], repeat: u32) -> Result<Self> {
        // CAST: A few.
        let total = (vcpus.len() * Procedure::ALL.len() * CASES.len()) as u32;
        let mut progress = Progress::new("instructions of save and restore".to_owned(), total);
        progress.begin();
        let mut results = Vec::new();
        for &count in vcpus {
            let vm = Vm::new(kvm, count).with_context(|| format!("VM with {count} vCPUs"))?;
            for method in Procedure::ALL {
                for (operation, case) in CASES {
                    let one = One {
                        vm: &vm,
                        method,
                        operation,
                        case,
                    };
                    let what = || format!("{count} vCPUs, {}, {operation:?}", method.name());
                    results.push(one.count(repeat).with_context(what)?);
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

    /// A table for each operation: instructions by vCPUs.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        for (operation, case) in CASES {
            let of = |count: &&Count| count.operation == operation && count.case == case;
            let _ = writeln!(
                text,
                "{}",
                match (operation, case) {
                    (Operation::Save, _) => "save",
                    (_, Case::Unchanged) => "restore, nothing has changed",
                    (_, Case::Written) => "restore, every TSC offset is another",
                }
            );
            let _ = writeln!(
                text,
                "  {:<11} {:>6} {:>13} {:>9} {:>13}",
                "procedure", "vCPUs", "instructions", "syscalls", "held"
            );
            for count in self.results.iter().filter(of) {
                let _ = writeln!(
                    text,
                    "  {:<11} {:>6} {:>13} {:>9} {:>13}",
                    count.method.name(),
                    count.vcpus,
                    count.instructions,
                    count.syscalls,
                    count.held
                );
            }
            for slope in self
                .slopes
                .iter()
                .filter(|slope| slope.operation == operation && slope.case == case)
            {
                let _ = writeln!(
                    text,
                    "  {:<11} {:>20.1} instructions, {:.1} of them held, for another vCPU",
                    slope.method.name(),
                    slope.instructions_per_vcpu,
                    slope.held_per_vcpu
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
        held_per_vcpu: slope(&points(|count| count.held))?,
    })
}

/// Does it once, between two marks.
pub(crate) fn mark(
    kvm: &Kvm,
    vcpus: u32,
    method: Procedure,
    operation: Operation,
    case: Case,
) -> Result<()> {
    let vm = Vm::new(kvm, vcpus)?;
    let one = One {
        vm: &vm,
        method,
        operation,
        case,
    };
    let mut saved = Saved::new(&vm)?;
    // The second time its code and data are where they stay.
    for _ in 0..2 {
        one.prepare(&mut saved)?;
        count::mark();
        let done = one.work(&mut saved);
        count::mark();
        done?;
    }
    Ok(())
}

/// What is counted.
#[derive(Clone, Copy)]
struct One<'a> {
    vm: &'a Vm,
    method: Procedure,
    operation: Operation,
    case: Case,
}

impl One<'_> {
    fn prepare(&self, saved: &mut Saved) -> Result<()> {
        if self.operation == Operation::Restore {
            saved.save(self.method, self.vm)?;
            match self.case {
                Case::Unchanged => {
                    // So that it is there already.
                    self.work(saved)?;
                    saved.save(self.method, self.vm)?;
                }
                Case::Written => move_away(self.vm)?,
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
        let instructions = least(
            repeat,
            &mut saved,
            |saved| self.prepare(saved),
            |saved| self.work(saved),
        )?;
        let syscalls = saved.calls;
        let held = match (self.method, self.operation) {
            (Procedure::Atomic, Operation::Save) => 0,
            (Procedure::Atomic, Operation::Restore) => {
                let probes = Held::new()?;
                let mut held = u64::MAX;
                for _ in 0..repeat {
                    self.prepare(&mut saved)?;
                    held = held.min(probes.during(|| self.work(&mut saved))?.unwrap_or(0));
                }
                held
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
            held,
        })
    }
}

/// Gives every vCPU another TSC offset.
fn move_away(vm: &Vm) -> Result<()> {
    for vcpu in &vm.vcpus {
        let offset = tsc_offset(vcpu).context("KVM_VCPU_TSC_OFFSET")?;
        set_tsc_offset(vcpu, offset.wrapping_sub(AWAY)).context("KVM_VCPU_TSC_OFFSET")?;
    }
    Ok(())
}
