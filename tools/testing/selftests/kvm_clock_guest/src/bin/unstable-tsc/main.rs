// SPDX-License-Identifier: GPL-2.0-only

//! A host that marks its TSC unstable while guests run: calls fail with `ENODATA`, kvmclock
//! continues from its value, and FALLBACK works.
//!
//! The host then has no usable TSC until it is rebooted, so `tools/vm/host run --allow` runs this
//! program by itself. With
//! `--at=online` the host marks its TSC while one of its CPUs comes online.
//!
//! On such a host KVM adjusts guests' TSCs: whenever it loads a vCPU, also for an ioctl, it
//! computes the vCPU's offset again. So this test reads offsets with GET, which loads no vCPU.

mod lagging;
mod sets;

use clockguest::host::ClockAndTsc;
use kvm_clock_guest_selftests::{
    clocksource,
    continued::{Continued, Function},
    host_clock::clock_and_tsc,
    host_module,
    hotplug::host_cpus,
    prelude::*,
};

const VCPUS: u32 = 2;
/// Above the time that KVM needs to read its two clocks on an interrupted, emulated host, and far
/// below the hour by which all other clocks differ.
const TOLERANCE_NS: u32 = 100_000_000;

/// A VM with a pinned record an hour ahead, its clocks, and the raw clock at that time.
struct Pinned {
    vm: Vm,
    clock: VmClock,
    raw: ClockAndTsc,
}

impl Pinned {
    fn new(kvm: &Kvm) -> Result<Self> {
        let (vm, clock) = pinned_an_hour_ahead(kvm, VCPUS)?;
        let raw = clock_and_tsc(libc::CLOCK_MONOTONIC_RAW)?;
        Ok(Self { vm, clock, raw })
    }

    fn function(&self) -> Result<Function> {
        Function::of(&self.clock)
    }
}

/// A host after its TSC was marked unstable.
struct Host {
    kvm: Kvm,
    /// A VM that ran during the change, and one that has not run since.
    running: Pinned,
    stopped: Pinned,
    lagging: lagging::Stopped,
    /// Steps back that the running guest saw before, by vCPU: TSC, kvmclock.
    steps_back: Vec<[u64; 2]>,
}

impl Host {
    fn new() -> Result<Self> {
        let kvm = require::clock_guest()?;
        let clocksource = clocksource::current()?;
        if clocksource != "tsc" {
            return Err(Skip(format!("the host's clocksource is {clocksource}, not tsc")).into());
        }
        let at = ktap::option("at", "load".to_owned())?;
        let module = host_module::open("mark_tsc_unstable")?;

        let (running, stopped) = (Pinned::new(&kvm)?, Pinned::new(&kvm)?);
        let lagging = lagging::Stopped::new(&kvm)?;
        let steps_back = steps_back(&running.vm);
        let _run = observe::run(&running.vm)?;
        host_module::load(&module, &format!("at={at}")).context("mark_tsc_unstable")?;
        if at == "online" {
            ensure!(
                clocksource::current()? == "tsc",
                "the TSC was already marked before a CPU came online"
            );
            host_cpus()?[0].go_offline()?.come_back()?;
        }
        Ok(Self {
            kvm,
            running,
            stopped,
            lagging,
            steps_back,
        })
    }
}

fn main() -> ExitCode {
    let mut cases = vec![
        Case::new(
            "the host stops using its TSC as clocksource",
            clocksource_changes,
        ),
        Case::new(
            "a VM that has not run since: ENODATA, and pinned with FALLBACK",
            not_noticed,
        ),
        Case::new(
            "a VM that runs meanwhile: its clock continues",
            continues_running,
        ),
        Case::new("a VM that runs again: its clock continues", continues_later),
    ];
    cases.extend(lagging::cases());
    cases.extend(sets::cases());
    ktap::main(Host::new, cases)
}

fn steps_back(vm: &Vm) -> Vec<[u64; 2]> {
    (0..vm.vcpus().len())
        .map(|index| vm.view(index).backwards())
        .map(|seen| [seen.own_tsc, seen.own_kvmclock])
        .collect()
}

fn clocksource_changes(_: &Host) -> Result<()> {
    clocksource::wait_until_not_tsc()?;
    note!("the clocksource is {} now", clocksource::current()?);
    Ok(())
}

/// Fails unless all calls that need a stable TSC fail with `ENODATA` and change nothing.
fn ensure_no_data(vm: &Vm, clock: &VmClock) -> Result<()> {
    let before = (get_or_fall_back(vm)?.vcpus, pages(vm));
    ensure_errno(libc::ENODATA, get_vm_clock_guest(vm.fd()).map(drop)).context("GET")?;
    for mode in [MODE_EXACT, MODE_ADVANCE, MODE_FREEZE] {
        let mut clock = clock.clone();
        (clock.header.mode, clock.header.flags) = (mode, 0);
        ensure_errno(libc::ENODATA, set_vm_clock_guest(vm.fd(), &mut clock))
            .with_context(|| format!("SET, mode {mode}"))?;
    }
    for vcpu in vm.vcpus() {
        let (fd, record) = (vcpu.fd(), &clock.header.record);
        ensure_errno(libc::ENODATA, get_clock_guest(&fd).map(drop)).context("vCPU GET")?;
        ensure_errno(libc::ENODATA, set_clock_guest(&fd, record)).context("vCPU SET")?;
    }
    let after = (get_or_fall_back(vm)?.vcpus, pages(vm));
    ensure_eq_hex!(after, before, "offsets and records");
    Ok(())
}

/// GET reports that the record is still pinned, and that the host TSC is not stable.
fn not_noticed(host: &Host) -> Result<()> {
    let Pinned { vm, clock, .. } = &host.stopped;
    ensure_no_data(vm, clock)?;
    let now = get_or_fall_back(vm)?;
    let (observed, expected) = (
        (now.header.status, now.header.record, &now.vcpus),
        (STATUS_PINNED, clock.header.record, &clock.vcpus),
    );
    // The flags are not part of the function.
    let observed_record = function(observed.1);
    ensure!(
        observed_record == function(expected.1)
            && (observed.0, observed.2) == (expected.0, expected.2),
        "GET with FALLBACK reports {observed:x?}, expected {expected:x?}"
    );
    Ok(())
}

/// Fails unless KVM drops the record of `pinned` soon after its VM runs, and continues from its
/// value.
fn ensure_continues(pinned: &Pinned) -> Result<()> {
    wait_until("KVM drops the record", clocksource::PATIENCE, || {
        run_a_little(&pinned.vm)?;
        let status = get_or_fall_back(&pinned.vm)?.header.status;
        ensure!(
            status & STATUS_HOST_TSC_STABLE == 0,
            "GET reports that the host TSC is stable"
        );
        Ok(status & STATUS_PINNED == 0)
    })?;
    let continued = Continued::since(pinned.function()?, pinned.raw, TOLERANCE_NS)?;
    note!("the uncertainty is {} ns", continued.open_ns());
    continued.ensure_in_kvm(&pinned.vm)?;
    continued.ensure_read_by_guest(|| run_a_little(&pinned.vm))?;
    ensure_no_data(&pinned.vm, &pinned.clock)
}

fn continues_running(host: &Host) -> Result<()> {
    let vm = &host.running.vm;
    vm.stop()?;
    ensure_continues(&host.running)?;
    // Whenever KVM loads a vCPU, it reads TSC and raw clock one after the other. The time in
    // between shows in the guest's clock until the next load. That is KVM's, so it is only
    // reported.
    note!(
        "steps back of TSC and kvmclock by vCPU were {:?}, are {:?}",
        host.steps_back,
        steps_back(vm)
    );
    Ok(())
}

fn continues_later(host: &Host) -> Result<()> {
    ensure_continues(&host.stopped)
}
