// SPDX-License-Identifier: GPL-2.0-only

//! KVM_GET_CLOCK and every vCPU's pvclock page are one function of the host's TSC.

use crate::{clocks::pages, fixture::vcpu_transform};
use anyhow::{ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_bindings::KVM_CLOCK_HOST_TSC;

/// Fails unless `KVM_GET_CLOCK` of the stopped `vm`, whose clock is pinned, is what every vCPU's
/// page says at the same host TSC, to the ns.
///
/// # Errors
///
/// Says which vCPU's page says something else; those of the ioctls.
pub fn ensure_one_clock(vm: &Vm) -> Result<()> {
    let data = vm.fd().get_clock().context("KVM_GET_CLOCK")?;
    ensure!(
        data.flags & KVM_CLOCK_HOST_TSC != 0,
        "KVM_GET_CLOCK reports no host TSC: flags {:#x}",
        data.flags
    );
    for (vcpu, page) in vm.vcpus().iter().zip(pages(vm)) {
        let guest_tsc = vcpu_transform(&vcpu.fd())?.guest_tsc(data.host_tsc);
        let ns = page.kvmclock_ns(guest_tsc);
        ensure!(
            data.clock == ns,
            "vCPU {}'s page says {ns} ns at TSC {guest_tsc}, KVM_GET_CLOCK {} ns",
            vcpu.index(),
            data.clock
        );
    }
    Ok(())
}
