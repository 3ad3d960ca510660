// SPDX-License-Identifier: GPL-2.0-only

//! The mode, and what it does to the clocks.

use crate::{
    state::{always, ensure_advanced, ensure_frozen, on_host, restore, save, save_changed},
    Host, VCPUS,
};
use kvm_clock::{HostCheck, Mode, Outcome, Policy, Procedure};
use kvm_clock_guest_selftests::prelude::*;

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("same host: exact, into a new VM, bit for bit", exact),
        Case::new("same host: exact, in the same VM, bit for bit", same_vm),
        Case::new("another boot ID: advance", another_boot),
        Case::new("same boot ID, TSC of another host: advance", another_tsc),
        Case::new("exact on request, after a kexec", kexec),
        Case::new("freeze on request", freeze),
        Case::new("the order of the vCPUs does not matter", order),
    ]
}

fn ensure_clean(outcome: &Outcome, mode: Mode, host: HostCheck) -> Result<()> {
    ensure_eq!(outcome.mode, mode, "mode");
    ensure_eq!(outcome.host, host, "comparison of the hosts");
    ensure_eq!(outcome.procedure, Procedure::Module, "procedure");
    ensure_eq!(outcome.lost, vec![], "lost");
    ensure_eq!(outcome.precision_ns, 0, "precision, ns");
    Ok(())
}

fn exact(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, VCPUS)?;
    let (before, saved) = (Clocks::of(&vm)?, save(&vm)?);
    let vm = successor(&kvm, vm)?;
    let outcome = restore(&vm, &saved, &Policy::default())?;
    ensure_clean(&outcome, Mode::Exact, HostCheck::Same)?;
    run_a_little(&vm)?;
    before.ensure_unchanged(&vm)
}

fn same_vm(host: &Host) -> Result<()> {
    let vm = pinned(&host.kvm()?, VCPUS)?;
    let (before, saved) = (Clocks::of(&vm)?, save(&vm)?);
    vm.set_tsc_offset(1, TscOffset(7))?;
    set_clock(&vm, 5)?;
    let outcome = restore(&vm, &saved, &Policy::default())?;
    ensure_clean(&outcome, Mode::Exact, HostCheck::Same)?;
    run_a_little(&vm)?;
    before.ensure_unchanged(&vm)
}

fn another_boot(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, VCPUS)?;
    let saved = save_changed(&vm, move_to_other_host)?;
    let vm = successor(&kvm, vm)?;
    let outcome = restore(&vm, &saved, &on_host("another"))?;
    ensure_clean(&outcome, Mode::Advance, HostCheck::OtherBoot)?;
    let hour = HOUR_NS.unsigned_abs();
    ensure!(
        (hour..hour + 60 * SECOND_NS.unsigned_abs()).contains(&outcome.advanced_ns),
        "advanced by {} ns",
        outcome.advanced_ns
    );
    run_a_little(&vm)?;
    ensure_advanced(&vm, &saved.clock()?, 0)
}

fn another_tsc(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, VCPUS)?;
    let saved = save_changed(&vm, |clock| move_to_domain(clock, OTHER_DOMAIN))?;
    let vm = successor(&kvm, vm)?;
    let outcome = restore(&vm, &saved, &Policy::default())?;
    ensure!(
        matches!(outcome.host, HostCheck::TscDiffers { .. }),
        "the comparison showed {:?}",
        outcome.host
    );
    ensure_clean(&outcome, Mode::Advance, outcome.host)?;
    ensure_advanced(&vm, &saved.clock()?, 0)
}

fn kexec(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, VCPUS)?;
    let (before, saved) = (Clocks::of(&vm)?, save(&vm)?);
    let vm = successor(&kvm, vm)?;
    let policy = Policy {
        mode: always(Mode::Exact).mode,
        ..on_host("another")
    };
    let outcome = restore(&vm, &saved, &policy)?;
    ensure_clean(&outcome, Mode::Exact, HostCheck::NotCompared)?;
    run_a_little(&vm)?;
    before.ensure_unchanged(&vm)
}

fn freeze(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, VCPUS)?;
    let saved = save_changed(&vm, move_to_other_host)?;
    let vm = successor(&kvm, vm)?;
    let outcome = restore(&vm, &saved, &always(Mode::Freeze))?;
    ensure_clean(&outcome, Mode::Freeze, HostCheck::NotCompared)?;
    ensure_eq!(outcome.advanced_ns, 0, "advanced, ns");
    ensure_frozen(&vm, &saved.clock()?, 0)
}

fn order(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, VCPUS)?;
    vm.set_tsc_offset(2, TscOffset(12_345))?;
    run_a_little(&vm)?;
    let before = Clocks::of(&vm)?;
    let saved = save_changed(&vm, |clock| clock.vcpus.reverse())?;
    let vm = successor(&kvm, vm)?;
    restore(&vm, &saved, &Policy::default())?;
    run_a_little(&vm)?;
    before.ensure_unchanged(&vm)
}
