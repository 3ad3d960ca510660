// SPDX-License-Identifier: GPL-2.0-only

//! All that can be seen of the clocks of a stopped VM, to be compared before and after.

use crate::fixture::{reference_transform, run_a_little};
use anyhow::{ensure, Context, Result};
use clockguest::{
    measure::{compare, ClockError, RawTransform, Reading, VcpuReading},
    vmm::Vm,
};
use kvm_bindings::KVM_CLOCK_HOST_TSC;
use kvm_clock::{get_vm_clock_guest, VmClock};
use pvclock::abi::{ClockGuest, STATUS_PINNED};

/// TSC offsets, the record as KVM reports it, the records as the guest has them, and
/// `KVM_GET_CLOCK`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// `KVM_VCPU_TSC_OFFSET` of every vCPU, ticks.
    pub offsets: Vec<u64>,
    /// The pvclock page of every vCPU, `version` cleared; all 0 before KVM wrote it.
    pub pages: Vec<ClockGuest>,
    /// The record of `KVM_GET_VM_CLOCK_GUEST`.
    pub record: ClockGuest,
    /// Whether that record is pinned.
    pub pinned: bool,
    /// `KVM_GET_CLOCK` minus what that record says at the same host TSC, ns.
    pub clock_diff_ns: Option<i64>,
}

impl Clocks {
    /// Looks at the stopped `vm`.
    ///
    /// # Errors
    ///
    /// Those of the ioctls; if a record is pinned, but `KVM_GET_CLOCK` says anything else.
    pub fn of(vm: &Vm) -> Result<Self> {
        let clock = get_vm_clock_guest(vm.fd()).context("KVM_GET_VM_CLOCK_GUEST")?;
        let pinned = clock.header.status & STATUS_PINNED != 0;
        let clock_diff_ns = clock_diff_ns(vm, &clock)?;
        ensure!(
            !pinned || clock_diff_ns == Some(0),
            "KVM_GET_CLOCK minus the pinned record is {clock_diff_ns:?} ns"
        );
        Ok(Self {
            offsets: vm.tsc_offsets()?,
            pages: pages(vm),
            record: clock.header.record,
            pinned,
            clock_diff_ns,
        })
    }

    /// Fails unless the clocks of the stopped `vm` still are these, and remain so when it runs, so
    /// that no request to update them is pending either; and unless the guest reads what these say.
    ///
    /// # Errors
    ///
    /// Says what differs.
    pub fn ensure_unchanged(&self, vm: &Vm) -> Result<()> {
        self.ensure_is(&Self::of(vm)?, "now")?;
        let reading = run_a_little(vm)?;
        self.ensure_is(&Self::of(vm)?, "after the guest ran")?;
        self.ensure_reads(&reading)
    }

    /// Fails unless every reading that the guest made is, to the tick and the ns, what these clocks
    /// say at its host TSC.
    ///
    /// # Errors
    ///
    /// Says how far off the guest is.
    pub fn ensure_reads(&self, reading: &Reading) -> Result<()> {
        let observed = reading.vcpus.iter().zip(&self.offsets).zip(&self.pages);
        let before = Reading {
            vcpus: observed
                .map(|((vcpu, &offset), &record)| VcpuReading {
                    tsc: RawTransform { offset, ..vcpu.tsc },
                    record,
                    ..vcpu.clone()
                })
                .collect(),
            ..reading.clone()
        };
        let error = compare(&before, reading)?.error;
        ensure!(
            error == ClockError::default(),
            "the guest's clocks are off: {error:?}"
        );
        Ok(())
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

/// `KVM_GET_CLOCK` of the stopped `vm` minus what the record of `clock` says at the same host TSC,
/// ns.
///
/// `None` if KVM told no host TSC; or if it derives its clock from the host's TSC, with a factor
/// for the host's rate, and the guest's record from the guest's scaled one.
fn clock_diff_ns(vm: &Vm, clock: &VmClock) -> Result<Option<i64>> {
    let data = vm.fd().get_clock().context("KVM_GET_CLOCK")?;
    let transform = reference_transform(clock)?;
    let is_pinned = clock.header.status & STATUS_PINNED != 0;
    if data.flags & KVM_CLOCK_HOST_TSC == 0 || !(is_pinned || transform.scale.is_identity()) {
        return Ok(None);
    }
    let expected = clock
        .header
        .record
        .kvmclock_ns(transform.guest_tsc(data.host_tsc));
    // CAST: The signed difference of values mod 2^64.
    Ok(Some(data.clock.wrapping_sub(expected) as i64))
}

/// The records as the guest has them, `version` cleared.
pub fn pages(vm: &Vm) -> Vec<ClockGuest> {
    vm.vcpus()
        .iter()
        .map(|vcpu| without_version(vm.view(vcpu.index()).pvclock()))
        .collect()
}

/// `version` of every vCPU's record: it changes whenever KVM writes the record, even with the same
/// bits.
pub fn versions(vm: &Vm) -> Vec<u32> {
    vm.vcpus()
        .iter()
        .map(|vcpu| vm.view(vcpu.index()).pvclock().version)
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
