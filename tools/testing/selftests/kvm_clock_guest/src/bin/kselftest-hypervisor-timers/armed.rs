// SPDX-License-Identifier: GPL-2.0-only

//! A stopped guest whose timers are armed, and how they must fire.

use crate::timer::Timer;
use kvm_bindings::KVM_MP_STATE_HALTED;
use kvm_clock_guest_selftests::{
    prelude::*,
    timer_guest::{self, timers, wait_for_interrupts, EARLY_NS, LATE_NS},
    wait::POLL,
};

const VCPUS: u32 = 2;
/// How long the guest may take for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);

/// The guest, and its clocks as saved when it was last stopped.
pub(crate) struct Armed {
    pub(crate) vm: Vm,
    pub(crate) saved: VmClock,
    timer: Timer,
    /// kvmclock for which the timers are armed, ns.
    deadline_ns: u64,
}

/// Lets the stopped `vm` run until all vCPUs halt: one that was stopped on its way there would not
/// wake up when its timer starts.
fn halt(vm: &Vm) -> Result<()> {
    let is_halted = || {
        vm.run()?;
        sleep(POLL);
        vm.stop()?;
        let mut states = vm.vcpus().iter().map(|vcpu| vcpu.fd().get_mp_state());
        states.try_fold(true, |all, state| {
            Ok(all && state?.mp_state == KVM_MP_STATE_HALTED)
        })
    };
    wait_until("the vCPUs halt", PATIENCE, is_halted)
}

impl Armed {
    /// A guest that has run and is stopped, with no timer armed yet.
    pub(crate) fn new(kvm: &Kvm, timer: Timer, is_pinned: bool) -> Result<Self> {
        let vm = timer_guest::new(kvm, VCPUS)?;
        make_old(&vm)?;
        timer.prepare(&vm)?;
        if is_pinned {
            set(&vm, &mut get(&vm)?, MODE_EXACT)?;
        }
        vm.run()?;
        timer_guest::wait(&vm, "enables its APICs", PATIENCE, || {
            timers(&vm).all(|timer| timer.rounds() != 0)
        })?;
        vm.stop()?;
        halt(&vm)?;
        timer.ensure_prepared(&vm)?;
        Ok(Self {
            saved: get(&vm)?,
            vm,
            timer,
            deadline_ns: 0,
        })
    }

    /// Saves the present clocks.
    pub(crate) fn save(&mut self) -> Result<()> {
        self.saved = get(&self.vm)?;
        Ok(())
    }

    /// Arms all timers for `ahead_ns` (ns) after the saved clock's anchor.
    pub(crate) fn arm(&mut self, ahead_ns: u64) -> Result<()> {
        self.deadline_ns = self.saved.header.kvmclock_ns + ahead_ns;
        for vcpu in 0..self.vm.vcpus().len() {
            self.timer.arm(&self.vm, vcpu, self.deadline_ns)?;
        }
        Ok(())
    }

    /// Makes KVM start the timers that it starts only when their vCPU runs. Leaves the guest
    /// stopped.
    pub(crate) fn start_timers(&self) -> Result<()> {
        if self.timer == Timer::Xen {
            return Ok(());
        }
        // Such a timer wakes its vCPU once when it is armed.
        let before: Vec<_> = timers(&self.vm).map(|timer| timer.rounds()).collect();
        self.vm.run()?;
        timer_guest::wait(&self.vm, "starts the timers", PATIENCE, || {
            timers(&self.vm)
                .zip(&before)
                .all(|(timer, before)| timer.rounds() > *before)
        })?;
        self.vm.stop()?;
        for timer in timers(&self.vm) {
            let vcpu = timer.vcpu;
            ensure_eq!(timer.count(), 0, "early interrupts of vCPU {vcpu}");
        }
        Ok(())
    }

    /// kvmclock for which the timers are armed, ns.
    pub(crate) fn deadline_ns(&self) -> u64 {
        self.deadline_ns
    }

    /// SETs the saved clock.
    pub(crate) fn set(&mut self, mode: u32) -> Result<()> {
        set(&self.vm, &mut self.saved, mode)
    }

    /// Lets the guest run; fails unless every timer fires once, when kvmclock is at the deadline,
    /// or now if that has passed.
    pub(crate) fn ensure_fires(&self) -> Result<()> {
        let now_ns = get(&self.vm)?.header.kvmclock_ns;
        let expected_ns = self.deadline_ns.max(now_ns);
        self.vm.run()?;
        let taken = wait_for_interrupts(&self.vm, 1, PATIENCE);
        let clock = get(&self.vm)?;
        taken.with_context(|| {
            format!(
                "kvmclock was {now_ns} ns, is {} ns, the deadline is {} ns",
                clock.header.kvmclock_ns, self.deadline_ns
            )
        })?;
        for timer in timers(&self.vm) {
            self.ensure_fired(&clock, timer.vcpu, &timer.fired(), expected_ns)?;
        }
        Ok(())
    }

    fn ensure_fired(
        &self,
        clock: &VmClock,
        vcpu: usize,
        fired: &[GuestTsc],
        expected_ns: u64,
    ) -> Result<()> {
        let first = *fired.first().context("no interrupt")?;
        // All vCPUs' TSCs are equal.
        let fired_ns = clock.header.record.kvmclock_ns(first);
        note!(
            "vCPU {vcpu}: interrupt at {fired_ns} ns, deadline {} ns, expected at {expected_ns} ns",
            self.deadline_ns
        );
        let (early, late) = (EARLY_NS.unsigned_abs(), LATE_NS.unsigned_abs());
        ensure!(
            fired_ns >= self.deadline_ns.saturating_sub(early),
            "vCPU {vcpu}'s timer fired {} ns early",
            self.deadline_ns.saturating_sub(fired_ns)
        );
        ensure!(
            fired_ns <= expected_ns + late,
            "vCPU {vcpu}'s timer fired {} ns late",
            fired_ns.saturating_sub(expected_ns)
        );
        ensure_eq!(fired.len(), 1, "interrupts of vCPU {vcpu}, at {fired:?}");
        Ok(())
    }

    /// Guest ticks in `ns`.
    pub(crate) fn ticks(&self, ns: u64) -> Result<u64> {
        let scale = reference_transform(&self.saved)?.scale;
        let host = u128::from(ns) * u128::from(self.saved.header.host_tsc_khz) / 1_000_000;
        Ok(scale.apply(u64::try_from(host)?))
    }
}

/// Gives the guest a TSC and a kvmclock of hours, so that no case makes one negative.
fn make_old(vm: &Vm) -> Result<()> {
    const TICKS: u64 = 1 << 44;

    let offset = vm.tsc_offsets()?[0].wrapping_add(TICKS);
    for vcpu in 0..vm.vcpus().len() {
        vm.set_tsc_offset(vcpu, offset)?;
    }
    set_clock(vm, HOUR_NS.unsigned_abs())
}
