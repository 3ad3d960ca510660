// SPDX-License-Identifier: GPL-2.0-only

//! Stop, SET, and go on, in every mode in turn.

use crate::SETS;
use anyhow::{ensure, Result};
use clockguest::vmm::{vcpu::Vcpu, Vm};
use kvm_clock_guest_selftests::{
    apart::{apart, ensure_apart, AHEAD},
    clocks::{pages, Clocks},
    fixture::{get, move_to_domain, pinned, set},
    flat_out::Progress,
    ktap::{note, Case},
};
use kvm_ioctls::Kvm;
use pvclock::abi::{MODE_ADVANCE, MODE_EXACT, MODE_FREEZE};
use std::time::Instant;

/// SETs of a VM whose vCPUs' TSCs cannot be compared, so that it tells less.
const SETS_APART: u32 = SETS / 8;

/// Readings of a vCPU between two SETs: the first may have been begun before the former one, and
/// the last is to be compared with.
const READINGS: u64 = 3;

/// All vCPUs are waited for before one SET in so many: to let four take turns on two CPUs takes
/// long. Before the others it is whichever comes first. A vCPU that did not run compares its next
/// reading with its last one, all the same.
const ALL_EVERY: u32 = 4;

/// A mode, and the anchor in another host TSC domain, if in another.
const WAYS: &[(u32, Option<u64>)] = &[
    (MODE_EXACT, None),
    (MODE_FREEZE, None),
    (MODE_ADVANCE, None),
    (MODE_FREEZE, Some(0)),
    (MODE_ADVANCE, Some(1 << 63)),
];

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    // CAST: A few.
    let vcpus = AHEAD.len() as u32;
    vec![
        Case::new(format!("{SETS} SETs, {vcpus} vCPUs"), move |kvm| {
            rounds(&pinned(kvm, vcpus)?, SETS, true)
        }),
        Case::new(
            format!("{SETS_APART} SETs, {vcpus} vCPUs of different TSCs"),
            |kvm| {
                let vm = apart(kvm)?;
                rounds(&vm, SETS_APART, false)?;
                ensure_apart(&vm)
            },
        ),
    ]
}

/// `comparable`: whether the vCPUs' TSCs are the same.
fn rounds(vm: &Vm, sets: u32, comparable: bool) -> Result<()> {
    let before = Clocks::of(vm)?;
    let (start, first) = (Instant::now(), Progress::of(vm));
    let mut moves = 0;
    let mut seen = vec![0; before.offsets.len()];
    for (number, &(mode, domain)) in (0..sets).zip(WAYS.iter().cycle()) {
        let vcpus = match number % ALL_EVERY {
            0 => seen.len(),
            _ => 1,
        };
        run_and_stop(vm, vcpus, &mut seen)?;
        let mut clock = get(vm)?;
        let offset = clock.vcpus[0].tsc_offset;
        if let Some(host_tsc) = domain {
            move_to_domain(&mut clock, host_tsc);
        }
        set(vm, &mut clock, mode)?;
        moves += u32::from(get(vm)?.vcpus[0].tsc_offset != offset);
    }
    run_and_stop(vm, seen.len(), &mut seen)?;

    let read = Progress::of(vm).since(&first);
    let seconds = start.elapsed().as_secs_f64();
    note(&format!(
        "{sets} SETs, {moves} of which moved the TSCs, in {seconds:.1} s; by vCPU: {read:?} \
         readings, between {seen:?} of the SETs"
    ));
    first.ensure_none_went_back(vm, comparable)?;
    ensure!(
        seen.iter().all(|seen| *seen >= sets / ALL_EVERY),
        "vCPUs read between {seen:?} of {sets} SETs"
    );
    // Each freeze hides the time since GET, which is never 0.
    ensure!(moves >= sets / 3, "only {moves} of {sets} SETs moved TSCs");
    let record = get(vm)?.header.record;
    ensure!(
        record == before.record && pages(vm) == before.pages,
        "the records were {before:x?}, are {record:x?} and {:x?}",
        pages(vm)
    );
    Ok(())
}

/// Runs until so many `vcpus` have made their readings; counts in `seen` which of all have.
fn run_and_stop(vm: &Vm, vcpus: usize, seen: &mut [u32]) -> Result<()> {
    let before = Progress::of(vm);
    // Not `Vm::run()`, which returns when the last has got a CPU.
    vm.vcpus().iter().for_each(Vcpu::request_run);
    before.wait_for(vm, vcpus, READINGS)?;
    vm.stop()?;
    for (seen, read) in seen.iter_mut().zip(Progress::of(vm).since(&before)) {
        *seen += u32::from(read >= READINGS);
    }
    Ok(())
}
