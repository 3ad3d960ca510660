// SPDX-License-Identifier: GPL-2.0-only

//! vCPUs whose TSC offsets differ stay apart by the same amounts, in every mode and whatever the
//! order of the array; all read one kvmclock, and so does one that is added later.

use anyhow::{ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::{tsc_offset, VmClock};
use kvm_clock_guest_selftests::{
    apart::{apart, ensure_apart, AHEAD},
    clocks::{without_version, Clocks},
    fixture::{get, make_consistent, move_to_domain, pinned, run_a_little, set},
    flat_out::Progress,
    halting,
    ktap::{self, note, Case},
    require,
    time::HOUR_NS,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{MODE_ADVANCE, MODE_EXACT, MODE_FREEZE};
use std::{process::ExitCode, thread::sleep, time::Duration};

/// More than KVM's `KVMCLOCK_UPDATE_DELAY`.
const KVMCLOCK_UPDATE_DELAY: Duration = Duration::from_millis(150);

/// Orders that the array of SET may have.
const ORDERS: &[(&str, Order)] = &[
    ("as GET has it", |_| ()),
    ("reversed", |clock| clock.vcpus.reverse()),
    ("rotated", |clock| clock.vcpus.rotate_left(1)),
];

type Order = fn(&mut VmClock);

fn main() -> ExitCode {
    let mut cases = vec![
        Case::new("vCPUs apart read one kvmclock", one_clock),
        Case::new("exact, in a new VM", exact_new_vm),
        Case::new("advance", |kvm| moved(kvm, MODE_ADVANCE)),
        Case::new("freeze", |kvm| moved(kvm, MODE_FREEZE)),
        Case::new("exact, another vCPU as the reference", other_reference),
        Case::new("a vCPU added after exact joins the running others", |kvm| {
            hot_add(&pinned(kvm, 3)?, kvm, MODE_EXACT)
        }),
        Case::new(
            "a vCPU added after advance joins the running others",
            |kvm| hot_add(&pinned(kvm, 3)?, kvm, MODE_ADVANCE),
        ),
        Case::new(
            "a vCPU added after freeze joins the running others",
            |kvm| hot_add(&pinned(kvm, 3)?, kvm, MODE_FREEZE),
        ),
        Case::new("a vCPU added to vCPUs apart reads their kvmclock", |kvm| {
            let vm = apart(kvm)?;
            hot_add(&vm, kvm, MODE_ADVANCE)?;
            ensure_apart(&vm)
        }),
    ];
    for &(name, order) in ORDERS {
        cases.push(Case::new(format!("exact, array {name}"), move |kvm| {
            exact(kvm, order)
        }));
    }
    ktap::main(require::clock_guest, cases)
}

/// Each vCPU's record is the first one's, shifted by as much as its TSC is.
fn one_clock(kvm: &Kvm) -> Result<()> {
    let vm = apart(kvm)?;
    let first = get(&vm)?.header.record;
    let reading = run_a_little(&vm)?;
    for (index, (vcpu, ahead)) in reading.vcpus.iter().zip(AHEAD).enumerate() {
        // CAST: mod 2^64, as TSC values are.
        let expected = first.shifted_by(ahead as u64);
        let observed = without_version(vcpu.record);
        ensure!(
            observed == expected,
            "vCPU {index} reads {observed:x?}, expected {expected:x?}"
        );
    }
    Ok(())
}

fn exact(kvm: &Kvm, order: fn(&mut VmClock)) -> Result<()> {
    let vm = apart(kvm)?;
    let before = Clocks::of(&vm)?;
    let mut clock = get(&vm)?;
    order(&mut clock);
    set(&vm, &mut clock, MODE_EXACT)?;
    before.ensure_unchanged(&vm)
}

fn exact_new_vm(kvm: &Kvm) -> Result<()> {
    let vm = apart(kvm)?;
    let before = Clocks::of(&vm)?;
    let (state, mut clock) = (vm.save()?, get(&vm)?);
    drop(vm);
    let vm = Vm::empty(kvm, AHEAD.len() as u32)?;
    vm.load(&state)?;
    set(&vm, &mut clock, MODE_EXACT)?;
    run_a_little(&vm)?;
    before.ensure_is(&Clocks::of(&vm)?, "in the new VM")
}

/// From another host TSC domain, an hour ago.
fn moved(kvm: &Kvm, mode: u32) -> Result<()> {
    let vm = apart(kvm)?;
    let before = Clocks::of(&vm)?;
    let mut clock = get(&vm)?;
    move_to_domain(&mut clock, 1 << 60);
    clock.header.tai_ns -= HOUR_NS;
    set(&vm, &mut clock, mode)?;
    ensure_apart(&vm)?;
    run_a_little(&vm)?;
    let now = Clocks::of(&vm)?;
    ensure!(now.offsets != before.offsets, "no offset was changed");
    let expected = Clocks {
        offsets: now.offsets.clone(),
        ..before
    };
    expected.ensure_is(&now, "after SET")
}

/// The same clocks, told by the last vCPU.
fn other_reference(kvm: &Kvm) -> Result<()> {
    let vm = apart(kvm)?;
    let before = Clocks::of(&vm)?;
    let mut clock = get(&vm)?;
    let last = AHEAD.len() - 1;
    clock.header.ref_vcpu_id = clock.vcpus[last].vcpu_id;
    // CAST: mod 2^64, as TSC values are.
    clock.header.record = clock.header.record.shifted_by(AHEAD[last] as u64);
    let kvmclock_ns = clock.header.kvmclock_ns;
    make_consistent(&mut clock);
    ensure!(
        clock.header.kvmclock_ns == kvmclock_ns,
        "by the last vCPU kvmclock is {} ns at the anchor, by the first {kvmclock_ns} ns",
        clock.header.kvmclock_ns
    );
    set(&vm, &mut clock, MODE_EXACT)?;
    before.ensure_unchanged(&vm)
}

/// A new vCPU comes while the others run, after a SET from another host TSC domain (but for exact).
/// It has the TSC of one of them, and the record as it is for that TSC. The others notice nothing.
fn hot_add(vm: &Vm, kvm: &Kvm, mode: u32) -> Result<()> {
    let mut clock = get(vm)?;
    if mode != MODE_EXACT {
        move_to_domain(&mut clock, 1 << 60);
        clock.header.tai_ns -= HOUR_NS;
    }
    set(vm, &mut clock, mode)?;
    run_a_little(vm)?;
    let before = Clocks::of(vm)?;
    let (first, versions) = (Progress::of(vm), record_versions(vm));

    vm.run()?;
    first.wait(vm, 2)?;
    let mut added = halting::add_vcpu(kvm, vm)?;
    let page = without_version(halting::record(vm, &mut added)?);
    // A vCPU that enables kvmclock makes KVM update everybody's, some time later.
    sleep(KVMCLOCK_UPDATE_DELAY);
    Progress::of(vm).wait(vm, 2)?;
    vm.stop()?;

    let matched = before
        .offsets
        .iter()
        .all(|offset| *offset == before.offsets[0]);
    first.ensure_none_went_back(vm, matched)?;
    note(&format!(
        "versions of the others' records: {versions:?}, then {:?}",
        record_versions(vm)
    ));
    before.ensure_unchanged(vm)?;

    let offset = tsc_offset(&added).context("KVM_VCPU_TSC_OFFSET")?;
    ensure!(
        before.offsets.contains(&offset),
        "the new vCPU's offset is {offset:#x}, the others' {:x?}",
        before.offsets
    );
    let expected = before.pages[0].shifted_by(offset.wrapping_sub(before.offsets[0]));
    ensure!(
        page == expected,
        "the new vCPU reads {page:x?}, expected {expected:x?}"
    );
    let count = before.offsets.len() + 1;
    let mut clock = get(vm)?;
    ensure!(
        clock.vcpus.len() == count && clock.vcpus[count - 1].tsc_offset == offset,
        "GET says {:x?}",
        clock.vcpus
    );
    set(vm, &mut clock, MODE_EXACT)?;
    before.ensure_unchanged(vm)
}

fn record_versions(vm: &Vm) -> Vec<u32> {
    let vcpus = vm.vcpus().iter();
    vcpus
        .map(|vcpu| vm.view(vcpu.index()).pvclock().version)
        .collect()
}
