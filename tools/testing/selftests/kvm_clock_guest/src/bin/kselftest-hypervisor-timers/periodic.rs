// SPDX-License-Identifier: GPL-2.0-only

//! Hyper-V's synthetic timer, with a period: it fires when its period ends by the new clock, does
//! not make up for the periods that SET leapt over, and goes on with its period.

use crate::{
    armed::{wait_until, Armed},
    guest::{count, fired, VECTOR},
    timer::Timer,
};
use anyhow::{ensure, Context, Result};
use kvm_clock_guest_selftests::{
    fixture::{make_consistent, move_to_domain},
    hyperv::{arm_stimer, Stimer, UNIT_NS},
    ktap::{note, Case},
    time::{HOUR_NS, SECOND_NS},
};
use kvm_ioctls::Kvm;
use pvclock::abi::{MODE_ADVANCE, MODE_EXACT, MODE_FREEZE};
use std::{thread::sleep, time::Duration};

/// A period that ends in no case unless the timer goes by the new clock.
const LONG_NS: i64 = 60 * SECOND_NS;
/// A period of which many end while a case is run.
const SHORT_NS: i64 = SECOND_NS / 2;
/// A host TSC of another domain, far ahead of any of here.
const OTHER_DOMAIN: u64 = 1 << 60;
/// How many interrupts a case waits for.
const ENOUGH: u64 = 4;
/// KVM's hrtimers go by the host's time, not its TSC: at nearly the same rate.
const EARLY_NS: u64 = 1_000_000;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = vec![
        Case::new(
            "Hyper-V's periodic timer, ADVANCE short of the period's end",
            |kvm| long(kvm, MODE_ADVANCE),
        ),
        Case::new(
            "Hyper-V's periodic timer, FREEZE near the period's end",
            |kvm| long(kvm, MODE_FREEZE),
        ),
    ];
    for (name, mode) in [
        ("EXACT", MODE_EXACT),
        ("ADVANCE by an hour", MODE_ADVANCE),
        ("FREEZE", MODE_FREEZE),
    ] {
        cases.push(Case::new(
            format!("Hyper-V's periodic timer goes on with its period, {name}"),
            move |kvm| short(kvm, mode),
        ));
    }
    cases
}

/// A stopped guest with such a period, which has begun.
fn armed(kvm: &Kvm, period_ns: i64) -> Result<Armed> {
    let mut armed = Armed::new(kvm, Timer::HyperV, true)?;
    armed.save()?;
    let period = Stimer::Every(period_ns.unsigned_abs() / UNIT_NS);
    for vcpu in armed.machine.vcpus() {
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
        for vcpu in &mut armed.saved.vcpus {
            vcpu.tsc_offset = vcpu.tsc_offset.wrapping_add(ticks);
        }
        make_consistent(&mut armed.saved);
    }
    armed.set(mode)?;
    let machine = &armed.machine;
    machine.run()?;
    let taken = wait_until(machine, "take the timers' interrupts", || {
        (0..machine.vcpus().len()).all(|vcpu| count(machine, vcpu) != 0)
    });
    machine.stop()?;
    taken?;
    let record = machine.clock()?.header.record;
    for vcpu in 0..machine.vcpus().len() {
        let fired = fired(machine, vcpu);
        let first_ns = record.kvmclock_ns(*fired.first().context("no interrupt")?);
        ensure!(
            fired.len() == 1 && first_ns + EARLY_NS >= end_ns,
            "vCPU {vcpu}'s timer fired at {first_ns} ns, {} times; its period ends at {end_ns} ns",
            fired.len()
        );
    }
    Ok(())
}

/// The guest notes few interrupts, so a burst of thousands shows in their number.
fn short(kvm: &Kvm, mode: u32) -> Result<()> {
    let mut armed = armed(kvm, SHORT_NS)?;
    if mode != MODE_EXACT {
        move_to_domain(&mut armed.saved, OTHER_DOMAIN);
    }
    if mode == MODE_ADVANCE {
        armed.saved.header.tai_ns -= HOUR_NS;
    }
    armed.set(mode)?;
    let machine = &armed.machine;
    let start_ns = machine.clock()?.header.kvmclock_ns;
    machine.run()?;
    let taken = wait_until(machine, "take the timers' interrupts", || {
        (0..machine.vcpus().len()).all(|vcpu| count(machine, vcpu) >= ENOUGH)
    });
    sleep(Duration::from_nanos(SHORT_NS.unsigned_abs()));
    machine.stop()?;
    taken?;
    let passed_ns = machine.clock()?.header.kvmclock_ns - start_ns;
    // One is due for the periods that ended before, and one each that ends from then on.
    let most = passed_ns / SHORT_NS.unsigned_abs() + 2;
    for vcpu in 0..machine.vcpus().len() {
        let count = count(machine, vcpu);
        note(&format!(
            "vCPU {vcpu}: {count} interrupts in {passed_ns} ns"
        ));
        ensure!(
            count <= most,
            "vCPU {vcpu}'s timer fired {count} times in {passed_ns} ns, with a period of \
             {SHORT_NS} ns"
        );
    }
    Ok(())
}
