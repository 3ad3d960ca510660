// SPDX-License-Identifier: GPL-2.0-only

//! Hyper-V's synthetic timer with a period: it fires when its period ends on the new clock, does
//! not make up for the periods that SET skipped, and continues with its period.

use crate::{
    armed::{Armed, PATIENCE},
    timer::Timer,
};
use kvm_clock_guest_selftests::{
    fixture::add_to_offsets,
    hyperv::{arm_stimer, Stimer, UNIT_NS},
    prelude::*,
    timer_guest::{self, timers, wait_for_interrupts, EARLY_NS, VECTOR},
};

/// A period that ends in no case unless the timer uses the new clock.
const LONG_NS: i64 = 60 * SECOND_NS;
/// A period of which many end while a case is run.
const SHORT_NS: i64 = SECOND_NS / 2;
/// How many interrupts a case waits for.
const ENOUGH: u64 = 4;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = vec![
        Case::new(
            "Hyper-V's periodic timer, advance short of the period's end",
            |kvm| long(kvm, MODE_ADVANCE),
        ),
        Case::new(
            "Hyper-V's periodic timer, freeze near the period's end",
            |kvm| long(kvm, MODE_FREEZE),
        ),
    ];
    for (name, mode) in [
        ("exact", MODE_EXACT),
        ("advance by an hour", MODE_ADVANCE),
        ("freeze", MODE_FREEZE),
    ] {
        cases.push(Case::new(
            format!("Hyper-V's periodic timer keeps its period, {name}"),
            move |kvm| short(kvm, mode),
        ));
    }
    cases
}

/// A stopped guest whose timer's first period has begun.
fn armed(kvm: &Kvm, period_ns: i64) -> Result<Armed> {
    let mut armed = Armed::new(kvm, Timer::HyperV, true)?;
    armed.save()?;
    let period = Stimer::Every(period_ns.unsigned_abs() / UNIT_NS);
    for vcpu in armed.vm.vcpus() {
        arm_stimer(&vcpu.fd(), period, VECTOR)?;
    }
    armed.start_timers()?;
    Ok(armed)
}

/// A second before the period's end.
fn long(kvm: &Kvm, mode: u32) -> Result<()> {
    let mut armed = armed(kvm, LONG_NS)?;
    // KVM counts the period from when the vCPU ran with it, after this.
    let end_ns = armed.saved.header.kvmclock_ns + LONG_NS.unsigned_abs();
    move_to_domain(&mut armed.saved, OTHER_DOMAIN);
    let leap_ns = LONG_NS - SECOND_NS;
    if mode == MODE_ADVANCE {
        armed.saved.header.tai_ns -= leap_ns;
    } else {
        let ticks = armed.ticks(leap_ns.unsigned_abs())?;
        add_to_offsets(&mut armed.saved, ticks);
        make_consistent(&mut armed.saved);
    }
    armed.set(mode)?;
    let vm = &armed.vm;
    vm.run()?;
    wait_for_interrupts(vm, 1, PATIENCE)?;
    let record = get(vm)?.header.record;
    for timer in timers(vm) {
        let (vcpu, fired) = (timer.vcpu, timer.fired());
        let first_ns = record.kvmclock_ns(*fired.first().context("no interrupt")?);
        ensure!(
            fired.len() == 1 && first_ns + EARLY_NS.unsigned_abs() >= end_ns,
            "vCPU {vcpu}'s timer fired at {first_ns} ns, {} times; its period ends at {end_ns} ns",
            fired.len()
        );
    }
    Ok(())
}

/// A burst of interrupts shows in their number.
fn short(kvm: &Kvm, mode: u32) -> Result<()> {
    let mut armed = armed(kvm, SHORT_NS)?;
    if mode != MODE_EXACT {
        move_to_domain(&mut armed.saved, OTHER_DOMAIN);
    }
    if mode == MODE_ADVANCE {
        armed.saved.header.tai_ns -= HOUR_NS;
    }
    armed.set(mode)?;
    let vm = &armed.vm;
    let start_ns = get(vm)?.header.kvmclock_ns;
    vm.run()?;
    let taken = timer_guest::wait(vm, "takes the timers' interrupts", PATIENCE, || {
        timers(vm).all(|timer| timer.count() >= ENOUGH)
    });
    sleep(Duration::from_nanos(SHORT_NS.unsigned_abs()));
    vm.stop()?;
    taken?;
    let passed_ns = get(vm)?.header.kvmclock_ns - start_ns;
    // One for the periods that ended before, and one for each that ends from then on.
    let most = passed_ns / SHORT_NS.unsigned_abs() + 2;
    for timer in timers(vm) {
        let (vcpu, count) = (timer.vcpu, timer.count());
        note!("vCPU {vcpu}: {count} interrupts in {passed_ns} ns");
        ensure!(
            count <= most,
            "vCPU {vcpu}'s timer fired {count} times in {passed_ns} ns, with a period of \
             {SHORT_NS} ns"
        );
    }
    Ok(())
}
