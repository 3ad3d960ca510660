// SPDX-License-Identifier: GPL-2.0-only

//! SET before the first KVM_RUN, with all that the creation of vCPUs left pending.

use crate::hour_old_at_another_rate;
use anyhow::{ensure, Result};
use clockguest::vmm::Vm;
use kvm_clock_guest_selftests::{
    clocks::{function, Clocks},
    expect,
    fixture::{get, reference_offset, set, settle},
    ktap::{note, Case},
    time::HOUR_NS,
    trace::Trace,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{MODE_ADVANCE, MODE_EXACT, MODE_FREEZE};

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let modes = [
        ("exact", MODE_EXACT),
        ("advance", MODE_ADVANCE),
        ("freeze", MODE_FREEZE),
    ];
    let mut cases = Vec::new();
    for (name, mode) in modes {
        for vcpus in [1, 4] {
            cases.push(Case::new(
                format!("the first KVM_RUN after SET {name}, {vcpus} vCPUs"),
                move |kvm| first_run(kvm, vcpus, mode),
            ));
        }
    }
    cases
}

fn first_run(kvm: &Kvm, vcpus: u32, mode: u32) -> Result<()> {
    let trace = Trace::new()?;
    let vm = Vm::new(kvm, vcpus)?;
    let mut clock = hour_old_at_another_rate(get(&vm)?);
    // So that ADVANCE has a way to go.
    clock.header.tai_ns -= HOUR_NS;
    set(&vm, &mut clock, mode)?;
    let before = get(&vm)?;
    // What SET did is not what was pending.
    trace.take()?;

    let reading = settle(&vm)?;
    let updates = trace.take()?;
    note(&format!("{updates:?}"));
    ensure!(
        updates.master_on > 0 && updates.records >= vm.vcpus().len(),
        "nothing was pending: {updates:?}"
    );
    let record = function(clock.header.record);
    let after = Clocks::of(&vm)?;
    ensure!(
        after.pinned
            && function(after.record) == record
            && after.pages.iter().all(|&page| function(page) == record),
        "SET was {record:x?}, clocks are {after:x?}"
    );
    let offsets: Vec<_> = before.vcpus.iter().map(|vcpu| vcpu.tsc_offset).collect();
    ensure!(
        after.offsets == offsets,
        "offsets were {offsets:x?}, are {:x?}",
        after.offsets
    );
    expect::ensure_reads(&reading, &record, reference_offset(&before))?;
    after.ensure_unchanged(&vm)
}
