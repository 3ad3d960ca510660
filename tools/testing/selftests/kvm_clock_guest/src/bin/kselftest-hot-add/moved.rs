// SPDX-License-Identifier: GPL-2.0-only

//! At the host's rate, after SET, the guest or the VMM moved TSCs.

use crate::joins::ensure_joins;
use kvm_clock_guest_selftests::{
    prelude::*,
    tsc_writes::{TscWrite, TSC_WRITES},
};

const VCPUS: u32 = 2;
/// How far a TSC moves, ticks: days.
const TICKS: u64 = 1 << 50;

/// Which vCPUs' TSCs move.
const MOVED: [(&str, &[usize]); 3] = [
    ("vCPU 0 alone", &[0]),
    ("vCPU 1 alone", &[1]),
    ("all vCPUs", &[0, 1]),
];

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for (name, mode) in MODES {
        for (when, runs) in [("before", false), ("after", true)] {
            cases.push(Case::new(
                format!("a vCPU joins after SET {name}, {when} the others run"),
                move |kvm| after_set(kvm, mode, runs),
            ));
        }
    }
    for write in TSC_WRITES {
        for (which, vcpus) in MOVED {
            cases.push(Case::new(
                format!("a vCPU joins after {} on {which}", write.name),
                move |kvm| after_write(kvm, write, vcpus),
            ));
        }
    }
    cases
}

/// In a new VM.
fn after_set(kvm: &Kvm, mode: u32, runs: bool) -> Result<()> {
    let source = pinned(kvm, VCPUS)?;
    let mut clock = get(&source)?;
    if mode != MODE_EXACT {
        move_to_other_host(&mut clock);
    }
    let vm = Vm::empty(kvm, VCPUS)?;
    vm.load(&source.save()?)?;
    set(&vm, &mut clock, mode)?;
    if runs {
        run_a_little(&vm)?;
    }
    ensure_joins(&vm)
}

fn after_write(kvm: &Kvm, write: TscWrite, vcpus: &[usize]) -> Result<()> {
    let vm = pinned(kvm, VCPUS)?;
    for &vcpu in vcpus {
        (write.add)(&vm, vcpu, TICKS)?;
    }
    run_a_little(&vm)?;
    ensure_joins(&vm)
}
