// SPDX-License-Identifier: GPL-2.0-only

//! CPUs of the host go offline and come back, with vCPUs running on them: nothing of a guest's
//! clocks changes, and its readings go on. `--rounds=N` has each go and come N times.

use anyhow::{ensure, Context, Result};
use clockguest::{host::rdtsc_ordered, observe, vmm::Vm};
use kvm_clock::VmClock;
use kvm_clock_guest_selftests::{
    clocks::Clocks,
    fixture::{at_another_rate, derived, get, run_a_little, set},
    flat_out::Progress,
    hotplug::{host_cpus, HostCpu},
    ktap::{self, note, Case},
    require,
};
use kvm_ioctls::Kvm;
use pvclock::abi::MODE_EXACT;
use std::process::ExitCode;

/// More than the test host has CPUs, so that some are always on the one that goes.
const VCPUS: u32 = 4;

/// What the cases need.
struct Host {
    kvm: Kvm,
    /// CPUs that can go offline.
    cpus: Vec<HostCpu>,
    rounds: u32,
}

impl Host {
    fn new() -> Result<Self> {
        let kvm = require::clock_guest()?;
        let cpus = host_cpus()?;
        let rounds = ktap::option("rounds", 5)?;
        Ok(Self { kvm, cpus, rounds })
    }

    /// Has each CPU go and come, as often as asked for; `check` looks at each that is gone, and
    /// that is back.
    fn for_each_round(&self, check: impl Fn() -> Result<()>) -> Result<()> {
        for round in 0..self.rounds {
            for cpu in &self.cpus {
                let context = || format!("round {round}, {cpu:?}");
                let gone = cpu.go_offline().with_context(context)?;
                check().with_context(context).context("CPU offline")?;
                gone.come_back().with_context(context)?;
                check().with_context(context).context("CPU back")?;
            }
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    ktap::main(
        Host::new,
        vec![
            Case::new("vCPUs run on CPUs that go and come", running),
            Case::new("stopped vCPUs", stopped),
            Case::new(
                "SET while a CPU is offline, GET when it is back",
                set_meanwhile,
            ),
            Case::new(
                "a VM whose clock is not pinned keeps its master clock",
                unpinned,
            ),
        ],
    )
}

/// A stopped VM with a record at another rate: no clock of KVM's own making.
fn pinned(kvm: &Kvm) -> Result<Vm> {
    let vm = derived(kvm, VCPUS)?;
    set(&vm, &mut at_another_rate(get(&vm)?), MODE_EXACT)?;
    run_a_little(&vm)?;
    Ok(vm)
}

/// Fails unless GET returns the same clocks as `before`.
fn ensure_same(vm: &Vm, before: &VmClock) -> Result<()> {
    let now = get(vm)?;
    let told = |clock: &VmClock| {
        (
            clock.header.status,
            clock.header.record,
            clock.vcpus.clone(),
        )
    };
    ensure!(
        told(&now) == told(before),
        "GET told {:x?}, tells {:x?}",
        told(before),
        told(&now)
    );
    Ok(())
}

fn running(host: &Host) -> Result<()> {
    /// Readings of each vCPU that show that it goes on.
    const READINGS: u64 = 2;

    let vm = pinned(&host.kvm)?;
    let (before, clock, start) = (Clocks::of(&vm)?, get(&vm)?, Progress::of(&vm));
    let run = observe::run(&vm)?;
    host.cpus.iter().try_for_each(|cpu| cpu.wait_for_vcpu())?;
    host.for_each_round(|| {
        ensure_same(&vm, &clock)?;
        Progress::of(&vm).wait(&vm, READINGS)
    })?;
    vm.stop()?;
    before.ensure_reads(&run.finish(&vm, rdtsc_ordered())?)?;
    start.ensure_none_went_back(&vm, true)?;
    note(&format!(
        "{} rounds of {:?}, readings by vCPU {:?}",
        host.rounds,
        host.cpus,
        Progress::of(&vm).since(&start)
    ));
    before.ensure_unchanged(&vm)
}

fn stopped(host: &Host) -> Result<()> {
    let vm = pinned(&host.kvm)?;
    let (before, clock) = (Clocks::of(&vm)?, get(&vm)?);
    host.for_each_round(|| ensure_same(&vm, &clock))?;
    before.ensure_unchanged(&vm)
}

fn set_meanwhile(host: &Host) -> Result<()> {
    let cpu = host.cpus[0];
    let gone = cpu.go_offline()?;
    let vm = pinned(&host.kvm)?;
    let (before, mut clock) = (Clocks::of(&vm)?, get(&vm)?);
    gone.come_back()?;
    ensure_same(&vm, &clock)?;
    let gone = cpu.go_offline()?;
    set(&vm, &mut clock, MODE_EXACT)?;
    gone.come_back()?;
    before.ensure_unchanged(&vm)
}

/// The record is derived anew with each update of the master clock, but there is one, of this rate.
fn unpinned(host: &Host) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let (clock, start) = (get(&vm)?, Progress::of(&vm));
    let run = observe::run(&vm)?;
    host.for_each_round(|| {
        let now = get(&vm)?;
        let factor = |clock: &VmClock| {
            let record = clock.header.record;
            (record.tsc_to_system_mul, record.tsc_shift, record.flags)
        };
        ensure!(
            factor(&now) == factor(&clock) && now.vcpus == clock.vcpus,
            "GET told {clock:x?}, tells {now:x?}"
        );
        Ok(())
    })?;
    vm.stop()?;
    run.finish(&vm, rdtsc_ordered())?;
    start.ensure_none_went_back(&vm, true)
}
