// SPDX-License-Identifier: GPL-2.0-only

//! The module goes and comes while vCPUs run: their guest notices nothing.

use crate::Host;
use anyhow::{ensure, Result};
use kvm_clock_guest_selftests::{
    clocks::Clocks,
    fixture::{derived, get, pinned, set},
    flat_out::Progress,
    ktap::{note, Case},
};
use pvclock::abi::MODE_EXACT;

const VCPUS: u32 = 2;
const ROUNDS: u32 = 5;
/// Readings of every vCPU without the module, and with it.
const READINGS: u64 = 3;

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new(
            "vCPUs with a pinned record run through it",
            |host: &Host| run_through(host, true),
        ),
        Case::new(
            "vCPUs with KVM's own clock run through it",
            |host: &Host| run_through(host, false),
        ),
    ]
}

fn run_through(host: &Host, keep: bool) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = if keep { pinned } else { derived }(&kvm, VCPUS)?;
    // Another VM, for which nothing was ever asked.
    let other = derived(&kvm, 1)?;
    let (before, of_other) = (Clocks::of(&vm)?, Clocks::of(&other)?);
    ensure!(before.pinned == keep, "pinned: {}", before.pinned);
    let first = Progress::of(&vm);
    vm.run()?;
    other.run()?;
    for _ in 0..ROUNDS {
        let unloaded = host.module.unload()?;
        Progress::of(&vm).wait(&vm, READINGS)?;
        unloaded.load()?;
        Progress::of(&vm).wait(&vm, READINGS)?;
        let record = get(&vm)?.header.record;
        ensure!(
            record == before.record,
            "the record was {:x?}, is {record:x?}",
            before.record
        );
    }
    vm.stop()?;
    other.stop()?;
    note(&format!(
        "readings by vCPU: {:?}",
        Progress::of(&vm).since(&first)
    ));
    first.ensure_none_went_back(&vm, true)?;
    before.ensure_unchanged(&vm)?;
    of_other.ensure_unchanged(&other)?;
    set(&vm, &mut get(&vm)?, MODE_EXACT)?;
    Clocks {
        pinned: true,
        ..before
    }
    .ensure_unchanged(&vm)
}
