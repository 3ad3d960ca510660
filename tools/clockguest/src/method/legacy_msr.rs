// SPDX-License-Identifier: GPL-2.0-only

//! QEMU's procedure: `MSR_IA32_TSC` per vCPU, and the value of kvmclock.
//!
//! See `hw/i386/kvm/clock.c` and `target/i386/kvm/kvm.c` in QEMU. `stop` reads the TSC of each vCPU
//! and then the clock. `cont` writes the clock and leaves the TSC, which has continued to count. A
//! new VM gets both, the TSC first.

use super::SavedClocks;
use crate::vmm::{
    error::Context,
    vm::{get_msr, set_msr, MSR_IA32_TSC},
    Result, Vm,
};
use kvm_bindings::kvm_clock_data;
use pvclock::counter::GuestTsc;
use serde::{Deserialize, Serialize};

/// The saved values, each read a little later than the one before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// `MSR_IA32_TSC` of each vCPU.
    pub tsc: Vec<GuestTsc>,
    /// `KVM_GET_CLOCK`'s value, ns.
    pub clock_ns: u64,
}

impl SavedClocks for Saved {
    fn save(vm: &Vm) -> Result<Self> {
        let tsc = vm
            .vcpus()
            .iter()
            .map(|vcpu| get_msr(&vcpu.fd(), MSR_IA32_TSC).map(GuestTsc))
            .collect::<Result<_>>()?;
        let clock = vm.fd().get_clock().context("KVM_GET_CLOCK")?;
        Ok(Self {
            tsc,
            clock_ns: clock.clock,
        })
    }

    fn restore(&self, vm: &Vm) -> Result<()> {
        for (vcpu, &tsc) in vm.vcpus().iter().zip(&self.tsc) {
            set_msr(&vcpu.fd(), MSR_IA32_TSC, tsc.0)?;
        }
        self.resume(vm)
    }

    fn resume(&self, vm: &Vm) -> Result<()> {
        let clock = kvm_clock_data {
            clock: self.clock_ns,
            ..kvm_clock_data::default()
        };
        vm.fd().set_clock(&clock).context("KVM_SET_CLOCK")?;
        for vcpu in vm.vcpus() {
            vcpu.fd().kvmclock_ctrl().context("KVM_KVMCLOCK_CTRL")?;
        }
        Ok(())
    }
}
