// SPDX-License-Identifier: GPL-2.0-only

//! A host that finds its TSC unstable while guests run: `ENODATA`, kvmclock goes on from where it
//! was, and FALLBACK does what is still possible.
//!
//! The host has no usable TSC from then on until it is rebooted, so this is not one of the programs
//! that are run one after the other, but by `tools/vm/run --allow`. With `--at=online` the host
//! finds out as one of its CPUs comes back.
//!
//! KVM keeps guests' TSCs going by hand on such a host: whenever a vCPU is loaded, be it for an
//! ioctl, its offset is made anew. Where offsets matter they are told by GET here, which loads no
//! vCPU.

mod lagging;
mod sets;

use anyhow::{ensure, Context, Result};
use clockguest::{observe, vmm::Vm};
use kvm_clock::{
    get_clock_guest, get_vm_clock_guest, get_vm_clock_guest_or_fall_back, set_clock_guest,
    set_vm_clock_guest, VmClock,
};
use kvm_clock_guest_selftests::{
    clocks::{function, pages},
    clocksource,
    continued::{Continued, Function, Paired},
    fixture::{an_hour_ahead, get, pinned, reference_transform, run_a_little, set},
    host_module,
    hotplug::host_cpus,
    ktap::{self, note, Case, Skip},
    refusal::ensure_errno,
    require,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{MODE_ADVANCE, MODE_EXACT, MODE_FREEZE, STATUS_HOST_TSC_STABLE, STATUS_PINNED};
use std::{
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

const VCPUS: u32 = 2;
/// How long the kernel may take to act on what it found out.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long against what KVM takes to read its two clocks, the emulated host being interrupted in
/// between, and short against the hour by which all other clocks are off.
const TOLERANCE_NS: u32 = 100_000_000;

/// A VM with a pinned record an hour ahead, and when and what it was.
struct Pinned {
    vm: Vm,
    clock: VmClock,
    raw: Paired,
}

impl Pinned {
    fn new(kvm: &Kvm) -> Result<Self> {
        let vm = pinned(kvm, VCPUS)?;
        let mut clock = an_hour_ahead(get(&vm)?);
        set(&vm, &mut clock, MODE_EXACT)?;
        run_a_little(&vm)?;
        let raw = Paired::now(libc::CLOCK_MONOTONIC_RAW)?;
        Ok(Self { vm, clock, raw })
    }

    fn function(&self) -> Result<Function> {
        Ok(Function {
            record: self.clock.header.record,
            transform: reference_transform(&self.clock)?,
        })
    }
}

/// A host whose TSC was just marked unstable.
struct Host {
    kvm: Kvm,
    /// One that was running meanwhile, and one that did not run since.
    running: Pinned,
    stopped: Pinned,
    lagging: lagging::Stopped,
    /// Steps back that the running guest had seen before, by vCPU: TSC, kvmclock.
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
            ensure!(clocksource::current()? == "tsc", "not by a CPU that comes");
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
            "a VM that did not run since: refused, and pinned with FALLBACK",
            not_noticed,
        ),
        Case::new(
            "a VM that runs meanwhile: its clock goes on",
            goes_on_running,
        ),
        Case::new("a VM that runs again: its clock goes on", goes_on_later),
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

fn get_or_fall_back(vm: &Vm) -> Result<VmClock> {
    get_vm_clock_guest_or_fall_back(vm.fd()).context("KVM_GET_VM_CLOCK_GUEST with FALLBACK")
}

fn clocksource_changes(_: &Host) -> Result<()> {
    let start = Instant::now();
    while clocksource::current()? == "tsc" {
        ensure!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}");
        sleep(Duration::from_millis(10));
    }
    note(&format!("it is {} now", clocksource::current()?));
    Ok(())
}

/// All that needs a TSC fit for it.
fn ensure_no_data(vm: &Vm, clock: &VmClock) -> Result<()> {
    let before = (get_or_fall_back(vm)?.vcpus, pages(vm));
    ensure_errno(libc::ENODATA, get_vm_clock_guest(vm.fd()).map(|_| ())).context("GET")?;
    for mode in [MODE_EXACT, MODE_ADVANCE, MODE_FREEZE] {
        let mut clock = clock.clone();
        (clock.header.mode, clock.header.flags) = (mode, 0);
        ensure_errno(libc::ENODATA, set_vm_clock_guest(vm.fd(), &mut clock))
            .with_context(|| format!("SET, mode {mode}"))?;
    }
    for vcpu in vm.vcpus() {
        let (fd, record) = (vcpu.fd(), &clock.header.record);
        ensure_errno(libc::ENODATA, get_clock_guest(&fd).map(|_| ())).context("vCPU GET")?;
        ensure_errno(libc::ENODATA, set_clock_guest(&fd, record)).context("vCPU SET")?;
    }
    let after = (get_or_fall_back(vm)?.vcpus, pages(vm));
    ensure!(
        before == after,
        "offsets and records were {before:x?}, are {after:x?}"
    );
    Ok(())
}

/// GET says that the record is pinned still, and that the TSC cannot carry it.
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
        "GET with FALLBACK tells {observed:x?}, expected {expected:x?}"
    );
    Ok(())
}

/// Fails unless KVM drops the record of `pinned` soon, as its VM runs, and goes on from its value.
fn ensure_goes_on(pinned: &Pinned) -> Result<()> {
    let start = Instant::now();
    loop {
        run_a_little(&pinned.vm)?;
        let status = get_or_fall_back(&pinned.vm)?.header.status;
        ensure!(
            status & STATUS_HOST_TSC_STABLE == 0,
            "the host TSC is said to be fit"
        );
        if status & STATUS_PINNED == 0 {
            break;
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "still pinned after {PATIENCE:?}"
        );
    }
    let continued = Continued::since(pinned.function()?, pinned.raw, TOLERANCE_NS)?;
    note(&format!(
        "the host's clocks leave {} ns open",
        continued.open_ns()
    ));
    continued.ensure_told_by_kvm(&pinned.vm)?;
    continued.ensure_read_by_guest(|| run_a_little(&pinned.vm))?;
    ensure_no_data(&pinned.vm, &pinned.clock)
}

fn goes_on_running(host: &Host) -> Result<()> {
    let vm = &host.running.vm;
    vm.stop()?;
    ensure_goes_on(&host.running)?;
    // Whenever a vCPU is loaded KVM reads TSC and raw clock one after the other, and what passes in
    // between shows in the guest's clock until the next time: no matter of ours, but good to know.
    note(&format!(
        "steps back of TSC and kvmclock by vCPU were {:?}, are {:?}",
        host.steps_back,
        steps_back(vm)
    ));
    Ok(())
}

fn goes_on_later(host: &Host) -> Result<()> {
    ensure_goes_on(&host.stopped)
}
