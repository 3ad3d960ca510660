// SPDX-License-Identifier: GPL-2.0-only

//! The host keeps its time by its TSC, but KVM has no master clock for the VM: offsets differ, or
//! the guest uses the old kvmclock MSR.

use crate::{ensure_no_data, ensure_sound, Host, VCPUS};
use anyhow::{ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::{get_clock_guest, get_vm_clock_guest, set_tsc_offset};
use kvm_clock_guest_selftests::{
    clocks::{pages, Clocks},
    clocksource::{run_until_noticed, WithoutTsc},
    continued::{kvm_ahead_of_raw, Continued, Function, Paired},
    fixture::{an_hour_ahead, derived, get, reference_transform, run_a_little, set},
    ktap::Case,
    snippet,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{ClockGuest, MODE_EXACT, STATUS_HOST_TSC_STABLE, STATUS_PINNED};

/// By how much the last vCPU's TSC is ahead of the first's, ticks.
const AHEAD: i64 = -1_000_000_007;
/// The kvmclock MSR of old: bit 0 enables, as with the new one.
const MSR_KVM_SYSTEM_TIME: u32 = 0x12;

type Lose = fn(&Kvm) -> Result<Vm>;

/// How a VM comes to have no master clock.
const WAYS: &[(&str, Lose)] = &[("offsets apart", apart), ("old kvmclock MSR", old_msr)];

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases = Vec::new();
    for &(name, lose) in WAYS {
        cases.push(Case::new(
            format!("{name}: ENODATA, or with FALLBACK KVM's clock to 1 ns"),
            move |host: &Host| falls_back(&lose(&host.kvm)?),
        ));
        cases.push(Case::new(
            format!("{name}: SET pins a record, not stable"),
            move |host: &Host| pins(&lose(&host.kvm)?),
        ));
        cases.push(Case::new(
            format!("{name}: a pinned record goes on when the host stops using its TSC"),
            move |host: &Host| goes_on(host, lose),
        ));
    }
    cases
}

/// A stopped VM whose vCPUs' TSC offsets differ.
fn apart(kvm: &Kvm) -> Result<Vm> {
    let vm = derived(kvm, VCPUS)?;
    let offset = vm.tsc_offsets()?[0].wrapping_add_signed(AHEAD);
    let last = vm.vcpus().last().context("no vCPU")?;
    set_tsc_offset(&last.fd(), offset).context("KVM_VCPU_TSC_OFFSET")?;
    run_a_little(&vm)?;
    Ok(vm)
}

/// A stopped VM whose first vCPU, the one that counts, has enabled kvmclock by the old MSR.
fn old_msr(kvm: &Kvm) -> Result<Vm> {
    let vm = derived(kvm, VCPUS)?;
    let page = clockguest::guest::layout::pvclock_page(0);
    snippet::write_msr(&vm, 0, MSR_KVM_SYSTEM_TIME, page | 1)?;
    run_a_little(&vm)?;
    Ok(vm)
}

/// Without FALLBACK nothing, with FALLBACK what KVM says.
fn falls_back(vm: &Vm) -> Result<()> {
    ensure_no_data(vm, "GET", |vm| get_vm_clock_guest(vm.fd()).map(|_| ()))?;
    for vcpu in vm.vcpus() {
        ensure_no_data(vm, "vCPU GET", |_| get_clock_guest(&vcpu.fd()).map(|_| ()))?;
    }
    let (clock, _) = ensure_sound(vm)?;
    let (header, flags) = (&clock.header, clock.header.record.flags);
    ensure!(
        (header.status, header.precision_ns, flags) == (STATUS_HOST_TSC_STABLE, 1, 0),
        "status {:#x}, precision {} ns and flags {flags:#x}, expected {STATUS_HOST_TSC_STABLE:#x}, 1, \
         0",
        header.status,
        header.precision_ns
    );

    // As near as KVM_GET_CLOCK and the raw clock can be read. Between the readings the record
    // drifts from the raw clock by no more than two roundings of a rate.
    let function = Function {
        record: header.record,
        transform: reference_transform(&clock)?,
    };
    let (before, told, after) = (
        function.ahead_of_raw()?,
        kvm_ahead_of_raw(vm)?,
        function.ahead_of_raw()?,
    );
    let expected = before.hull(after);
    ensure!(
        told.most >= expected.least - 1 && told.least <= expected.most + 1,
        "KVM_GET_CLOCK is {told:?} ns ahead of the raw clock, the record {expected:?} ns"
    );
    Ok(())
}

/// SET does not need FALLBACK: the host's TSC carries the record. Every vCPU gets it with its own
/// offset, and is told that readings of different vCPUs are not comparable.
fn pins(vm: &Vm) -> Result<()> {
    let mut clock = an_hour_ahead(ensure_sound(vm)?.0);
    let record = clock.header.record;
    let offsets = vm.tsc_offsets()?;
    clock.header.flags = 0;
    set(vm, &mut clock, MODE_EXACT)?;
    let fit_and_pinned = STATUS_HOST_TSC_STABLE | STATUS_PINNED;
    let outcome = (clock.header.status, clock.header.precision_ns);
    ensure!(
        outcome == (fit_and_pinned, 1),
        "SET reports status and precision {outcome:x?}, expected {:x?}",
        (fit_and_pinned, 1)
    );

    for _ in 0..3 {
        let reading = run_a_little(vm)?;
        let now = get(vm)?;
        let told = (now.header.status, now.header.precision_ns);
        ensure!(
            told == (fit_and_pinned, 0) && now.header.record == record,
            "GET tells status and precision {told:x?} and {:x?}, expected {:x?} and {record:x?}",
            now.header.record,
            (fit_and_pinned, 0)
        );
        let expected: Vec<_> = offsets
            .iter()
            .map(|offset| record.shifted_by(offset.wrapping_sub(offsets[0])))
            .collect();
        let observed = pages(vm);
        ensure!(
            observed == expected,
            "the guest's records are {observed:x?}, expected {expected:x?}"
        );
        // To the tick and ns: the clocks of all vCPUs are one function of the host TSC.
        for (vcpu, expected) in reading.vcpus.iter().zip(expected) {
            for sample in vcpu.samples.iter().map(|bracketed| bracketed.sample) {
                let due = expected.kvmclock_ns(sample.tsc);
                ensure!(
                    sample.kvmclock_ns == due,
                    "the guest read {} ns, expected {due}",
                    sample.kvmclock_ns
                );
            }
        }
    }
    Clocks::of(vm)?.ensure_unchanged(vm)
}

/// KVM hears of the host's clocksource although no VM of this host has a master clock.
fn goes_on(host: &Host, lose: Lose) -> Result<()> {
    /// Long against what KVM takes to read its two clocks, the emulated host being interrupted in
    /// between, and short against the hour by which all other clocks are off.
    const TOLERANCE_NS: u32 = 100_000_000;

    // Whoever had one is told now, and then nobody listens.
    let bystander = derived(&host.kvm, 1)?;
    let record = pages(&bystander)[0];
    let without_tsc = WithoutTsc::switch(&host.other_clocksource)?;
    run_until_noticed(&bystander, &record)?;
    drop(bystander);
    let vm = lose(&host.kvm)?;
    without_tsc.end()?;

    let mut clock = an_hour_ahead(ensure_sound(&vm)?.0);
    clock.header.flags = 0;
    set(&vm, &mut clock, MODE_EXACT)?;
    run_a_little(&vm)?;
    let pinned: ClockGuest = pages(&vm)[0];
    let function = Function {
        record: clock.header.record,
        transform: reference_transform(&clock)?,
    };
    // KVM drops the record, at some instant in here.
    let raw = Paired::now(libc::CLOCK_MONOTONIC_RAW)?;
    let _until_checked = WithoutTsc::switch(&host.other_clocksource)?;
    run_until_noticed(&vm, &pinned)?;
    let continued = Continued::since(function, raw, TOLERANCE_NS)?;
    continued.ensure_told_by_kvm(&vm)?;
    continued.ensure_read_by_guest(|| run_a_little(&vm))?;
    Ok(())
}
