// SPDX-License-Identifier: GPL-2.0-only

//! Mode exact: what was saved comes back bit for bit. (kselftest-rebase: and stays.)

use anyhow::{ensure, Result};
use clockguest::vmm::Vm;
use kvm_clock_guest_selftests::{
    clocks::{pages, Clocks},
    fixture::{derived, get, run_a_little, set},
    halting,
    ktap::{self, Case},
    require,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{MODE_EXACT, STATUS_PINNED};
use std::process::ExitCode;

/// Save and restore, over and over.
const CYCLES: u32 = 100;

fn main() -> ExitCode {
    let mut cases = Vec::new();
    for vcpus in [1, 4] {
        cases.extend([
            Case::new(
                format!("{CYCLES} cycles in one VM, {vcpus} vCPUs"),
                move |kvm| same_vm(kvm, vcpus),
            ),
            Case::new(
                format!("{CYCLES} cycles, each into a new VM, {vcpus} vCPUs"),
                move |kvm| new_vm(kvm, vcpus),
            ),
            Case::new(
                format!("before the first KVM_RUN, {vcpus} vCPUs"),
                move |kvm| before_first_run(kvm, vcpus),
            ),
        ]);
    }
    cases.push(Case::new(
        "a guest that never enabled kvmclock",
        without_kvmclock,
    ));
    ktap::main(require::clock_guest, cases)
}

/// What a restored VM must look like: the same, with the record pinned from now on.
fn as_pinned(clocks: &Clocks) -> Clocks {
    Clocks {
        pinned: true,
        ..clocks.clone()
    }
}

fn same_vm(kvm: &Kvm, vcpus: u32) -> Result<()> {
    let vm = derived(kvm, vcpus)?;
    let before = Clocks::of(&vm)?;
    ensure!(!before.pinned, "a record is pinned before any SET");
    for cycle in 1..=CYCLES {
        set(&vm, &mut get(&vm)?, MODE_EXACT)?;
        run_a_little(&vm)?;
        as_pinned(&before).ensure_is(&Clocks::of(&vm)?, &format!("after cycle {cycle}"))?;
    }
    Ok(())
}

fn new_vm(kvm: &Kvm, vcpus: u32) -> Result<()> {
    let mut vm = derived(kvm, vcpus)?;
    let before = Clocks::of(&vm)?;
    for cycle in 1..=CYCLES {
        let (state, mut clock) = (vm.save()?, get(&vm)?);
        drop(vm);
        vm = Vm::empty(kvm, vcpus)?;
        vm.load(&state)?;
        set(&vm, &mut clock, MODE_EXACT)?;
        run_a_little(&vm)?;
        as_pinned(&before).ensure_is(&Clocks::of(&vm)?, &format!("after cycle {cycle}"))?;
    }
    Ok(())
}

/// GET of a VM that never ran says what SET makes true, from the first KVM_RUN on.
fn before_first_run(kvm: &Kvm, vcpus: u32) -> Result<()> {
    let (source, target) = (Vm::new(kvm, vcpus)?, Vm::new(kvm, vcpus)?);
    let mut clock = get(&source)?;
    set(&target, &mut clock, MODE_EXACT)?;

    let now = get(&target)?;
    ensure!(
        now.header.status & STATUS_PINNED != 0,
        "status is {:#x}",
        now.header.status
    );
    ensure!(
        now.vcpus == clock.vcpus,
        "offsets were {:x?}, are {:x?}",
        clock.vcpus,
        now.vcpus
    );
    run_a_little(&target)?;
    let page = pages(&target)[0];
    ensure!(
        page == clock.header.record,
        "the guest reads {page:x?}, set was {:x?}",
        clock.header.record
    );
    as_pinned(&Clocks::of(&target)?).ensure_unchanged(&target)
}

/// The clocks of a guest that has no record are restored as well.
fn without_kvmclock(kvm: &Kvm) -> Result<()> {
    let vm = Vm::empty(kvm, 1)?;
    halting::run(&vm, &mut vm.vcpus()[0].fd())?;
    let before = Clocks::of(&vm)?;
    set(&vm, &mut get(&vm)?, MODE_EXACT)?;
    halting::run(&vm, &mut vm.vcpus()[0].fd())?;
    as_pinned(&before).ensure_is(&Clocks::of(&vm)?, "after SET and KVM_RUN")
}
