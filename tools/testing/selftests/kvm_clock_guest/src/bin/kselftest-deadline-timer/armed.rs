// SPDX-License-Identifier: GPL-2.0-only

//! A stopped guest whose timers are armed, and how they must fire.

use kvm_clock_guest_selftests::{
    msr::{get_msr, MSR_IA32_TSC_DEADLINE},
    prelude::*,
    timer_guest::{self, timers, wait_for_interrupts, Timer, Wait, AFTERWARDS, EARLY_NS, LATE_NS},
    tsc_writes,
};

pub(crate) const MSEC_NS: i64 = 1_000_000;

/// The TSC that guests start with, in ns: no case makes one negative, as CPUs would then consider
/// every deadline passed.
const START_NS: i64 = 24 * 3600 * SECOND_NS;
/// How long the guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// The kind of a guest.
#[derive(Clone, Copy)]
pub(crate) struct Guest {
    /// How far each vCPU's TSC is ahead of the first one's, ns.
    pub(crate) apart_ns: &'static [i64],
    /// TSC rate as a fraction of the host's; 1 without scaling.
    pub(crate) rate: (u32, u32),
    pub(crate) wait: Wait,
}

impl Guest {
    /// Two vCPUs with equal TSCs that halt.
    pub(crate) const PLAIN: Self = Self {
        apart_ns: &[0, 0],
        rate: (1, 1),
        wait: Wait::Halted,
    };
}

/// The guest, and its clocks as saved when it was stopped.
pub(crate) struct Armed {
    pub(crate) vm: Vm,
    pub(crate) saved: VmClock,
    khz: u32,
    wait: Wait,
}

impl Armed {
    /// A guest whose vCPUs armed their timers `ahead_ns` ahead (0: not at all), and which was
    /// stopped before a timer fired.
    pub(crate) fn new(kvm: &Kvm, guest: &Guest, ahead_ns: i64) -> Result<Self> {
        /// Doublings of `ahead_ns`.
        const ATTEMPTS: u32 = 6;

        for attempt in 0..ATTEMPTS {
            let armed = Self::attempt(kvm, guest, ahead_ns << attempt)?;
            if timers(&armed.vm).all(|timer| timer.fired().is_empty()) {
                return Ok(armed);
            }
        }
        bail!("a timer fired before the guest was stopped, {ATTEMPTS} times");
    }

    fn attempt(kvm: &Kvm, guest: &Guest, ahead_ns: i64) -> Result<Self> {
        let &Guest {
            apart_ns,
            rate: (num, den),
            wait,
        } = guest;
        // CAST: a few.
        let vm = timer_guest::new(kvm, apart_ns.len() as u32)?;
        let host_khz = vm.tsc_khz()?;
        let khz = u32::try_from(u64::from(host_khz) * u64::from(num) / u64::from(den))?;
        for vcpu in vm.vcpus().iter().filter(|_| khz != host_khz) {
            vcpu.fd().set_tsc_khz(khz).context("KVM_SET_TSC_KHZ")?;
        }
        // Without a pinned clock, vCPUs whose TSCs differ have no common clock.
        set(&vm, &mut get(&vm)?, MODE_EXACT)?;
        let first = vm.tsc_offsets()?[0];
        for (timer, &ns) in timers(&vm).zip(apart_ns) {
            // CAST: mod 2^64, as TSC values are.
            let offset = first.wrapping_add(ticks(khz, START_NS + ns) as u64);
            vm.set_tsc_offset(timer.vcpu, offset)?;
            // CAST: positive.
            timer.prepare(ticks(khz, ahead_ns) as u64, wait);
        }
        vm.run()?;
        timer_guest::wait(&vm, "arms the timers", PATIENCE, || {
            timers(&vm).all(|timer| timer.is_ready())
        })?;
        vm.stop()?;
        Ok(Self {
            saved: get(&vm)?,
            vm,
            khz,
            wait,
        })
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
        let first = timers(&self.vm).next().context("no vCPU")?;
        Ok(self.ns(first.deadline().since(self.saved.header.guest_tsc)))
    }

    /// SETs the saved clock.
    pub(crate) fn set(&mut self, mode: u32) -> Result<()> {
        set(&self.vm, &mut self.saved, mode)
    }

    /// Sleeps until all deadlines have passed. The guest is stopped.
    pub(crate) fn sleep_past_deadline(&self) -> Result<()> {
        wait_until("the deadlines pass", PATIENCE, || {
            for timer in timers(&self.vm) {
                let now = tsc_writes::now(&self.vm, timer.vcpu)?;
                if !now.is_ahead_of(timer.deadline()) {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        // For KVM's timer, which uses another clock.
        sleep(Duration::from_millis(20));
        Ok(())
    }

    /// Lets the guest run; fails unless every timer fires at its deadline, or now if that has
    /// passed, and is not armed afterwards. Leaves the guest stopped.
    pub(crate) fn ensure_fires(&self) -> Result<()> {
        // The expected TSCs.
        let expected = timers(&self.vm).map(|timer| {
            let (now, deadline) = (tsc_writes::now(&self.vm, timer.vcpu)?, timer.deadline());
            Ok(if now.is_ahead_of(deadline) {
                now
            } else {
                deadline
            })
        });
        let expected: Vec<_> = expected.collect::<Result<_>>()?;
        let rounds: Vec<_> = timers(&self.vm).map(|timer| timer.rounds()).collect();
        self.vm.run()?;
        wait_for_interrupts(&self.vm, 1, PATIENCE)?;
        for ((timer, expected), rounds) in timers(&self.vm).zip(expected).zip(rounds) {
            self.ensure_fired(&timer, expected)?;
            ensure!(
                self.wait == Wait::Halted || timer.rounds() > rounds,
                "vCPU {} did not spin",
                timer.vcpu
            );
        }
        Ok(())
    }

    fn ensure_fired(&self, timer: &Timer<'_>, expected: GuestTsc) -> Result<()> {
        let (vcpu, fired) = (timer.vcpu, timer.fired());
        let first = *fired.first().context("no interrupt")?;
        let from_deadline_ns = self.ns(first.since(timer.deadline()));
        let late_ns = self.ns(first.since(expected));
        note!("vCPU {vcpu}: interrupt {from_deadline_ns} ns after the deadline, {late_ns} ns late");
        ensure!(
            from_deadline_ns >= -EARLY_NS,
            "vCPU {vcpu}'s timer fired {} ns before its deadline",
            -from_deadline_ns
        );
        ensure!(
            late_ns <= LATE_NS,
            "vCPU {vcpu}'s timer fired {late_ns} ns late"
        );
        ensure_eq!(fired.len(), 1, "interrupts of vCPU {vcpu}, at {fired:?}");
        self.ensure_disarmed(vcpu)
    }

    fn ensure_disarmed(&self, vcpu: usize) -> Result<()> {
        let deadline = get_msr(&self.vm.vcpus()[vcpu].fd(), MSR_IA32_TSC_DEADLINE)?;
        ensure_eq!(deadline, 0, "vCPU {vcpu}'s TSC deadline");
        Ok(())
    }

    /// Lets the guest run; fails if any vCPU takes an interrupt beyond the `so_far` it took.
    pub(crate) fn ensure_no_more(&self, so_far: usize) -> Result<()> {
        self.vm.run()?;
        // Longer than any timer of these cases is ahead.
        sleep(4 * AFTERWARDS);
        self.vm.stop()?;
        for timer in timers(&self.vm) {
            ensure_eq!(
                timer.fired().len(),
                so_far,
                "interrupts of vCPU {}",
                timer.vcpu
            );
            self.ensure_disarmed(timer.vcpu)?;
        }
        Ok(())
    }
}

fn ticks(khz: u32, ns: i64) -> i64 {
    // CAST: no case is about centuries.
    (i128::from(ns) * i128::from(khz) / 1_000_000) as i64
}
