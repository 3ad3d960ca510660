// SPDX-License-Identifier: GPL-2.0-only

//! CPUs of the host go offline and come back while vCPUs run on them: a guest's clocks do not
//! change, and its readings continue. With `--rounds=N` each goes and comes back N times.

use kvm_clock_guest_selftests::{
    fixture::{at_another_rate, pinned_with},
    hotplug::{host_cpus, HostCpu},
    prelude::*,
    progress::Progress,
};

/// More than the test host has CPUs, so that some always use the one that goes.
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

    /// Takes each CPU offline and back, `rounds` times, and calls `check` in both states.
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
            Case::new("vCPUs run on CPUs that go and come back", running),
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

/// A stopped VM with a record at another rate, which KVM never derives.
fn pinned(kvm: &Kvm) -> Result<Vm> {
    Ok(pinned_with(kvm, VCPUS, at_another_rate)?.0)
}

/// Fails unless GET returns the same clocks as `before`.
fn ensure_same(vm: &Vm, before: &VmClock) -> Result<()> {
    let now = get(vm)?;
    let compared = |clock: &VmClock| {
        (
            clock.header.status,
            clock.header.record,
            clock.vcpus.clone(),
        )
    };
    ensure_eq_hex!(compared(&now), compared(before), "GET");
    Ok(())
}

fn running(host: &Host) -> Result<()> {
    /// Readings of each vCPU that show that it continues.
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
    note!(
        "{} rounds of {:?}, readings by vCPU {:?}",
        host.rounds,
        host.cpus,
        Progress::of(&vm).since(&start)
    );
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

/// Each update of the master clock derives a new record, but its rate does not change.
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
            "GET reported {clock:x?}, reports {now:x?}"
        );
        Ok(())
    })?;
    vm.stop()?;
    run.finish(&vm, rdtsc_ordered())?;
    start.ensure_none_went_back(&vm, true)
}
