// SPDX-License-Identifier: GPL-2.0-only

//! SET's `paused_ns`, the time that vCPUs did not run: each vCPU's steal clock shows it once.
//!
//! The steal clock also counts the time that the vCPU's thread waits for a CPU. So a pause is an
//! hour long, and the tolerance is [`WAITING_NS`].

use kvm_clock_guest_selftests::{
    msr::{get_msr, MSR_KVM_STEAL_TIME},
    prelude::*,
    snippet, steal,
};
use pvclock::abi::CAP_STEAL;

const VCPUS: u32 = 2;

const PAUSED_NS: u64 = 3_600_000_000_000;
/// The time that a vCPU's thread may wait for a CPU in a case, ns.
const WAITING_NS: u64 = 60_000_000_000;

fn main() -> ExitCode {
    let mut cases = vec![
        Case::new("the capability bit is set", capability),
        Case::new("paused_ns 0 adds nothing", nothing),
        Case::new("GET reports the pause until the vCPU runs", reported),
        Case::new("SET replaces what the guest has not seen", replaced),
        Case::new(
            "a state saved before the guest runs includes the pause",
            carried,
        ),
        Case::new("the guest enables its steal clock after SET", enabled_late),
        Case::new("EXACT in place adds the pause", in_place),
        Case::new("FREEZE ignores the pause", frozen),
        Case::new("EINVAL: above 2^63 - 1 with steal_ns", too_long),
    ];
    for (name, mode) in [("EXACT", MODE_EXACT), ("ADVANCE", MODE_ADVANCE)] {
        cases.push(Case::new(
            format!("{name} adds the pause once"),
            move |kvm| added_once(kvm, mode),
        ));
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

fn enable(vm: &Vm) -> Result<()> {
    (0..vm.vcpus().len()).try_for_each(|index| steal::enable(vm, index, true))
}

/// A stopped VM that ran with enabled steal clocks.
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

/// Fails unless every vCPU's steal clock grew by `expected_ns` since `before`.
fn ensure_grew(vm: &Vm, before: &[u64], expected_ns: u64) -> Result<()> {
    for (vcpu, (before, after)) in before.iter().zip(steal::read(vm)).enumerate() {
        let grew = after.wrapping_sub(*before);
        ensure!(
            (expected_ns..expected_ns + WAITING_NS).contains(&grew),
            "vCPU {vcpu}: the steal clock grew by {grew} ns, expected {expected_ns}"
        );
    }
    Ok(())
}

/// Fails unless GET reports `expected_ns` not yet shown, for every vCPU.
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
    let before = steal::read(&vm);
    set_paused(&vm, &mut get(&vm)?, mode, PAUSED_NS)?;
    run_a_little(&vm)?;
    ensure_grew(&vm, &before, PAUSED_NS)?;
    ensure_hidden(&vm, 0)?;
    let before = steal::read(&vm);
    run_a_little(&vm)?;
    ensure_grew(&vm, &before, 0)
}

fn nothing(kvm: &Kvm) -> Result<()> {
    let vm = accounting(kvm)?;
    let before = steal::read(&vm);
    for mode in [MODE_EXACT, MODE_ADVANCE, MODE_FREEZE] {
        set_paused(&vm, &mut get(&vm)?, mode, 0)?;
        run_a_little(&vm)?;
    }
    ensure_grew(&vm, &before, 0)
}

fn frozen(kvm: &Kvm) -> Result<()> {
    let vm = accounting(kvm)?;
    let before = steal::read(&vm);
    set_paused(&vm, &mut get(&vm)?, MODE_FREEZE, PAUSED_NS)?;
    ensure_hidden(&vm, 0)?;
    run_a_little(&vm)?;
    ensure_grew(&vm, &before, 0)
}

fn reported(kvm: &Kvm) -> Result<()> {
    let vm = accounting(kvm)?;
    let before = steal::read(&vm);
    set_paused(&vm, &mut get(&vm)?, MODE_EXACT, PAUSED_NS)?;
    ensure_hidden(&vm, PAUSED_NS)?;
    // One of the vCPUs runs.
    snippet::halt(&vm, 1)?;
    let hidden: Vec<u64> = get(&vm)?.vcpus.iter().map(|vcpu| vcpu.steal_ns).collect();
    ensure_eq!(hidden, [PAUSED_NS, 0], "steal_ns of GET");
    run_a_little(&vm)?;
    ensure_hidden(&vm, 0)?;
    ensure_grew(&vm, &before, PAUSED_NS)
}

fn replaced(kvm: &Kvm) -> Result<()> {
    let vm = accounting(kvm)?;
    let before = steal::read(&vm);
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
    // The state is saved again before the guest ran: it includes the first pause, and the second
    // one adds to it.
    let mut saved = get(&vm)?;
    let other = derived(kvm, VCPUS)?;
    enable(&other)?;
    run_a_little(&other)?;
    let before = steal::read(&other);
    set_paused(&other, &mut saved, MODE_EXACT, PAUSED_NS)?;
    ensure_hidden(&other, 2 * PAUSED_NS)?;
    run_a_little(&other)?;
    ensure_grew(&other, &before, 2 * PAUSED_NS)
}

fn enabled_late(kvm: &Kvm) -> Result<()> {
    let vm = derived(kvm, VCPUS)?;
    ensure_eq!(
        get_msr(&vm.vcpus()[0].fd(), MSR_KVM_STEAL_TIME)?,
        0,
        "MSR_KVM_STEAL_TIME"
    );
    set_paused(&vm, &mut get(&vm)?, MODE_EXACT, PAUSED_NS)?;
    run_a_little(&vm)?;
    ensure_hidden(&vm, PAUSED_NS)?;
    let before = steal::read(&vm);
    enable(&vm)?;
    run_a_little(&vm)?;
    ensure_grew(&vm, &before, PAUSED_NS)
}

fn in_place(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, VCPUS)?;
    enable(&vm)?;
    run_a_little(&vm)?;
    let (before, saved) = (steal::read(&vm), get(&vm)?);
    set_paused(&vm, &mut saved.clone(), MODE_EXACT, PAUSED_NS)?;
    let after = get(&vm)?;
    ensure_eq_hex!(after.header.record, saved.header.record, "the record");
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
    let before = steal::read(&vm);
    run_a_little(&vm)?;
    ensure_grew(&vm, &before, PAUSED_NS)?;
    ensure_hidden(&vm, 0)
}

fn too_long(kvm: &Kvm) -> Result<()> {
    const MAX: u64 = i64::MAX.unsigned_abs();

    let vm = accounting(kvm)?;
    let before = steal::read(&vm);
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
