// SPDX-License-Identifier: GPL-2.0-only

//! Hosts without the module: there, here, or both.

use crate::{
    state::{
        always, ensure_advanced, ensure_frozen, ensure_function, on_host, restore, save,
        save_changed,
    },
    Host, VCPUS,
};
use kvm_clock::{Error, Loss, Mode, NoModule, Outcome, Policy, Procedure};
use kvm_clock_guest_selftests::prelude::*;

/// More than the older ioctls are off by, ns; a clock that is not set at all is off by far more.
const MOST_NS: u32 = 1_000_000;

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("absent here: exact, TSCs bit for bit", exact),
        Case::new("absent here: advance", advance),
        Case::new("absent here: freeze", freeze),
        Case::new("absent here: refuse", refuse),
        Case::new("absent here: time backwards, freeze", behind),
        Case::new("absent there: the record is rebuilt to 2 ns", absent_there),
        Case::new("absent there and here: exact", absent_twice),
        Case::new("absent here: vCPUs that differ are refused", vcpus_differ),
    ]
}

/// Fails unless the old ioctls were used, with the reported losses; returns the precision, ns.
fn ensure_legacy(outcome: &Outcome, mode: Mode, others: &[Loss]) -> Result<u32> {
    ensure_eq!(outcome.procedure, Procedure::Legacy, "procedure");
    ensure_eq!(outcome.mode, mode, "mode");
    let here = |loss: &&Loss| matches!(loss, Loss::NoModuleHere(ns) if *ns < MOST_NS);
    ensure!(
        outcome.lost.iter().any(|loss| here(&loss)),
        "lost: {:?}",
        outcome.lost
    );
    for other in others {
        ensure!(
            outcome.lost.contains(other),
            "lost: {:?}, not {other:?}",
            outcome.lost
        );
    }
    note!("{}", outcome.lost().unwrap_or_default());
    Ok(outcome.precision_ns)
}

fn exact(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = pinned_an_hour_ahead(&kvm, VCPUS)?.0;
    let saved = save(&vm)?;
    let vm = successor(&kvm, vm)?;
    let unloaded = host.module.unload()?;
    let outcome = restore(&vm, &saved, &Policy::default())?;
    let precision_ns = ensure_legacy(&outcome, Mode::Exact, &[Loss::StealTime])?;
    let clock = saved.clock()?;
    let (now, expected) = (vm.tsc_offsets()?, offsets(&clock));
    ensure_eq_hex!(now, expected, "TSC offsets");
    ensure_function(&vm, &clock, precision_ns)?;
    run_a_little(&vm)?;
    // KVM's record drifts from the saved one, by less than 1 ppm.
    ensure_function(&vm, &clock, precision_ns + MOST_NS)?;
    unloaded.load()
}

fn advance(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, VCPUS)?;
    let saved = save_changed(&vm, move_to_other_host)?;
    let vm = successor(&kvm, vm)?;
    let unloaded = host.module.unload()?;
    let outcome = restore(&vm, &saved, &on_host("another"))?;
    let precision_ns = ensure_legacy(&outcome, Mode::Advance, &[])?;
    ensure_advanced(&vm, &saved.clock()?, precision_ns)?;
    unloaded.load()
}

fn freeze(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, VCPUS)?;
    let saved = save_changed(&vm, move_to_other_host)?;
    let vm = successor(&kvm, vm)?;
    let unloaded = host.module.unload()?;
    let outcome = restore(&vm, &saved, &always(Mode::Freeze))?;
    let precision_ns = ensure_legacy(&outcome, Mode::Freeze, &[])?;
    ensure_frozen(&vm, &saved.clock()?, precision_ns)?;
    unloaded.load()
}

/// Offsets and KVM's clock, without the module, which `Clocks` needs.
fn visible(vm: &Vm) -> Result<(Vec<TscOffset>, Vec<ClockGuest>)> {
    Ok((vm.tsc_offsets()?, pages(vm)))
}

fn ensure_refused_without(
    host: &Host,
    change: impl FnOnce(&mut VmClock),
    policy: &Policy,
    is: fn(&Error) -> bool,
) -> Result<()> {
    let vm = pinned(&host.kvm()?, VCPUS)?;
    let saved = save_changed(&vm, change)?;
    vm.set_tsc_offset(0, TscOffset(1))?;
    run_a_little(&vm)?;
    let unloaded = host.module.unload()?;
    let before = visible(&vm)?;
    let error = restore(&vm, &saved, policy).err();
    run_a_little(&vm)?;
    let after = visible(&vm)?;
    unloaded.load()?;
    let error = error.context("the restore succeeded")?;
    ensure!(is(&error), "{error:?}");
    ensure_eq_hex!(after, before, "offsets and records");
    Ok(())
}

fn refuse(host: &Host) -> Result<()> {
    let policy = Policy {
        no_module: NoModule::Refuse,
        ..Policy::default()
    };
    let is = |error: &Error| matches!(error, Error::NoModule { cap: 0 });
    ensure_refused_without(host, |_| (), &policy, is)
}

fn vcpus_differ(host: &Host) -> Result<()> {
    let is = |error: &Error| matches!(error, Error::VcpuAdded(2));
    ensure_refused_without(
        host,
        |clock| clock.vcpus.truncate(2),
        &Policy::default(),
        is,
    )
}

fn behind(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, VCPUS)?;
    let saved = save_changed(&vm, |clock| clock.header.tai_ns += HOUR_NS)?;
    let vm = successor(&kvm, vm)?;
    let unloaded = host.module.unload()?;
    let outcome = restore(&vm, &saved, &on_host("another"))?;
    let precision_ns = ensure_legacy(&outcome, Mode::Freeze, &[])?;
    ensure!(
        matches!(outcome.lost[0], Loss::Behind(_)),
        "lost: {:?}",
        outcome.lost
    );
    ensure_frozen(&vm, &saved.clock()?, precision_ns)?;
    unloaded.load()
}

fn absent_there(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let unloaded = host.module.unload()?;
    let vm = derived(&kvm, VCPUS)?;
    let saved = save(&vm)?;
    unloaded.load()?;
    // What the module would have saved.
    let own = get(&vm)?;
    let offsets = vm.tsc_offsets()?;
    let vm = successor(&kvm, vm)?;
    let outcome = restore(&vm, &saved, &Policy::default())?;
    ensure_eq!(outcome.procedure, Procedure::Module, "procedure");
    ensure_eq!(outcome.lost, vec![Loss::NoModuleThere(2)], "lost");
    ensure_eq!(outcome.precision_ns, 2, "precision, ns");
    ensure_eq_hex!(vm.tsc_offsets()?, offsets, "TSC offsets");
    ensure_function(&vm, &own, 2)
}

fn absent_twice(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let unloaded = host.module.unload()?;
    let vm = derived(&kvm, VCPUS)?;
    let saved = save(&vm)?;
    let offsets = vm.tsc_offsets()?;
    let vm = successor(&kvm, vm)?;
    let outcome = restore(&vm, &saved, &Policy::default())?;
    let precision_ns = ensure_legacy(&outcome, Mode::Exact, &[Loss::NoModuleThere(2)])?;
    ensure_eq_hex!(vm.tsc_offsets()?, offsets, "TSC offsets");
    ensure_function(&vm, &saved.clock()?, precision_ns)?;
    unloaded.load()
}
