// SPDX-License-Identifier: GPL-2.0-only

//! The time that vCPUs did not run, by SET's `paused_ns`: each vCPU's steal clock shows it once.
//!
//! The steal clock also grows by what the vCPU's thread waits for a CPU, so a case pauses for an hour
//! and allows for [`WAITING_NS`].

use anyhow::{ensure, Result};
use clockguest::vmm::{
    vm::{get_msr, set_msr},
    Vm,
};
use kvm_clock::{get_vm_clock_guest, set_vm_clock_guest, VmClock};
use kvm_clock_guest_selftests::{
    fixture::{derived, get, pinned, run_a_little, set},
    ktap::{self, Case},
    refusal::ensure_errno,
    require, snippet,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{CAP_STEAL, MODE_ADVANCE, MODE_EXACT, MODE_FREEZE};
use std::{process::ExitCode, sync::atomic::Ordering};

const VCPUS: u32 = 2;

/// `MSR_KVM_STEAL_TIME`: the address of `struct kvm_steal_time`, whose first word is `steal`, ns.
const MSR_KVM_STEAL_TIME: u32 = 0x4b56_4d03;
const ENABLED: u64 = 1;
/// A page that `clockguest::guest::layout` leaves free.
const STEAL_TIMES: u64 = 0x6000;
/// A structure for each vCPU, aligned as KVM asks.
const STEAL_TIME_SIZE: u64 = 64;

const PAUSED_NS: u64 = 3_600_000_000_000;
/// What a vCPU's thread may wait for a CPU in a case, ns.
const WAITING_NS: u64 = 60_000_000_000;

fn main() -> ExitCode {
    let mut cases = vec![
        Case::new("the capability bit is set", capability),
        Case::new("paused_ns 0 adds nothing", nothing),
        Case::new("GET reports it until the vCPU runs", reported),
        Case::new("SET replaces what the guest has not seen", replaced),
        Case::new("a state saved before the guest ran carries it on", carried),
        Case::new("the guest enables its steal clock after SET", enabled_late),
        Case::new("EXACT in place adds it", in_place),
        Case::new("FREEZE ignores it", frozen),
        Case::new("EINVAL: above 2^63 - 1 with steal_ns", too_long),
    ];
    for (name, mode) in [("EXACT", MODE_EXACT), ("ADVANCE", MODE_ADVANCE)] {
        cases.push(Case::new(format!("{name} adds it once"), move |kvm| {
            added_once(kvm, mode)
        }));
        cases.push(Case::new(
            format!("{name} into a new VM, SET before the MSR"),
            move |kvm| new_vm(kvm, mode, true),
        ));
        cases.push(Case::new(
            format!("{name} into a new VM, SET after the MSR"),
            move |kvm| new_vm(kvm, mode, false),
        ));
    }
    ktap::main(require::clock_guest, cases)
}

fn steal_gpa(vcpu: usize) -> u64 {
    STEAL_TIMES + vcpu as u64 * STEAL_TIME_SIZE
}

/// What the guest's steal clocks show, ns.
fn steal(vm: &Vm) -> Vec<u64> {
    let read = |vcpu| vm.memory().word(steal_gpa(vcpu)).load(Ordering::Relaxed);
    (0..vm.vcpus().len()).map(read).collect()
}

fn enable(vm: &Vm) -> Result<()> {
    for (index, vcpu) in vm.vcpus().iter().enumerate() {
        set_msr(&vcpu.fd(), MSR_KVM_STEAL_TIME, steal_gpa(index) | ENABLED)?;
    }
    Ok(())
}

/// A VM that has run with its steal clocks on, and is stopped.
fn accounting(kvm: &Kvm) -> Result<Vm> {
    let vm = derived(kvm, VCPUS)?;
    enable(&vm)?;
    run_a_little(&vm)?;
    Ok(vm)
}

fn set_paused(vm: &Vm, clock: &mut VmClock, mode: u32, paused_ns: u64) -> Result<()> {
    clock.header.paused_ns = paused_ns;
    set(vm, clock, mode)
}

/// Every vCPU's steal clock grew by `expected_ns` since `before`.
fn ensure_grew(vm: &Vm, before: &[u64], expected_ns: u64) -> Result<()> {
    for (vcpu, (before, after)) in before.iter().zip(steal(vm)).enumerate() {
        let grew = after.wrapping_sub(*before);
        ensure!(
            (expected_ns..expected_ns + WAITING_NS).contains(&grew),
            "vCPU {vcpu}: the steal clock grew by {grew} ns, expected {expected_ns}"
        );
    }
    Ok(())
}

/// GET reports `expected_ns` as not shown yet, for every vCPU.
fn ensure_hidden(vm: &Vm, expected_ns: u64) -> Result<()> {
    let hidden: Vec<u64> = get(vm)?.vcpus.iter().map(|vcpu| vcpu.steal_ns).collect();
    ensure!(
        hidden.iter().all(|&ns| ns == expected_ns),
        "GET reports steal_ns {hidden:?}, expected {expected_ns}"
    );
    Ok(())
}

fn capability(kvm: &Kvm) -> Result<()> {
    let capabilities = require::capability(kvm);
    ensure!(capabilities & CAP_STEAL != 0, "{capabilities:#x}");
    Ok(())
}

fn added_once(kvm: &Kvm, mode: u32) -> Result<()> {
    let vm = accounting(kvm)?;
    let before = steal(&vm);
    set_paused(&vm, &mut get(&vm)?, mode, PAUSED_NS)?;
    run_a_little(&vm)?;
    ensure_grew(&vm, &before, PAUSED_NS)?;
    ensure_hidden(&vm, 0)?;
    let before = steal(&vm);
    run_a_little(&vm)?;
    ensure_grew(&vm, &before, 0)
}

fn nothing(kvm: &Kvm) -> Result<()> {
    let vm = accounting(kvm)?;
    let before = steal(&vm);
    for mode in [MODE_EXACT, MODE_ADVANCE, MODE_FREEZE] {
        set_paused(&vm, &mut get(&vm)?, mode, 0)?;
        run_a_little(&vm)?;
    }
    ensure_grew(&vm, &before, 0)
}

fn frozen(kvm: &Kvm) -> Result<()> {
    let vm = accounting(kvm)?;
    let before = steal(&vm);
    set_paused(&vm, &mut get(&vm)?, MODE_FREEZE, PAUSED_NS)?;
    ensure_hidden(&vm, 0)?;
    run_a_little(&vm)?;
    ensure_grew(&vm, &before, 0)
}

fn reported(kvm: &Kvm) -> Result<()> {
    let vm = accounting(kvm)?;
    let before = steal(&vm);
    set_paused(&vm, &mut get(&vm)?, MODE_EXACT, PAUSED_NS)?;
    ensure_hidden(&vm, PAUSED_NS)?;
    // One of them runs.
    snippet::halt(&vm, 1)?;
    let hidden: Vec<u64> = get(&vm)?.vcpus.iter().map(|vcpu| vcpu.steal_ns).collect();
    ensure!(hidden == [PAUSED_NS, 0], "GET reports steal_ns {hidden:?}");
    run_a_little(&vm)?;
    ensure_hidden(&vm, 0)?;
    ensure_grew(&vm, &before, PAUSED_NS)
}

fn replaced(kvm: &Kvm) -> Result<()> {
    let vm = accounting(kvm)?;
    let before = steal(&vm);
    let saved = get(&vm)?;
    set_paused(&vm, &mut saved.clone(), MODE_EXACT, 5 * PAUSED_NS)?;
    set_paused(&vm, &mut saved.clone(), MODE_EXACT, PAUSED_NS)?;
    ensure_hidden(&vm, PAUSED_NS)?;
    run_a_little(&vm)?;
    ensure_grew(&vm, &before, PAUSED_NS)
}

fn carried(kvm: &Kvm) -> Result<()> {
    let vm = accounting(kvm)?;
    set_paused(&vm, &mut get(&vm)?, MODE_EXACT, PAUSED_NS)?;
    // Moves on before it ran: what the first pause left comes along, and the second one adds.
    let mut saved = get(&vm)?;
    let other = derived(kvm, VCPUS)?;
    enable(&other)?;
    run_a_little(&other)?;
    let before = steal(&other);
    set_paused(&other, &mut saved, MODE_EXACT, PAUSED_NS)?;
    ensure_hidden(&other, 2 * PAUSED_NS)?;
    run_a_little(&other)?;
    ensure_grew(&other, &before, 2 * PAUSED_NS)
}

fn enabled_late(kvm: &Kvm) -> Result<()> {
    let vm = derived(kvm, VCPUS)?;
    ensure!(get_msr(&vm.vcpus()[0].fd(), MSR_KVM_STEAL_TIME)? == 0);
    set_paused(&vm, &mut get(&vm)?, MODE_EXACT, PAUSED_NS)?;
    run_a_little(&vm)?;
    ensure_hidden(&vm, PAUSED_NS)?;
    let before = steal(&vm);
    enable(&vm)?;
    run_a_little(&vm)?;
    ensure_grew(&vm, &before, PAUSED_NS)
}

fn in_place(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, VCPUS)?;
    enable(&vm)?;
    run_a_little(&vm)?;
    let (before, saved) = (steal(&vm), get(&vm)?);
    set_paused(&vm, &mut saved.clone(), MODE_EXACT, PAUSED_NS)?;
    let after = get(&vm)?;
    ensure!(after.header.record == saved.header.record);
    run_a_little(&vm)?;
    ensure_grew(&vm, &before, PAUSED_NS)
}

fn new_vm(kvm: &Kvm, mode: u32, set_first: bool) -> Result<()> {
    let mut saved = get(&accounting(kvm)?)?;
    let vm = Vm::new(kvm, VCPUS)?;
    if set_first {
        set_paused(&vm, &mut saved, mode, PAUSED_NS)?;
        enable(&vm)?;
    } else {
        enable(&vm)?;
        set_paused(&vm, &mut saved, mode, PAUSED_NS)?;
    }
    let before = steal(&vm);
    run_a_little(&vm)?;
    ensure_grew(&vm, &before, PAUSED_NS)?;
    ensure_hidden(&vm, 0)
}

fn too_long(kvm: &Kvm) -> Result<()> {
    const MAX: u64 = i64::MAX.unsigned_abs();

    let vm = accounting(kvm)?;
    let before = steal(&vm);
    for (paused_ns, steal_ns) in [(MAX + 1, 0), (0, MAX + 1), (MAX, 1), (u64::MAX, 1)] {
        let mut clock = get_vm_clock_guest(vm.fd())?;
        clock.header.mode = MODE_EXACT;
        clock.header.paused_ns = paused_ns;
        clock.vcpus[1].steal_ns = steal_ns;
        ensure_errno(libc::EINVAL, set_vm_clock_guest(vm.fd(), &mut clock))?;
    }
    ensure_hidden(&vm, 0)?;
    run_a_little(&vm)?;
    ensure_grew(&vm, &before, 0)
}
