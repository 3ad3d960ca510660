// SPDX-License-Identifier: GPL-2.0-only

//! The host finds its TSC unstable on its way to sleep, or as its CPUs come back: the clocks of
//! guests go on, and GET says that they no longer are pinned.
//!
//! kvmclock follows the host's raw clock from then on. What the TSC itself does is KVM's to make up
//! for, by hand.

use crate::{
    expected::own_steps_back,
    sleep::{prepare, sleep_as, wait_for_tsc, HostTsc},
    VCPUS,
};
use anyhow::{ensure, Context, Result};
use clockguest::{observe, vmm::Vm};
use kvm_clock::{get_vm_clock_guest, get_vm_clock_guest_or_fall_back};
use kvm_clock_guest_selftests::{
    clocksource,
    fixture::{an_hour_ahead, get, pinned, run_a_little, set},
    host_clock::now_ns,
    host_module,
    ktap::{note, Case},
    refusal::ensure_errno,
    require,
    time::SECOND_NS,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{MODE_EXACT, STATUS_HOST_TSC_STABLE, STATUS_PINNED};
use std::{
    thread,
    time::{Duration, Instant},
};

/// How long the kernel may take to act on what it found out.
const PATIENCE: Duration = Duration::from_secs(20);

/// A VM, and what its kvmclock was before the host slept.
struct Pinned {
    vm: Vm,
    /// CLOCK_BOOTTIME, ns.
    booted_ns: i64,
    kvmclock_ns: u64,
    steps_back: Vec<[u64; 2]>,
}

impl Pinned {
    /// Its pinned record is an hour ahead of what KVM would make.
    fn new(kvm: &Kvm) -> Result<Self> {
        let vm = pinned(kvm, VCPUS)?;
        let mut clock = an_hour_ahead(get(&vm)?);
        set(&vm, &mut clock, MODE_EXACT)?;
        run_a_little(&vm)?;
        let booted_ns = now_ns(libc::CLOCK_BOOTTIME);
        Ok(Self {
            booted_ns,
            kvmclock_ns: get(&vm)?.header.kvmclock_ns,
            steps_back: own_steps_back(&vm),
            vm,
        })
    }

    /// Lets it run; what its guest reads from now on is the least that it may read thereafter.
    fn run(&mut self) -> Result<()> {
        observe::run(&self.vm)?;
        let views = (0..self.vm.vcpus().len()).map(|index| self.vm.view(index));
        let read = views.filter_map(|view| Some(view.latest()?.kvmclock_ns));
        self.kvmclock_ns = read.fold(self.kvmclock_ns, u64::max);
        Ok(())
    }

    /// Fails if `kvmclock_ns`, as `who` says now, is less than before, or more than the time that
    /// passed.
    fn ensure_went_on(&self, who: &str, kvmclock_ns: u64) -> Result<()> {
        // CAST: The sign of a difference mod 2^64 is the order.
        let went = kvmclock_ns.wrapping_sub(self.kvmclock_ns) as i64;
        let passed = now_ns(libc::CLOCK_BOOTTIME) - self.booted_ns;
        // The host knows the time that it slept from a clock of whole seconds.
        ensure!(
            (0..=passed + 3 * SECOND_NS).contains(&went),
            "kvmclock went on by {went} ns, says {who}, in the {passed} ns that passed"
        );
        Ok(())
    }

    /// All that is to be seen of the clock of the stopped VM, but by its guest.
    fn ensure_told(&self) -> Result<u32> {
        let kvmclock_ns = self.vm.fd().get_clock().context("KVM_GET_CLOCK")?.clock;
        self.ensure_went_on("KVM_GET_CLOCK", kvmclock_ns)?;
        ensure_errno(libc::ENODATA, get_vm_clock_guest(self.vm.fd()).map(drop))?;
        let told = get_vm_clock_guest_or_fall_back(self.vm.fd())
            .context("FALLBACK")?
            .header;
        ensure!(
            told.status & STATUS_HOST_TSC_STABLE == 0,
            "the host TSC is said to be fit"
        );
        self.ensure_went_on("GET with FALLBACK", told.kvmclock_ns)?;
        Ok(told.status)
    }

    /// Fails unless KVM drops the record soon, as the VM runs, and all go on from its value.
    fn ensure_goes_on(&self) -> Result<()> {
        let start = Instant::now();
        while self.ensure_told()? & STATUS_PINNED != 0 {
            ensure!(
                start.elapsed() < PATIENCE,
                "still pinned after {PATIENCE:?}"
            );
            run_a_little(&self.vm)?;
        }
        let reading = run_a_little(&self.vm)?;
        for read in reading.vcpus.iter().flat_map(|vcpu| &vcpu.samples) {
            self.ensure_went_on("the guest", read.sample.kvmclock_ns)?;
        }
        // For each record that KVM makes now it reads TSC and raw clock one after the other. What
        // passes in between differs, and a clock without the stable bit may step back by it.
        note(&format!(
            "steps back of each vCPU's TSC and kvmclock were {:?}, are {:?}",
            self.steps_back,
            own_steps_back(&self.vm)
        ));
        Ok(())
    }
}

/// A host that slept, and whose TSC is unstable since.
pub(crate) struct Unstable {
    kvm: Kvm,
    /// One that was running meanwhile, and one that did not run since.
    running: Pinned,
    stopped: Pinned,
}

impl Unstable {
    /// `at` is "suspend" or "online".
    pub(crate) fn new(tsc: HostTsc, at: &str) -> Result<Self> {
        /// More ticks than any host took to wake up, as there is no second try: a debug kernel's,
        /// emulated, took up to 80 s of them at 2.6 GHz.
        const ENOUGH: u64 = 300_000_000_000;

        let kvm = require::clock_guest()?;
        prepare()?;
        if tsc == HostTsc::Restarts {
            note(&format!("waits until the host TSC is at {ENOUGH} ticks"));
            wait_for_tsc(ENOUGH);
        }
        let (mut running, stopped) = (Pinned::new(&kvm)?, Pinned::new(&kvm)?);
        let module = host_module::open("mark_tsc_unstable")?;
        host_module::load(&module, &format!("at={at}")).context("mark_tsc_unstable")?;
        running.run()?;
        sleep_as(tsc)?;
        Ok(Self {
            kvm,
            running,
            stopped,
        })
    }
}

pub(crate) fn cases() -> Vec<Case<Unstable>> {
    vec![
        Case::new(
            "the host stops using its TSC as clocksource",
            clocksource_changes,
        ),
        Case::new("a VM that did not run since is told of right", not_noticed),
        Case::new(
            "a VM that runs meanwhile: its clock goes on",
            goes_on_running,
        ),
        Case::new(
            "a VM that runs again: its clock goes on",
            |host: &Unstable| host.stopped.ensure_goes_on(),
        ),
        Case::new("a new VM", new_vm),
    ]
}

fn clocksource_changes(_: &Unstable) -> Result<()> {
    let start = Instant::now();
    while clocksource::current()? == "tsc" {
        ensure!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn not_noticed(host: &Unstable) -> Result<()> {
    let status = host.stopped.ensure_told()?;
    ensure!(
        status == STATUS_PINNED,
        "GET with FALLBACK tells status {status:#x}"
    );
    Ok(())
}

fn goes_on_running(host: &Unstable) -> Result<()> {
    host.running.vm.stop()?;
    host.running.ensure_goes_on()
}

fn new_vm(host: &Unstable) -> Result<()> {
    let vm = Vm::new(&host.kvm, VCPUS)?;
    run_a_little(&vm)?;
    ensure_errno(libc::ENODATA, get_vm_clock_guest(vm.fd()).map(drop))?;
    let status = get_vm_clock_guest_or_fall_back(vm.fd())?.header.status;
    ensure!(status == 0, "GET with FALLBACK tells status {status:#x}");
    Ok(())
}
