// SPDX-License-Identifier: GPL-2.0-only

//! Whatever the ioctl returns, the guest's clock makes no step.

use crate::{pinned, Rate};
use anyhow::{ensure, Context, Result};
use clockguest::{host::rdtsc_ordered, observe, vmm::Vm};
use kvm_clock_guest_selftests::{
    clocks::{function, pages},
    expect::{ensure_reads, kvmclock_ns},
    fixture::{get, vcpu_transform},
    ktap::{note, Case},
    one_clock::ensure_one_clock,
};
use kvm_ioctls::Kvm;
use std::{thread::sleep, time::Duration};

/// The clock's age when the ioctl is called, and how long the guest goes on: a function that is
/// wrong by 200 ppm is off by 0.2 ms then.
const AGE: Duration = Duration::from_secs(1);

pub(crate) fn cases(start: Rate, others: &[Rate]) -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for &other in others {
        for (which, vcpus) in [("vCPU 0", &[0][..]), ("all vCPUs", &[0, 1])] {
            cases.push(Case::new(
                format!(
                    "the guest's clock makes no step: {} on {which}, {}",
                    other.name, start.name
                ),
                move |kvm| no_step(kvm, start, other, vcpus),
            ));
        }
    }
    cases
}

fn no_step(kvm: &Kvm, start: Rate, other: Rate, vcpus: &[usize]) -> Result<()> {
    let vm = pinned(kvm, start)?;
    sleep(AGE);
    let before = get(&vm)?;
    let record = function(pages(&vm)[0]);
    let transform = vcpu_transform(&vm.vcpus()[0].fd())?;
    for &index in vcpus {
        let fd = vm.vcpus()[index].fd();
        let khz = other.of(fd.get_tsc_khz()?)?;
        let result = fd.set_tsc_khz(khz);
        note(&format!("KVM_SET_TSC_KHZ of vCPU {index}: {result:?}"));
    }

    let data = vm.fd().get_clock().context("KVM_GET_CLOCK")?;
    let due = kvmclock_ns(&record, transform.guest_tsc(data.host_tsc));
    ensure!(
        data.clock == due,
        "KVM_GET_CLOCK says {} ns, it was {due} ns by the clock of before",
        data.clock
    );
    for when in ["at once", "later"] {
        let run = observe::run(&vm)?;
        vm.stop()?;
        let reading = run.finish(&vm, rdtsc_ordered())?;
        ensure_reads(&reading, &record, transform.offset).context(when)?;
        ensure_one_clock(&vm).context(when)?;
        sleep(AGE);
    }
    ensure_same_function(&vm, before.header.host_tsc, before.header.kvmclock_ns)
}

/// At the anchor of before, kvmclock is what it was.
fn ensure_same_function(vm: &Vm, host_tsc: u64, due: u64) -> Result<()> {
    let now = get(vm)?;
    let transform = vcpu_transform(&vm.vcpus()[0].fd())?;
    let ns = kvmclock_ns(&now.header.record, transform.guest_tsc(host_tsc));
    ensure!(
        ns == due,
        "at host TSC {host_tsc} kvmclock was {due} ns, by GET it was {ns} ns"
    );
    Ok(())
}
