// SPDX-License-Identifier: GPL-2.0-only

//! KVM_GET_CLOCK and every vCPU's pvclock page are one function of the host's TSC.

use crate::{clocks::pages, ensure_eq, expect::get_clock_and_host_tsc, fixture::vcpu_transform};
use anyhow::Result;
use clockguest::vmm::Vm;
use pvclock::counter::HostTsc;

/// Fails unless `KVM_GET_CLOCK` of the stopped `vm`, whose clock is pinned, is the value of every
/// vCPU's page at the same host TSC, to the ns.
pub fn ensure_one_clock(vm: &Vm) -> Result<()> {
    let data = get_clock_and_host_tsc(vm)?;
    for (vcpu, page) in vm.vcpus().iter().zip(pages(vm)) {
        let index = vcpu.index();
        let ns = page.kvmclock_ns(vcpu_transform(&vcpu.fd())?.guest_tsc(HostTsc(data.host_tsc)));
        ensure_eq!(data.clock, ns, "KVM_GET_CLOCK by vCPU {index}'s page, ns");
    }
    Ok(())
}
