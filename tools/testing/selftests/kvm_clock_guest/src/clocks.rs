// SPDX-License-Identifier: GPL-2.0-only

//! All that can be seen of the clocks of a stopped VM, to be compared before and after.

use crate::fixture::run_a_little;
use anyhow::{
    ensure,
    Context,
    Result, //
};
use clockguest::vmm::{
    ioctl::get_vm_clock_guest,
    Vm, //
};
use pvclock::abi::{
    ClockGuest,
    STATUS_KEPT, //
};

/// TSC offsets, the record as KVM reports it, and the records as the guest has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// `KVM_VCPU_TSC_OFFSET` of every vCPU, ticks.
    pub offsets: Vec<u64>,
    /// The pvclock page of every vCPU, `version` cleared; all 0 before KVM wrote it.
    pub pages: Vec<ClockGuest>,
    /// The record of `KVM_GET_VM_CLOCK_GUEST`.
    pub record: ClockGuest,
    /// Whether that record is kept.
    pub kept: bool,
}

impl Clocks {
    /// Looks at the stopped `vm`.
    ///
    /// # Errors
    ///
    /// Those of the ioctls.
    pub fn of(vm: &Vm) -> Result<Self> {
        let clock = get_vm_clock_guest(vm.fd()).context("KVM_GET_VM_CLOCK_GUEST")?;
        Ok(Self {
            offsets: vm.tsc_offsets()?,
            pages: pages(vm),
            record: clock.header.record,
            kept: clock.header.status & STATUS_KEPT != 0,
        })
    }

    /// Fails unless the clocks of the stopped `vm` still are these, and remain so when it runs, so
    /// that no request to update them is pending either.
    ///
    /// # Errors
    ///
    /// Says what differs.
    pub fn ensure_unchanged(&self, vm: &Vm) -> Result<()> {
        self.ensure_is(&Self::of(vm)?, "now")?;
        run_a_little(vm)?;
        self.ensure_is(&Self::of(vm)?, "after the guest ran")
    }

    /// Fails unless `other`, seen at `when`, is the same to the bit.
    ///
    /// # Errors
    ///
    /// Says what differs.
    pub fn ensure_is(&self, other: &Self, when: &str) -> Result<()> {
        ensure!(
            self == other,
            "clocks differ {when}:\nexpected {self:x?}\nobserved {other:x?}"
        );
        Ok(())
    }
}

/// The records as the guest has them, `version` cleared.
pub fn pages(vm: &Vm) -> Vec<ClockGuest> {
    vm.vcpus()
        .iter()
        .map(|vcpu| without_version(vm.view(vcpu.index()).pvclock()))
        .collect()
}

/// The record but for `version`, which counts KVM's updates.
pub fn without_version(record: ClockGuest) -> ClockGuest {
    ClockGuest {
        version: 0,
        ..record
    }
}

/// The record but for `version` and `flags`: kvmclock as a function of TSC, whoever vouches for it.
pub fn function(record: ClockGuest) -> ClockGuest {
    ClockGuest {
        flags: 0,
        ..without_version(record)
    }
}
