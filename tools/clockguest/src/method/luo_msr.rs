// SPDX-License-Identifier: GPL-2.0-only

//! What public patches do that preserve VMs over a live update: each vCPU's clocks at a moment of
//! its own.
//!
//! The patches do this inside the kernel, with the functions that these ioctls call: vCPU by vCPU
//! they read the MSRs, `MSR_IA32_TSC` among them, and `kvm_get_clock()`. The new kernel writes each
//! vCPU's MSRs, and the clock that was read for the first vCPU, with its flags.

use super::SavedClocks;
use crate::vmm::{
    error::Context,
    vm::{get_msr, set_msr, MSR_IA32_TSC},
    Result, Vm,
};
use kvm_bindings::kvm_clock_data;
use pvclock::counter::GuestTsc;
use serde::{Deserialize, Serialize};

/// The values of each vCPU, each read a little later than the one before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// In order of index.
    pub vcpus: Vec<SavedVcpu>,
}

/// The values of a vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedVcpu {
    /// `MSR_IA32_TSC`.
    pub tsc: GuestTsc,
    /// `KVM_GET_CLOCK`'s result.
    pub clock: kvm_clock_data,
}

impl SavedClocks for Saved {
    fn save(vm: &Vm) -> Result<Self> {
        let vcpus = vm.vcpus().iter().map(|vcpu| {
            Ok(SavedVcpu {
                tsc: GuestTsc(get_msr(&vcpu.fd(), MSR_IA32_TSC)?),
                clock: vm.fd().get_clock().context("KVM_GET_CLOCK")?,
            })
        });
        Ok(Self {
            vcpus: vcpus.collect::<Result<_>>()?,
        })
    }

    fn restore(&self, vm: &Vm) -> Result<()> {
        for (index, (vcpu, saved)) in vm.vcpus().iter().zip(&self.vcpus).enumerate() {
            set_msr(&vcpu.fd(), MSR_IA32_TSC, saved.tsc.0)?;
            if index == 0 {
                vm.fd().set_clock(&saved.clock).context("KVM_SET_CLOCK")?;
            }
        }
        Ok(())
    }
}
