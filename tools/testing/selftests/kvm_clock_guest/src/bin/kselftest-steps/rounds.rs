// SPDX-License-Identifier: GPL-2.0-only

//! Stops, SETs and continues the guest, in every mode in turn.

use crate::SETS;
use clockguest::vmm::vcpu::Vcpu;
use kvm_clock_guest_selftests::{
    apart::{apart, ensure_apart, AHEAD},
    prelude::*,
    progress::Progress,
};

/// SETs of a VM whose vCPUs' TSCs differ and cannot be compared.
const SETS_APART: u32 = SETS / 8;

/// Readings of a vCPU between two SETs: the first may have begun before the former SET, and the
/// last is compared with later ones.
const READINGS: u64 = 3;

/// Before one SET in so many the test waits for all vCPUs, which takes long if four vCPUs share two
/// CPUs. Before the others it waits for any vCPU. A vCPU that did not run still compares its next
/// reading with its last one.
const ALL_EVERY: u32 = 4;

/// A mode, and the anchor in another host TSC domain, if any.
const WAYS: &[(u32, Option<HostTsc>)] = &[
    (MODE_EXACT, None),
    (MODE_FREEZE, None),
    (MODE_ADVANCE, None),
    (MODE_FREEZE, Some(HostTsc(0))),
    (MODE_ADVANCE, Some(HostTsc(1 << 63))),
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

/// With `comparable`, the vCPUs' TSCs are the same.
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
    note!(
        "{sets} SETs, {moves} of which moved the TSCs, in {seconds:.1} s; by vCPU: {read:?} \
         readings, between {seen:?} of the SETs"
    );
    first.ensure_none_went_back(vm, comparable)?;
    ensure!(
        seen.iter().all(|seen| *seen >= sets / ALL_EVERY),
        "vCPUs read between {seen:?} of {sets} SETs"
    );
    // Each FREEZE hides the time since GET, which is never 0.
    ensure!(moves >= sets / 3, "only {moves} of {sets} SETs moved TSCs");
    let record = get(vm)?.header.record;
    ensure!(
        record == before.record && pages(vm) == before.pages,
        "the records were {before:x?}, are {record:x?} and {:x?}",
        pages(vm)
    );
    Ok(())
}

/// Runs until `vcpus` of the vCPUs have made their readings; counts in `seen` which ones have.
fn run_and_stop(vm: &Vm, vcpus: usize, seen: &mut [u32]) -> Result<()> {
    let before = Progress::of(vm);
    // `Vm::run()` would wait until the last vCPU has got a CPU.
    vm.vcpus().iter().for_each(Vcpu::request_run);
    before.wait_for(vm, vcpus, READINGS)?;
    vm.stop()?;
    for (seen, read) in seen.iter_mut().zip(Progress::of(vm).since(&before)) {
        *seen += u32::from(read >= READINGS);
    }
    Ok(())
}
