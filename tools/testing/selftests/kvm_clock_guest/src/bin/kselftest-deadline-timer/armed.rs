// SPDX-License-Identifier: GPL-2.0-only

//! A stopped guest whose timers are armed, and what must become of them.

use crate::guest::{code, install_handler, Timer, Wait, MSR_TSC_DEADLINE};
use anyhow::{bail, ensure, Context, Result};
use clockguest::{host::rdtsc_ordered, vmm::vm::get_msr};
use kvm_clock::{set_tsc_offset, VmClock};
use kvm_clock_guest_selftests::{ktap::note, machine::Machine, time::SECOND_NS};
use kvm_ioctls::Kvm;
use pvclock::{abi::MODE_EXACT, tsc::is_ahead};
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

pub(crate) const MSEC_NS: i64 = 1_000_000;

/// TSC that guests start with, in ns, so that no case takes one below 0: compared with that, as
/// CPUs compare, every deadline has passed.
const START_NS: i64 = 24 * 3600 * SECOND_NS;
/// How long the guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// An interrupt may be so late; by the former TSC it would be nearly a minute, or never come.
const LATE_NS: i64 = 10 * SECOND_NS;
/// KVM's hrtimer goes by the host's time, not its TSC: at nearly the same rate. By the former TSC
/// an interrupt would be a fifth of a second early.
const EARLY_NS: i64 = MSEC_NS;
/// A second interrupt would have come by then.
const AFTERWARDS: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(1);

/// What a guest is like.
#[derive(Clone, Copy)]
pub(crate) struct Guest {
    /// How far each vCPU's TSC is ahead of the first one's, ns.
    pub(crate) apart_ns: &'static [i64],
    /// TSC rate as a fraction of the host's; 1 without scaling.
    pub(crate) rate: (u32, u32),
    pub(crate) wait: Wait,
}

impl Guest {
    /// Two vCPUs that agree, and halt.
    pub(crate) const PLAIN: Self = Self {
        apart_ns: &[0, 0],
        rate: (1, 1),
        wait: Wait::Halted,
    };
}

/// The guest, and its clocks as saved when it was stopped.
pub(crate) struct Armed {
    pub(crate) machine: Machine,
    pub(crate) saved: VmClock,
    khz: u32,
    wait: Wait,
}

impl Armed {
    /// A guest whose vCPUs armed their timers `ahead_ns` ahead, or not at all if that is 0, and
    /// which was stopped before it saw one fire.
    pub(crate) fn new(kvm: &Kvm, guest: &Guest, ahead_ns: i64) -> Result<Self> {
        /// Doublings of `ahead_ns`.
        const ATTEMPTS: u32 = 6;

        for attempt in 0..ATTEMPTS {
            let armed = Self::attempt(kvm, guest, ahead_ns << attempt)?;
            if armed.timers().all(|timer| timer.fired().is_empty()) {
                return Ok(armed);
            }
        }
        bail!("a timer fired before the guest could be stopped, {ATTEMPTS} times");
    }

    fn attempt(kvm: &Kvm, guest: &Guest, ahead_ns: i64) -> Result<Self> {
        let &Guest {
            apart_ns,
            rate: (num, den),
            wait,
        } = guest;
        // CAST: a few.
        let machine = Machine::new(kvm, apart_ns.len() as u32, code())?;
        install_handler(&machine);
        let host_khz = machine.vcpus()[0].fd().get_tsc_khz()?;
        let khz = u32::try_from(u64::from(host_khz) * u64::from(num) / u64::from(den))?;
        for vcpu in machine.vcpus().iter().filter(|_| khz != host_khz) {
            vcpu.fd().set_tsc_khz(khz).context("KVM_SET_TSC_KHZ")?;
        }
        // Without a pinned record, vCPUs that are apart have no common clock.
        machine.set_clock(&mut machine.clock()?, MODE_EXACT)?;
        let first = machine.transform(0)?.offset;
        for (vcpu, &ns) in machine.vcpus().iter().zip(apart_ns) {
            // CAST: mod 2^64, as TSC values are.
            let offset = first.wrapping_add(ticks(khz, START_NS + ns) as u64);
            set_tsc_offset(&vcpu.fd(), offset).context("KVM_VCPU_TSC_OFFSET")?;
            let vcpu = vcpu.index();
            let timer = Timer {
                machine: &machine,
                vcpu,
            };
            // CAST: positive.
            timer.prepare(ticks(khz, ahead_ns) as u64, wait);
        }
        machine.run()?;
        wait_until(&machine, "arm the timers", || {
            timers(&machine).all(|timer| timer.is_ready())
        })?;
        machine.stop()?;
        let saved = machine.clock()?;
        Ok(Self {
            machine,
            saved,
            khz,
            wait,
        })
    }

    fn timers(&self) -> impl Iterator<Item = Timer<'_>> {
        timers(&self.machine)
    }

    /// Guest ticks in `ns`.
    pub(crate) fn ticks(&self, ns: i64) -> u64 {
        // CAST: mod 2^64, as TSC values are.
        ticks(self.khz, ns) as u64
    }

    fn ns(&self, ticks: u64) -> i64 {
        // CAST: the signed difference of values mod 2^64; and no case is about centuries.
        (i128::from(ticks as i64) * 1_000_000 / i128::from(self.khz)) as i64
    }

    /// From the anchor of the saved clock to the first deadline, ns.
    pub(crate) fn until_deadline_ns(&self) -> Result<i64> {
        let first = self.timers().next().context("no vCPU")?;
        Ok(self.ns(first.deadline().wrapping_sub(self.saved.header.guest_tsc)))
    }

    /// SETs the saved clock.
    pub(crate) fn set(&mut self, mode: u32) -> Result<()> {
        self.machine.set_clock(&mut self.saved, mode)
    }

    /// Sleeps, the guest being stopped, until all deadlines have passed.
    pub(crate) fn sleep_past_deadline(&self) -> Result<()> {
        wait_until(&self.machine, "pass the deadlines", || {
            self.timers().all(|timer| {
                let transform = self.machine.transform(timer.vcpu);
                transform.is_ok_and(|transform| {
                    is_ahead(transform.guest_tsc(rdtsc_ordered()), timer.deadline())
                })
            })
        })?;
        // For KVM's timer, which goes by another clock.
        sleep(Duration::from_millis(20));
        Ok(())
    }

    /// Lets the guest run; fails unless every timer fires at its deadline, or now if that has
    /// passed, and is not armed afterwards. Leaves the guest stopped.
    pub(crate) fn ensure_fires(&self) -> Result<()> {
        // When each is due by the present TSC.
        let due: Vec<_> = self
            .timers()
            .map(|timer| {
                let tsc = self
                    .machine
                    .transform(timer.vcpu)?
                    .guest_tsc(rdtsc_ordered());
                let deadline = timer.deadline();
                Ok(if is_ahead(tsc, deadline) {
                    tsc
                } else {
                    deadline
                })
            })
            .collect::<Result<_>>()?;
        let turns: Vec<_> = self.timers().map(|timer| timer.turns()).collect();
        self.machine.run()?;
        let taken = wait_until(&self.machine, "take the timers' interrupts", || {
            self.timers().all(|timer| !timer.fired().is_empty())
        });
        sleep(AFTERWARDS);
        self.machine.stop()?;
        taken?;
        for ((timer, due), turns) in self.timers().zip(due).zip(turns) {
            self.ensure_fired(&timer, due)?;
            ensure!(
                self.wait == Wait::Halted || timer.turns() > turns,
                "vCPU {} did not spin",
                timer.vcpu
            );
        }
        Ok(())
    }

    fn ensure_fired(&self, timer: &Timer<'_>, due: u64) -> Result<()> {
        let (vcpu, fired) = (timer.vcpu, timer.fired());
        let first = *fired.first().context("no interrupt")?;
        let from_deadline_ns = self.ns(first.wrapping_sub(timer.deadline()));
        let late_ns = self.ns(first.wrapping_sub(due));
        note(&format!(
            "vCPU {vcpu}: interrupt {from_deadline_ns} ns after the deadline, {late_ns} ns after \
             it was due"
        ));
        ensure!(
            from_deadline_ns >= -EARLY_NS,
            "vCPU {vcpu}'s timer fired {} ns before its deadline",
            -from_deadline_ns
        );
        ensure!(
            late_ns <= LATE_NS,
            "vCPU {vcpu}'s timer fired {late_ns} ns late"
        );
        ensure!(
            fired.len() == 1,
            "vCPU {vcpu}'s timer fired {} times, at {fired:?}",
            fired.len()
        );
        self.ensure_disarmed(vcpu)
    }

    fn ensure_disarmed(&self, vcpu: usize) -> Result<()> {
        let deadline = get_msr(&self.machine.vcpus()[vcpu].fd(), MSR_TSC_DEADLINE)?;
        ensure!(
            deadline == 0,
            "vCPU {vcpu}'s timer is armed for {deadline}, and should not be at all"
        );
        Ok(())
    }

    /// Lets the guest run; fails if any vCPU takes an interrupt beyond the `so_far` it took.
    pub(crate) fn ensure_no_more(&self, so_far: usize) -> Result<()> {
        self.machine.run()?;
        // Longer than any timer of these cases is ahead.
        sleep(4 * AFTERWARDS);
        self.machine.stop()?;
        for timer in self.timers() {
            let fired = timer.fired();
            ensure!(
                fired.len() == so_far,
                "vCPU {} took {} timer interrupts, expected {so_far}",
                timer.vcpu,
                fired.len()
            );
            self.ensure_disarmed(timer.vcpu)?;
        }
        Ok(())
    }
}

pub(crate) fn timers(machine: &Machine) -> impl Iterator<Item = Timer<'_>> {
    (0..machine.vcpus().len()).map(move |vcpu| Timer { machine, vcpu })
}

fn ticks(khz: u32, ns: i64) -> i64 {
    // CAST: no case is about centuries.
    (i128::from(ns) * i128::from(khz) / 1_000_000) as i64
}

fn wait_until(machine: &Machine, what: &str, done: impl Fn() -> bool) -> Result<()> {
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
