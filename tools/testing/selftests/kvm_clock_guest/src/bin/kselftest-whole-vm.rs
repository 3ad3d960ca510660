// SPDX-License-Identifier: GPL-2.0-only

//! vCPUs whose TSC offsets differ stay apart by the same amounts, in every mode and whatever the
//! order of the array; all read one kvmclock, and so does one that is added later.

use kvm_clock_guest_selftests::{
    apart::{apart, ensure_apart, AHEAD},
    prelude::*,
    progress::Progress,
    snippet,
};

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
        Case::new("vCPUs with different TSCs read one kvmclock", one_clock),
        Case::new("exact, in a new VM", exact_new_vm),
        Case::new("advance", |kvm| moved(kvm, MODE_ADVANCE)),
        Case::new("freeze", |kvm| moved(kvm, MODE_FREEZE)),
        Case::new("exact, another vCPU as the reference", other_reference),
        Case::new(
            "a vCPU added to vCPUs with different TSCs reads their kvmclock",
            |kvm| {
                let vm = apart(kvm)?;
                hot_add(&vm, MODE_ADVANCE)?;
                ensure_apart(&vm)
            },
        ),
    ];
    for (name, mode) in MODES {
        cases.push(Case::new(
            format!("a vCPU added after {name} joins the running others"),
            move |kvm| hot_add(&pinned(kvm, 3)?, mode),
        ));
    }
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
        ensure_eq_hex!(observed, expected, "vCPU {index}'s record");
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
    let mut clock = get(&vm)?;
    let vm = successor(kvm, vm)?;
    set(&vm, &mut clock, MODE_EXACT)?;
    run_a_little(&vm)?;
    before.ensure_is(&Clocks::of(&vm)?, "in the new VM")
}

/// From another host TSC domain, an hour ago.
fn moved(kvm: &Kvm, mode: u32) -> Result<()> {
    let vm = apart(kvm)?;
    let before = Clocks::of(&vm)?;
    let mut clock = get(&vm)?;
    move_to_other_host(&mut clock);
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

/// The same clocks, with the last vCPU as the reference.
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
    ensure_eq!(
        clock.header.kvmclock_ns,
        kvmclock_ns,
        "kvmclock by the last vCPU, ns"
    );
    set(&vm, &mut clock, MODE_EXACT)?;
    before.ensure_unchanged(&vm)
}

/// Adds a vCPU while the others run, after a SET from another host TSC domain (except for exact).
/// It has the TSC of one of them, and the record for that TSC. The others do not change.
fn hot_add(vm: &Vm, mode: u32) -> Result<()> {
    let mut clock = get(vm)?;
    if mode != MODE_EXACT {
        move_to_other_host(&mut clock);
    }
    set(vm, &mut clock, mode)?;
    run_a_little(vm)?;
    let before = Clocks::of(vm)?;
    let (first, version) = (Progress::of(vm), versions(vm));

    vm.run()?;
    first.wait(vm, 2)?;
    let mut added = snippet::add_vcpu(vm)?;
    let page = without_version(snippet::record_in_real_mode(vm, &mut added)?);
    // When a vCPU enables kvmclock, KVM updates that of all vCPUs some time later.
    sleep(KVMCLOCK_UPDATE_DELAY);
    Progress::of(vm).wait(vm, 2)?;
    vm.stop()?;

    let matched = before
        .offsets
        .iter()
        .all(|offset| *offset == before.offsets[0]);
    first.ensure_none_went_back(vm, matched)?;
    note!(
        "versions of the others' records: {version:?}, then {:?}",
        versions(vm)
    );
    before.ensure_unchanged(vm)?;

    let offset = tsc_offset(&added).context("KVM_VCPU_TSC_OFFSET")?;
    ensure!(
        before.offsets.contains(&offset),
        "the new vCPU's offset is {offset:#x}, the others' {:x?}",
        before.offsets
    );
    let expected = before.pages[0].shifted_by(offset.since(before.offsets[0]));
    ensure_eq_hex!(page, expected, "the new vCPU's record");
    let count = before.offsets.len() + 1;
    let mut clock = get(vm)?;
    ensure!(
        clock.vcpus.len() == count && clock.vcpus[count - 1].tsc_offset == offset,
        "GET reports {:x?}",
        clock.vcpus
    );
    set(vm, &mut clock, MODE_EXACT)?;
    before.ensure_unchanged(vm)
}
