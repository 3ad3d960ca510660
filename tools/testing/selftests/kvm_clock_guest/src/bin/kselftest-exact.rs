// SPDX-License-Identifier: GPL-2.0-only

//! Mode exact: what was saved comes back bit for bit, and nothing re-bases it afterwards.

use anyhow::{
    ensure,
    Context,
    Result, //
};
use clockguest::{
    guest::code::MSR_KVM_SYSTEM_TIME_NEW,
    vmm::{
        vm::{
            get_msr,
            set_msr, //
        },
        Vm, //
    },
};
use kvm_bindings::kvm_clock_data;
use kvm_clock_guest_selftests::{
    clocks::{
        function,
        pages,
        Clocks, //
    },
    fixture::{
        derived,
        get,
        kept,
        run_a_little,
        set, //
    },
    halting,
    ktap::{
        self,
        Case, //
    },
    require,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{
    MODE_EXACT,
    STATUS_KEPT, //
};
use std::process::ExitCode;

/// pvclock flag that tells the guest it was stopped.
const PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;
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
    cases.extend([
        Case::new("a guest that never enabled kvmclock", without_kvmclock),
        Case::new("kvmclock enabled again leaves the record", enable_again),
        Case::new("KVM_KVMCLOCK_CTRL leaves the record", kvmclock_ctrl),
        Case::new("a hot-added vCPU leaves and shares the record", hot_add),
        Case::new("KVM_SET_CLOCK replaces the record", set_clock),
    ]);
    ktap::main(require::clock_guest, cases)
}

/// What a restored VM must look like: the same, with the record kept from now on.
fn as_kept(clocks: &Clocks) -> Clocks {
    Clocks {
        kept: true,
        ..clocks.clone()
    }
}

fn same_vm(kvm: &Kvm, vcpus: u32) -> Result<()> {
    let vm = derived(kvm, vcpus)?;
    let before = Clocks::of(&vm)?;
    ensure!(!before.kept, "a record is kept before any SET");
    for cycle in 1..=CYCLES {
        set(&vm, &mut get(&vm)?, MODE_EXACT)?;
        run_a_little(&vm)?;
        as_kept(&before).ensure_is(&Clocks::of(&vm)?, &format!("after cycle {cycle}"))?;
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
        as_kept(&before).ensure_is(&Clocks::of(&vm)?, &format!("after cycle {cycle}"))?;
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
        now.header.status & STATUS_KEPT != 0,
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
    as_kept(&Clocks::of(&target)?).ensure_unchanged(&target)
}

/// The clocks of a guest that has no record are restored as well.
fn without_kvmclock(kvm: &Kvm) -> Result<()> {
    let vm = Vm::empty(kvm, 1)?;
    halting::run(&vm, &mut vm.vcpus()[0].fd())?;
    let before = Clocks::of(&vm)?;
    set(&vm, &mut get(&vm)?, MODE_EXACT)?;
    halting::run(&vm, &mut vm.vcpus()[0].fd())?;
    as_kept(&before).ensure_is(&Clocks::of(&vm)?, "after SET and KVM_RUN")
}

/// KVM then writes the record anew, at the address of before.
fn enable_again(kvm: &Kvm) -> Result<()> {
    let vm = kept(kvm, 2)?;
    let before = Clocks::of(&vm)?;
    for vcpu in vm.vcpus() {
        let fd = vcpu.fd();
        let address = get_msr(&fd, MSR_KVM_SYSTEM_TIME_NEW)?;
        set_msr(&fd, MSR_KVM_SYSTEM_TIME_NEW, 0)?;
        set_msr(&fd, MSR_KVM_SYSTEM_TIME_NEW, address)?;
    }
    before.ensure_unchanged(&vm)
}

/// It tells the guest that it was stopped, in a flag, and no more.
fn kvmclock_ctrl(kvm: &Kvm) -> Result<()> {
    let vm = kept(kvm, 2)?;
    let before = Clocks::of(&vm)?;
    for vcpu in vm.vcpus() {
        vcpu.fd().kvmclock_ctrl().context("KVM_KVMCLOCK_CTRL")?;
    }
    run_a_little(&vm)?;
    for (now, before) in pages(&vm).iter().zip(&before.pages) {
        ensure!(
            now.flags == before.flags | PVCLOCK_GUEST_STOPPED,
            "flags were {:#x}, are {:#x}",
            before.flags,
            now.flags
        );
        ensure!(
            function(*now) == function(*before),
            "record was {before:x?}, is {now:x?}"
        );
    }
    Ok(())
}

fn hot_add(kvm: &Kvm) -> Result<()> {
    let vm = kept(kvm, 2)?;
    let before = Clocks::of(&vm)?;
    let page = halting::record(&vm, &mut halting::add_vcpu(kvm, &vm)?)?;
    let expected = before.pages[0];
    ensure!(
        function(page) == function(expected),
        "the new vCPU reads {page:x?}, the others {expected:x?}"
    );
    before.ensure_unchanged(&vm)
}

fn set_clock(kvm: &Kvm) -> Result<()> {
    const NEW_NS: u64 = 1_000_000_000_000;

    let vm = kept(kvm, 2)?;
    let before = Clocks::of(&vm)?;
    let data = kvm_clock_data {
        clock: NEW_NS,
        ..kvm_clock_data::default()
    };
    vm.fd().set_clock(&data).context("KVM_SET_CLOCK")?;
    let now = get(&vm)?;
    ensure!(
        now.header.status & STATUS_KEPT == 0,
        "a record is still kept: status {:#x}",
        now.header.status
    );
    run_a_little(&vm)?;
    let after = Clocks::of(&vm)?;
    ensure!(
        after.offsets == before.offsets,
        "KVM_SET_CLOCK changed TSC offsets"
    );
    ensure!(
        after.pages != before.pages,
        "the guest still reads {:x?}",
        after.pages
    );
    let clock = get(&vm)?.header.kvmclock_ns;
    ensure!(
        clock.wrapping_sub(NEW_NS) < 60_000_000_000,
        "kvmclock is {clock} ns less than a minute after it was set to {NEW_NS} ns"
    );
    Ok(())
}
