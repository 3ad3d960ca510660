// SPDX-License-Identifier: GPL-2.0-only

//! The TSC falls to near 0.

use crate::state::{ensure_counter, ensure_goes_on, prepare, Function, Page};
use anyhow::{ensure, Result};
use clockguest::{
    host::rdtsc_ordered,
    vmm::{
        vm::{set_msr, MSR_IA32_TSC},
        Vm,
    },
};
use kvm_clock_guest_selftests::{
    fixture::{get, pinned, run_a_little, set, vcpu_transform},
    ktap::Case,
    snippet,
    tsc_writes::{TscWrite, BY_GUEST_ADJUST, BY_OFFSET},
};
use kvm_ioctls::Kvm;
use pvclock::abi::{MODE_ADVANCE, MODE_EXACT, MODE_FREEZE};

/// A guest has run for so long, ticks, when it is reset.
const UPTIME: u64 = 1 << 42;
/// What a VMM's reset writes to the TSC.
const RESET_TSC: u64 = 1;

/// A way to reset TSCs.
type Reset = fn(&Vm) -> Result<()>;

/// Name, vCPUs, and the way.
const RESETS: [(&str, u32, Reset); 5] = [
    ("KVM_SET_MSRS of the TSC", 1, by_vmm),
    ("KVM_SET_MSRS of the TSC, 2 vCPUs", 2, by_vmm),
    ("the guest's WRMSR of the TSC", 1, |vm| {
        snippet::write_msr(vm, 0, MSR_IA32_TSC, RESET_TSC)
    }),
    ("the guest's WRMSR of TSC_ADJUST", 1, |vm| {
        move_to_reset(vm, BY_GUEST_ADJUST)
    }),
    ("KVM_VCPU_TSC_OFFSET, 2 vCPUs", 2, |vm| {
        move_to_reset(vm, BY_OFFSET)
    }),
];

const MODES: [(&str, u32); 3] = [
    ("EXACT", MODE_EXACT),
    ("ADVANCE", MODE_ADVANCE),
    ("FREEZE", MODE_FREEZE),
];

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for (name, vcpus, reset) in RESETS {
        for (when, page) in Page::ALL {
            cases.push(Case::new(
                format!("the reference counter goes on: {name}, {when}"),
                move |kvm| goes_on(kvm, vcpus, reset, page),
            ));
        }
        cases.push(Case::new(
            format!("the counter's MSR is right before the guest runs: {name}, with a TSC page"),
            move |kvm| at_once(kvm, vcpus, reset),
        ));
    }
    for (name, mode) in MODES {
        for (when, page) in Page::ALL {
            cases.push(Case::new(
                format!("a guest that was reset is SET {name} in a new VM, {when}"),
                move |kvm| in_new_vm(kvm, mode, page),
            ));
        }
    }
    cases
}

fn by_vmm(vm: &Vm) -> Result<()> {
    let mut vcpus = vm.vcpus().iter();
    vcpus.try_for_each(|vcpu| Ok(set_msr(&vcpu.fd(), MSR_IA32_TSC, RESET_TSC)?))
}

/// Moves all TSCs by what vCPU 0's is above [`RESET_TSC`].
fn move_to_reset(vm: &Vm, write: TscWrite) -> Result<()> {
    let ticks = RESET_TSC.wrapping_sub(first_tsc(vm)?);
    (0..vm.vcpus().len()).try_for_each(|index| (write.add)(vm, index, ticks))
}

fn first_tsc(vm: &Vm) -> Result<u64> {
    Ok(vcpu_transform(&vm.vcpus()[0].fd())?.guest_tsc(rdtsc_ordered()))
}

/// A stopped VM with a pinned clock that has run for a while.
fn long_running(kvm: &Kvm, vcpus: u32) -> Result<Vm> {
    let vm = pinned(kvm, vcpus)?;
    for index in 0..vm.vcpus().len() {
        (BY_OFFSET.add)(&vm, index, UPTIME)?;
    }
    run_a_little(&vm)?;
    Ok(vm)
}

fn ensure_reset(vm: &Vm) -> Result<()> {
    let guest_tsc = first_tsc(vm)?;
    ensure!(
        guest_tsc < UPTIME,
        "the guest's TSC is {guest_tsc} after the reset"
    );
    Ok(())
}

fn goes_on(kvm: &Kvm, vcpus: u32, reset: Reset, page: Page) -> Result<()> {
    let vm = long_running(kvm, vcpus)?;
    prepare(&vm, page)?;
    // A reset of the TSC leaves kvmclock as a function of the host's TSC.
    let function = Function::of(&get(&vm)?)?;
    reset(&vm)?;
    ensure_reset(&vm)?;
    ensure_goes_on(&vm, page, &function)
}

/// KVM computes the MSR from the page once that is enabled, and writes the page when the guest
/// runs.
fn at_once(kvm: &Kvm, vcpus: u32, reset: Reset) -> Result<()> {
    let vm = long_running(kvm, vcpus)?;
    prepare(&vm, Page::Before)?;
    let function = Function::of(&get(&vm)?)?;
    reset(&vm)?;
    ensure_counter(&vm, &function)
}

fn in_new_vm(kvm: &Kvm, mode: u32, page: Page) -> Result<()> {
    let source = long_running(kvm, 1)?;
    by_vmm(&source)?;
    run_a_little(&source)?;
    let mut clock = get(&source)?;
    let vm = Vm::empty(kvm, 1)?;
    vm.load(&source.save()?)?;
    prepare(&vm, page)?;
    set(&vm, &mut clock, mode)?;
    ensure_reset(&vm)?;
    // Where the TSC is near 0, the record's timestamp is below it, modulo 2^64.
    let mut function = Function::of(&get(&vm)?)?;
    function.record = clock.header.record;
    ensure_goes_on(&vm, page, &function)
}
