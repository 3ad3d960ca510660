// SPDX-License-Identifier: GPL-2.0-only

//! The TSC falls to near 0.

use crate::state::{ensure_continues, ensure_counter, prepare, Function, Page};
use kvm_clock_guest_selftests::{
    msr::{set_msr, MSR_IA32_TSC},
    prelude::*,
    snippet,
    tsc_writes::{self, TscWrite, BY_GUEST_ADJUST, BY_OFFSET},
};

/// How long a guest has run when it is reset, ticks.
const UPTIME: u64 = 1 << 42;
/// The TSC that a VMM's reset writes.
const RESET_TSC: GuestTsc = GuestTsc(1);

/// A way to reset TSCs.
type Reset = fn(&Vm) -> Result<()>;

/// Name, vCPUs, and the way.
const RESETS: [(&str, u32, Reset); 5] = [
    ("KVM_SET_MSRS of the TSC", 1, by_vmm),
    ("KVM_SET_MSRS of the TSC, 2 vCPUs", 2, by_vmm),
    ("the guest's WRMSR of the TSC", 1, |vm| {
        snippet::write_msr(vm, 0, MSR_IA32_TSC, RESET_TSC.0)
    }),
    ("the guest's WRMSR of TSC_ADJUST", 1, |vm| {
        move_to_reset(vm, BY_GUEST_ADJUST)
    }),
    ("KVM_VCPU_TSC_OFFSET, 2 vCPUs", 2, |vm| {
        move_to_reset(vm, BY_OFFSET)
    }),
];

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for (name, vcpus, reset) in RESETS {
        for (when, page) in Page::ALL {
            cases.push(Case::new(
                format!("the reference counter continues: {name}, {when}"),
                move |kvm| continues(kvm, vcpus, reset, page),
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
                format!("SET {name} of a guest that was reset, in a new VM, {when}"),
                move |kvm| in_new_vm(kvm, mode, page),
            ));
        }
    }
    cases
}

fn by_vmm(vm: &Vm) -> Result<()> {
    let mut vcpus = vm.vcpus().iter();
    vcpus.try_for_each(|vcpu| Ok(set_msr(&vcpu.fd(), MSR_IA32_TSC, RESET_TSC.0)?))
}

/// Moves all TSCs by what vCPU 0's is above [`RESET_TSC`].
fn move_to_reset(vm: &Vm, write: TscWrite) -> Result<()> {
    let ticks = RESET_TSC.since(tsc_writes::now(vm, 0)?);
    (0..vm.vcpus().len()).try_for_each(|index| (write.add)(vm, index, ticks))
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
    let guest_tsc = tsc_writes::now(vm, 0)?;
    ensure!(
        guest_tsc.0 < UPTIME,
        "the guest's TSC is {guest_tsc} after the reset"
    );
    Ok(())
}

fn continues(kvm: &Kvm, vcpus: u32, reset: Reset, page: Page) -> Result<()> {
    let vm = long_running(kvm, vcpus)?;
    prepare(&vm, page)?;
    // A reset of the TSC does not change kvmclock as a function of the host TSC.
    let function = Function::of(&get(&vm)?)?;
    reset(&vm)?;
    ensure_reset(&vm)?;
    ensure_continues(&vm, page, &function)
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
    let vm = successor(kvm, source)?;
    prepare(&vm, page)?;
    set(&vm, &mut clock, mode)?;
    ensure_reset(&vm)?;
    // If the TSC is near 0, the record's timestamp is below it, modulo 2^64.
    let mut function = Function::of(&get(&vm)?)?;
    function.record = clock.header.record;
    ensure_continues(&vm, page, &function)
}
