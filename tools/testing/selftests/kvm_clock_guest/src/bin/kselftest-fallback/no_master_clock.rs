// SPDX-License-Identifier: GPL-2.0-only

//! The host's clocksource is the TSC, but KVM has no master clock for the VM: offsets differ, or
//! the guest uses the old kvmclock MSR.

use crate::{ensure_no_data, ensure_valid, Host, VCPUS};
use kvm_clock_guest_selftests::{
    clocksource::{run_until_noticed, WithoutTsc},
    continued::{kvm_ahead_of_raw, Continued, Function},
    host_clock::clock_and_tsc,
    msr::{ENABLE, MSR_KVM_SYSTEM_TIME},
    prelude::*,
    snippet,
};

/// How far the last vCPU's TSC is ahead of the first's, ticks.
const AHEAD: i64 = -1_000_000_007;

type Lose = fn(&Kvm) -> Result<Vm>;

/// Ways to lose the master clock.
const WAYS: &[(&str, Lose)] = &[("different offsets", apart), ("old kvmclock MSR", old_msr)];

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
            format!("{name}: a pinned clock continues when the host stops using its TSC"),
            move |host: &Host| continues(host, lose),
        ));
    }
    cases
}

/// A stopped VM whose vCPUs' TSC offsets differ.
fn apart(kvm: &Kvm) -> Result<Vm> {
    let vm = derived(kvm, VCPUS)?;
    // CAST: mod 2^64.
    let offset = vm.tsc_offsets()?[0].wrapping_add(AHEAD as u64);
    let last = vm.vcpus().last().context("no vCPU")?;
    vm.set_tsc_offset(last.index(), offset)?;
    run_a_little(&vm)?;
    Ok(vm)
}

/// A stopped VM whose first vCPU, on which KVM's decision depends, enabled kvmclock with the old
/// MSR.
fn old_msr(kvm: &Kvm) -> Result<Vm> {
    let vm = derived(kvm, VCPUS)?;
    let page = clockguest::guest::layout::pvclock_page(0);
    snippet::write_msr(&vm, 0, MSR_KVM_SYSTEM_TIME, page | ENABLE)?;
    run_a_little(&vm)?;
    Ok(vm)
}

/// Without FALLBACK GET fails; with FALLBACK it reports KVM's clock.
fn falls_back(vm: &Vm) -> Result<()> {
    ensure_no_data(vm, "GET", |vm| get_vm_clock_guest(vm.fd()).map(drop))?;
    for vcpu in vm.vcpus() {
        ensure_no_data(vm, "vCPU GET", |_| get_clock_guest(&vcpu.fd()).map(drop))?;
    }
    let (clock, _) = ensure_valid(vm)?;
    let (header, flags) = (&clock.header, clock.header.record.flags);
    ensure_eq_hex!(
        (header.status, header.precision_ns, flags),
        (STATUS_HOST_TSC_STABLE, 1, 0),
        "status, precision and flags"
    );

    // As precisely as KVM_GET_CLOCK and the raw clock can be read. Between the readings the record
    // drifts from the raw clock by at most two roundings of a rate.
    let function = Function {
        record: header.record,
        transform: reference_transform(&clock)?,
    };
    let (before, actual, after) = (
        function.ahead_of_raw()?,
        kvm_ahead_of_raw(vm)?,
        function.ahead_of_raw()?,
    );
    let expected = before.hull(after);
    ensure!(
        actual.most >= expected.least - 1 && actual.least <= expected.most + 1,
        "KVM_GET_CLOCK is {actual:?} ns ahead of the raw clock, the record {expected:?} ns"
    );
    Ok(())
}

/// SET does not need FALLBACK, because the host TSC is stable. Every vCPU gets the record with its
/// own offset, and without the stable flag, as readings of different vCPUs are not comparable.
fn pins(vm: &Vm) -> Result<()> {
    let mut clock = an_hour_ahead(ensure_valid(vm)?.0);
    let record = clock.header.record;
    let offsets = vm.tsc_offsets()?;
    clock.header.flags = 0;
    set(vm, &mut clock, MODE_EXACT)?;
    let stable_and_pinned = STATUS_HOST_TSC_STABLE | STATUS_PINNED;
    let outcome = (clock.header.status, clock.header.precision_ns);
    ensure_eq_hex!(
        outcome,
        (stable_and_pinned, 1),
        "SET's status and precision"
    );

    for _ in 0..3 {
        let reading = run_a_little(vm)?;
        let now = get(vm)?;
        let reported = (now.header.status, now.header.precision_ns);
        ensure!(
            reported == (stable_and_pinned, 0) && now.header.record == record,
            "GET reports status and precision {reported:x?} and {:x?}, expected {:x?} and {record:x?}",
            now.header.record,
            (stable_and_pinned, 0)
        );
        let expected: Vec<_> = offsets
            .iter()
            .map(|offset| record.shifted_by(offset.since(offsets[0])))
            .collect();
        let observed = pages(vm);
        ensure_eq_hex!(observed, expected, "the guest's records");
        // To the tick and ns, the clocks of all vCPUs are one function of the host TSC.
        for (vcpu, expected) in reading.vcpus.iter().zip(expected) {
            for sample in vcpu.samples.iter().map(|bracketed| bracketed.sample) {
                let expected_ns = expected.kvmclock_ns(sample.tsc);
                ensure_eq!(sample.kvmclock_ns, expected_ns, "kvmclock of a reading, ns");
            }
        }
    }
    Clocks::of(vm)?.ensure_unchanged(vm)
}

/// KVM notices the host's clocksource although no VM of this host has a master clock.
fn continues(host: &Host, lose: Lose) -> Result<()> {
    /// Long compared with the time in which KVM reads its two clocks on an emulated host, and short
    /// compared with the hour by which all other clocks differ.
    const TOLERANCE_NS: u32 = 100_000_000;

    // After this VM was notified, no VM has a master clock.
    let bystander = derived(&host.kvm, 1)?;
    let record = pages(&bystander)[0];
    let without_tsc = WithoutTsc::switch(&host.other_clocksource)?;
    run_until_noticed(&bystander, &record)?;
    drop(bystander);
    let vm = lose(&host.kvm)?;
    without_tsc.end()?;

    let mut clock = an_hour_ahead(ensure_valid(&vm)?.0);
    clock.header.flags = 0;
    set(&vm, &mut clock, MODE_EXACT)?;
    run_a_little(&vm)?;
    let pinned: ClockGuest = pages(&vm)[0];
    let function = Function::of(&clock)?;
    // KVM unpins the clock at an instant after this.
    let raw = clock_and_tsc(libc::CLOCK_MONOTONIC_RAW)?;
    let _until_checked = WithoutTsc::switch(&host.other_clocksource)?;
    run_until_noticed(&vm, &pinned)?;
    let continued = Continued::since(function, raw, TOLERANCE_NS)?;
    continued.ensure_in_kvm(&vm)?;
    continued.ensure_read_by_guest(|| run_a_little(&vm))?;
    Ok(())
}
