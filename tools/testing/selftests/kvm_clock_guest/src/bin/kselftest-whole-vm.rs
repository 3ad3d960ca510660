// SPDX-License-Identifier: GPL-2.0-only

//! vCPUs whose TSC offsets differ stay apart by the same amounts, in every mode and whatever the
//! order of the array; all read one kvmclock.

use anyhow::{
    ensure,
    Context,
    Result, //
};
use clockguest::vmm::{
    ioctl::VmClock,
    vcpu_ioctl::set_tsc_offset,
    Vm, //
};
use kvm_clock_guest_selftests::{
    clocks::{
        without_version,
        Clocks, //
    },
    fixture::{
        get,
        kept,
        make_consistent,
        move_to_domain,
        run_a_little,
        set, //
    },
    ktap::{
        self,
        Case, //
    },
    require,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{
    MODE_ADVANCE,
    MODE_EXACT,
    MODE_FREEZE, //
};
use std::process::ExitCode;

/// How far each vCPU's TSC is ahead of the first one's, ticks.
const AHEAD: [i64; 4] = [0, 1, -1_000_000_007, 1 << 40];
const HOUR_NS: i64 = 3600 * 1_000_000_000;

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
    ];
    for &(name, order) in ORDERS {
        cases.push(Case::new(format!("exact, array {name}"), move |kvm| {
            exact(kvm, order)
        }));
    }
    ktap::main(require::clock_guest, cases)
}

/// A stopped VM with a kept record whose vCPUs are [`AHEAD`] of the first.
fn apart(kvm: &Kvm) -> Result<Vm> {
    let vm = kept(kvm, AHEAD.len() as u32)?;
    let first = vm.tsc_offsets()?[0];
    for (vcpu, ahead) in vm.vcpus().iter().zip(AHEAD) {
        set_tsc_offset(&vcpu.fd(), first.wrapping_add_signed(ahead))
            .context("KVM_VCPU_TSC_OFFSET")?;
    }
    run_a_little(&vm)?;
    ensure_apart(&vm)?;
    Ok(vm)
}

fn ensure_apart(vm: &Vm) -> Result<()> {
    let offsets = vm.tsc_offsets()?;
    // CAST: the signed differences of values mod 2^64.
    let ahead = offsets
        .iter()
        .map(|offset| offset.wrapping_sub(offsets[0]) as i64);
    let ahead: Vec<_> = ahead.collect();
    ensure!(
        ahead == AHEAD,
        "vCPUs are {ahead:?} ticks ahead of the first, were {AHEAD:?}"
    );
    Ok(())
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
