// SPDX-License-Identifier: GPL-2.0-only

//! The guest's clock makes no step, with any result of the ioctl.

use crate::{pinned, Rate};
use kvm_clock_guest_selftests::{expect::ensure_reads, one_clock::ensure_one_clock, prelude::*};
use pvclock_reference::arithmetic::extended_kvmclock_ns;

/// The clock's age at the call of the ioctl, and the time that the guest continues: a function that
/// is wrong by 200 ppm then has an error of 0.2 ms.
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
        note!("KVM_SET_TSC_KHZ of vCPU {index}: {result:?}");
    }

    let data = get_clock(&vm)?;
    let expected = extended_kvmclock_ns(&record, transform.guest_tsc(HostTsc(data.host_tsc)));
    ensure_eq!(data.clock, expected, "KVM_GET_CLOCK, ns");
    for when in ["immediately", "later"] {
        let run = observe::run(&vm)?;
        vm.stop()?;
        let reading = run.finish(&vm, rdtsc_ordered())?;
        ensure_reads(&reading, &record, transform.offset).context(when)?;
        ensure_one_clock(&vm).context(when)?;
        sleep(AGE);
    }
    ensure_same_function(&vm, before.header.host_tsc, before.header.kvmclock_ns)
}

/// Fails unless kvmclock at the former anchor is unchanged.
fn ensure_same_function(vm: &Vm, host_tsc: HostTsc, expected: u64) -> Result<()> {
    let now = get(vm)?;
    let transform = vcpu_transform(&vm.vcpus()[0].fd())?;
    let ns = extended_kvmclock_ns(&now.header.record, transform.guest_tsc(host_tsc));
    ensure_eq!(ns, expected, "kvmclock at host TSC {host_tsc}, ns");
    Ok(())
}
