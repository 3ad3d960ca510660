// SPDX-License-Identifier: GPL-2.0-only

//! A stopped guest whose timers are armed, and what must become of them.

use crate::{
    guest::{code, count, fired, install_handler, turns},
    timer::Timer,
};
use anyhow::{ensure, Context, Result};
use kvm_bindings::kvm_clock_data;
use kvm_clock::{set_tsc_offset, VmClock};
use kvm_clock_guest_selftests::{
    fixture::reference_transform, ktap::note, machine::Machine, time::HOUR_NS,
};
use kvm_ioctls::Kvm;
use pvclock::abi::MODE_EXACT;
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

const VCPUS: u32 = 2;
/// How long the guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(8);
/// An interrupt may be so late; by the former clock it would be nearly a minute.
const LATE_NS: u64 = 10_000_000_000;
/// KVM's hrtimers go by the host's time, not its TSC: at nearly the same rate. By the former clock
/// an interrupt would be half a second early.
const EARLY_NS: u64 = 1_000_000;
/// A second interrupt would have come by then.
const AFTERWARDS: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(1);

/// The guest, and its clocks as saved when it was last stopped.
pub(crate) struct Armed {
    pub(crate) machine: Machine,
    pub(crate) saved: VmClock,
    timer: Timer,
    /// kvmclock that the timers are armed for, ns.
    due_ns: u64,
}

impl Armed {
    /// A guest that has run and is stopped, its timers not armed yet.
    pub(crate) fn new(kvm: &Kvm, timer: Timer, is_pinned: bool) -> Result<Self> {
        let machine = Machine::new(kvm, VCPUS, code())?;
        install_handler(&machine);
        grow_old(&machine)?;
        timer.prepare(&machine)?;
        if is_pinned {
            machine.set_clock(&mut machine.clock()?, MODE_EXACT)?;
        }
        machine.run()?;
        wait_until(&machine, "enable its APICs", || {
            (0..machine.vcpus().len()).all(|vcpu| turns(&machine, vcpu) != 0)
        })?;
        machine.stop()?;
        timer.ensure_prepared(&machine)?;
        let saved = machine.clock()?;
        Ok(Self {
            machine,
            saved,
            timer,
            due_ns: 0,
        })
    }

    /// Saves the clocks of now.
    pub(crate) fn save(&mut self) -> Result<()> {
        self.saved = self.machine.clock()?;
        Ok(())
    }

    /// Arms all timers for `ahead_ns` (ns) after the saved clock's anchor.
    pub(crate) fn arm(&mut self, ahead_ns: u64) -> Result<()> {
        self.due_ns = self.saved.header.kvmclock_ns + ahead_ns;
        for vcpu in 0..self.machine.vcpus().len() {
            self.timer.arm(&self.machine, vcpu, self.due_ns)?;
        }
        Ok(())
    }

    /// Has KVM start the timers that it starts only when their vCPU runs. Leaves the guest stopped.
    pub(crate) fn start_timers(&self) -> Result<()> {
        if self.timer == Timer::Xen {
            return Ok(());
        }
        // Such a timer wakes its vCPU once when it was armed.
        let machine = &self.machine;
        let vcpus = 0..machine.vcpus().len();
        let before: Vec<_> = vcpus.clone().map(|vcpu| turns(machine, vcpu)).collect();
        machine.run()?;
        wait_until(machine, "start the timers", || {
            vcpus
                .clone()
                .all(|vcpu| turns(machine, vcpu) > before[vcpu])
        })?;
        machine.stop()?;
        for vcpu in vcpus {
            ensure!(
                count(machine, vcpu) == 0,
                "vCPU {vcpu}'s timer fired before the guest was stopped"
            );
        }
        Ok(())
    }

    /// kvmclock that the timers are armed for, ns.
    pub(crate) fn due_ns(&self) -> u64 {
        self.due_ns
    }

    /// SETs the saved clock.
    pub(crate) fn set(&mut self, mode: u32) -> Result<()> {
        self.machine.set_clock(&mut self.saved, mode)
    }

    /// Lets the guest run; fails unless every timer fires when kvmclock is what it was armed for,
    /// or now if kvmclock is beyond that, and once.
    pub(crate) fn ensure_fires(&self) -> Result<()> {
        let machine = &self.machine;
        let now_ns = machine.clock()?.header.kvmclock_ns;
        let due_ns = self.due_ns.max(now_ns);
        machine.run()?;
        let taken = wait_until(machine, "take the timers' interrupts", || {
            (0..machine.vcpus().len()).all(|vcpu| count(machine, vcpu) != 0)
        });
        sleep(AFTERWARDS);
        machine.stop()?;
        let clock = machine.clock()?;
        taken.with_context(|| {
            format!(
                "kvmclock was {now_ns} ns, is {} ns, the timers are due at {} ns",
                clock.header.kvmclock_ns, self.due_ns
            )
        })?;
        for vcpu in 0..machine.vcpus().len() {
            self.ensure_fired(&clock, vcpu, due_ns)?;
        }
        Ok(())
    }

    fn ensure_fired(&self, clock: &VmClock, vcpu: usize, due_ns: u64) -> Result<()> {
        let fired = fired(&self.machine, vcpu);
        let first = *fired.first().context("no interrupt")?;
        // All vCPUs' TSCs are equal.
        let fired_ns = clock.header.record.kvmclock_ns(first);
        note(&format!(
            "vCPU {vcpu}: interrupt at {fired_ns} ns, armed for {} ns, due at {due_ns} ns",
            self.due_ns
        ));
        ensure!(
            fired_ns >= self.due_ns.saturating_sub(EARLY_NS),
            "vCPU {vcpu}'s timer fired {} ns early",
            self.due_ns.saturating_sub(fired_ns)
        );
        ensure!(
            fired_ns <= due_ns + LATE_NS,
            "vCPU {vcpu}'s timer fired {} ns late",
            fired_ns.saturating_sub(due_ns)
        );
        ensure!(
            fired.len() == 1,
            "vCPU {vcpu}'s timer fired {} times, at {fired:?}",
            fired.len()
        );
        Ok(())
    }

    /// Guest ticks in `ns`.
    pub(crate) fn ticks(&self, ns: u64) -> Result<u64> {
        let scale = reference_transform(&self.saved)?.scale;
        let host = u128::from(ns) * u128::from(self.saved.header.host_tsc_khz) / 1_000_000;
        Ok(scale.apply(u64::try_from(host)?))
    }
}

/// Gives the guest a TSC and a kvmclock of hours, so that no case takes one below 0.
fn grow_old(machine: &Machine) -> Result<()> {
    const TICKS: u64 = 1 << 44;

    for vcpu in machine.vcpus() {
        let offset = machine.transform(0)?.offset;
        let ticks = if vcpu.index() == 0 { TICKS } else { 0 };
        set_tsc_offset(&vcpu.fd(), offset.wrapping_add(ticks)).context("KVM_VCPU_TSC_OFFSET")?;
    }
    let data = kvm_clock_data {
        clock: HOUR_NS.unsigned_abs(),
        ..kvm_clock_data::default()
    };
    machine.fd().set_clock(&data).context("KVM_SET_CLOCK")
}

pub(crate) fn wait_until(machine: &Machine, what: &str, done: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !done() {
        machine.check()?;
        ensure!(
            start.elapsed() < PATIENCE,
            "the guest did not {what} within {PATIENCE:?}"
        );
        sleep(POLL);
    }
    Ok(())
}
