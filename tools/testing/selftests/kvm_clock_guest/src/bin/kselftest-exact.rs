// SPDX-License-Identifier: GPL-2.0-only

//! Mode exact: SET restores all saved bits. (kselftest-rebase: and nothing changes them.)

use kvm_clock_guest_selftests::{prelude::*, snippet};

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

fn same_vm(kvm: &Kvm, vcpus: u32) -> Result<()> {
    let vm = derived(kvm, vcpus)?;
    let before = Clocks::of(&vm)?;
    ensure!(!before.pinned, "a record is pinned before any SET");
    for cycle in 1..=CYCLES {
        set(&vm, &mut get(&vm)?, MODE_EXACT)?;
        run_a_little(&vm)?;
        before
            .as_pinned()
            .ensure_is(&Clocks::of(&vm)?, &format!("after cycle {cycle}"))?;
    }
    Ok(())
}

fn new_vm(kvm: &Kvm, vcpus: u32) -> Result<()> {
    let mut vm = derived(kvm, vcpus)?;
    let before = Clocks::of(&vm)?;
    for cycle in 1..=CYCLES {
        let mut clock = get(&vm)?;
        vm = successor(kvm, vm)?;
        set(&vm, &mut clock, MODE_EXACT)?;
        run_a_little(&vm)?;
        before
            .as_pinned()
            .ensure_is(&Clocks::of(&vm)?, &format!("after cycle {cycle}"))?;
    }
    Ok(())
}

/// GET of a VM that never ran reports the clocks that SET makes true from the first KVM_RUN on.
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
    ensure_eq_hex!(now.vcpus, clock.vcpus, "vCPUs");
    run_a_little(&target)?;
    let page = pages(&target)[0];
    ensure_eq_hex!(page, clock.header.record, "the guest's record");
    Clocks::of(&target)?.as_pinned().ensure_unchanged(&target)
}

/// The clocks of a guest that has no record are restored as well.
fn without_kvmclock(kvm: &Kvm) -> Result<()> {
    let vm = Vm::empty(kvm, 1)?;
    snippet::halt_in_real_mode(&vm, &mut vm.vcpus()[0].fd())?;
    let before = Clocks::of(&vm)?;
    set(&vm, &mut get(&vm)?, MODE_EXACT)?;
    snippet::halt_in_real_mode(&vm, &mut vm.vcpus()[0].fd())?;
    before
        .as_pinned()
        .ensure_is(&Clocks::of(&vm)?, "after SET and KVM_RUN")
}
