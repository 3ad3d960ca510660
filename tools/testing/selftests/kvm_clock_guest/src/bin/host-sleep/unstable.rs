// SPDX-License-Identifier: GPL-2.0-only

//! The host marks its TSC unstable while it is suspended or its CPUs come back: guests' clocks
//! continue, and GET reports that they are no longer pinned.
//!
//! kvmclock follows the host's raw clock from then on, and KVM adjusts the guests' TSCs.

use crate::{
    expected::own_steps_back,
    sleep::{prepare, sleep_as, wait_for_tsc, TscInSleep},
    VCPUS,
};
use kvm_clock::get_vm_clock_guest_or_fall_back;
use kvm_clock_guest_selftests::{
    clocksource::{self, PATIENCE},
    host_clock::now_ns,
    host_module,
    prelude::*,
};

/// A VM, and its kvmclock before the host slept.
struct Pinned {
    vm: Vm,
    /// CLOCK_BOOTTIME, ns.
    booted_ns: i64,
    kvmclock_ns: u64,
    steps_back: Vec<[u64; 2]>,
}

impl Pinned {
    /// Its pinned record is an hour ahead of KVM's own.
    fn new(kvm: &Kvm) -> Result<Self> {
        let (vm, _) = pinned_an_hour_ahead(kvm, VCPUS)?;
        let booted_ns = now_ns(libc::CLOCK_BOOTTIME);
        Ok(Self {
            booted_ns,
            kvmclock_ns: get(&vm)?.header.kvmclock_ns,
            steps_back: own_steps_back(&vm),
            vm,
        })
    }

    /// Lets it run; its guest's present readings are the minimum of later ones.
    fn run(&mut self) -> Result<()> {
        observe::run(&self.vm)?;
        let views = (0..self.vm.vcpus().len()).map(|index| self.vm.view(index));
        let read = views.filter_map(|view| Some(view.latest()?.kvmclock_ns));
        self.kvmclock_ns = read.fold(self.kvmclock_ns, u64::max);
        Ok(())
    }

    /// Fails if `kvmclock_ns`, as `source` reports it now, is less than before, or grew more than
    /// the time that passed.
    fn ensure_went_on(&self, source: &str, kvmclock_ns: u64) -> Result<()> {
        // CAST: The sign of a difference mod 2^64 is the order.
        let went = kvmclock_ns.wrapping_sub(self.kvmclock_ns) as i64;
        let passed = now_ns(libc::CLOCK_BOOTTIME) - self.booted_ns;
        // The host measures the time that it slept in whole seconds.
        ensure!(
            (0..=passed + 3 * SECOND_NS).contains(&went),
            "kvmclock of {source} grew by {went} ns in {passed} ns"
        );
        Ok(())
    }

    /// Checks all interfaces of the stopped VM's clock; returns the status of GET with FALLBACK.
    fn ensure_reported(&self) -> Result<u32> {
        let kvmclock_ns = get_clock(&self.vm)?.clock;
        self.ensure_went_on("KVM_GET_CLOCK", kvmclock_ns)?;
        ensure_errno(libc::ENODATA, get_vm_clock_guest(self.vm.fd()).map(drop))?;
        let reported = get_or_fall_back(&self.vm)?.header;
        ensure!(
            reported.status & STATUS_HOST_TSC_STABLE == 0,
            "the host TSC is reported as stable"
        );
        self.ensure_went_on("GET with FALLBACK", reported.kvmclock_ns)?;
        Ok(reported.status)
    }

    /// Fails unless KVM soon unpins the clock when the VM runs, and it continues from its value.
    fn ensure_continues(&self) -> Result<()> {
        wait_until("KVM unpins the clock", PATIENCE, || {
            if self.ensure_reported()? & STATUS_PINNED == 0 {
                return Ok(true);
            }
            run_a_little(&self.vm).map(|_| false)
        })?;
        let reading = run_a_little(&self.vm)?;
        for read in reading.vcpus.iter().flat_map(|vcpu| &vcpu.samples) {
            self.ensure_went_on("the guest", read.sample.kvmclock_ns)?;
        }
        // For each record, KVM now reads first the TSC and then the raw clock. The time between
        // them varies, and a clock without the stable flag may step back by it.
        note!(
            "steps back of each vCPU's TSC and kvmclock were {:?}, are {:?}",
            self.steps_back,
            own_steps_back(&self.vm)
        );
        Ok(())
    }
}

/// A host that slept, and whose TSC has been unstable since.
pub(crate) struct Unstable {
    kvm: Kvm,
    /// A VM that ran during the sleep, and one that has not run since.
    running: Pinned,
    stopped: Pinned,
}

impl Unstable {
    /// `at` is "suspend" or "online".
    pub(crate) fn new(tsc: TscInSleep, at: &str) -> Result<Self> {
        /// More ticks than any host needs to wake up, as there is no second try: an emulated host
        /// with a debug kernel took up to 80 s at 2.6 GHz.
        const ENOUGH: HostTsc = HostTsc(300_000_000_000);

        let kvm = require::clock_guest()?;
        prepare()?;
        if tsc == TscInSleep::Restarts {
            note!("waits until the host TSC is at {ENOUGH} ticks");
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
        Case::new("the host stops using its TSC as clocksource", |_| {
            clocksource::wait_until_not_tsc()
        }),
        Case::new(
            "GET is correct for a VM that has not run since",
            not_noticed,
        ),
        Case::new(
            "the clock of a VM that ran during the sleep continues",
            continues_running,
        ),
        Case::new(
            "the clock of a VM that runs again continues",
            |host: &Unstable| host.stopped.ensure_continues(),
        ),
        Case::new("a new VM has no pinned clock", new_vm),
    ]
}

fn not_noticed(host: &Unstable) -> Result<()> {
    let status = host.stopped.ensure_reported()?;
    ensure_eq_hex!(status, STATUS_PINNED, "GET's status with FALLBACK");
    Ok(())
}

fn continues_running(host: &Unstable) -> Result<()> {
    host.running.vm.stop()?;
    host.running.ensure_continues()
}

fn new_vm(host: &Unstable) -> Result<()> {
    let vm = Vm::new(&host.kvm, VCPUS)?;
    run_a_little(&vm)?;
    ensure_errno(libc::ENODATA, get_vm_clock_guest(vm.fd()).map(drop))?;
    let status = get_vm_clock_guest_or_fall_back(vm.fd())?.header.status;
    ensure_eq_hex!(status, 0, "GET's status with FALLBACK");
    Ok(())
}
