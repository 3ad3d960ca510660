// SPDX-License-Identifier: GPL-2.0-only

//! At the host's rate, after SET, the guest or the VMM moved TSCs.

use crate::joins::ensure_joins;
use anyhow::Result;
use clockguest::vmm::Vm;
use kvm_clock_guest_selftests::{
    fixture::{get, move_to_domain, pinned, run_a_little, set},
    ktap::Case,
    time::HOUR_NS,
    tsc_writes::{TscWrite, TSC_WRITES},
};
use kvm_ioctls::Kvm;
use pvclock::abi::{MODE_ADVANCE, MODE_EXACT, MODE_FREEZE};

const VCPUS: u32 = 2;
/// A host TSC of another domain, far ahead of any of here.
const OTHER_DOMAIN: u64 = 1 << 60;
/// How far a TSC moves, ticks: days.
const TICKS: u64 = 1 << 50;

const MODES: [(&str, u32); 3] = [
    ("EXACT", MODE_EXACT),
    ("ADVANCE", MODE_ADVANCE),
    ("FREEZE", MODE_FREEZE),
];

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

/// In another VM than the one that was saved.
fn after_set(kvm: &Kvm, mode: u32, runs: bool) -> Result<()> {
    let source = pinned(kvm, VCPUS)?;
    let mut clock = get(&source)?;
    if mode != MODE_EXACT {
        move_to_domain(&mut clock, OTHER_DOMAIN);
        clock.header.tai_ns -= HOUR_NS;
    }
    let vm = Vm::empty(kvm, VCPUS)?;
    vm.load(&source.save()?)?;
    set(&vm, &mut clock, mode)?;
    if runs {
        run_a_little(&vm)?;
    }
    ensure_joins(kvm, &vm)
}

fn after_write(kvm: &Kvm, write: TscWrite, vcpus: &[usize]) -> Result<()> {
    let vm = pinned(kvm, VCPUS)?;
    for &vcpu in vcpus {
        (write.add)(&vm, vcpu, TICKS)?;
    }
    run_a_little(&vm)?;
    ensure_joins(kvm, &vm)
}
