// SPDX-License-Identifier: GPL-2.0-only

//! All visible clocks of a stopped VM, to compare before and after.

use crate::{
    ensure_eq,
    fixture::{get, get_clock, reference_transform, run_a_little},
};
use anyhow::{ensure, Result};
use clockguest::{
    measure::{compare, ClockError, RawTransform, Reading, VcpuReading},
    vmm::Vm,
};
use kvm_bindings::KVM_CLOCK_HOST_TSC;
use kvm_clock::VmClock;
use pvclock::{
    abi::{ClockGuest, STATUS_PINNED},
    counter::{HostTsc, TscOffset},
};

/// Record flag: KVM stopped the guest.
pub const PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;

/// TSC offsets, the record as KVM reports it, the records as the guest has them, and
/// `KVM_GET_CLOCK`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// `KVM_VCPU_TSC_OFFSET` of every vCPU.
    pub offsets: Vec<TscOffset>,
    /// The pvclock page of every vCPU, `version` cleared; all 0 before KVM wrote it.
    pub pages: Vec<ClockGuest>,
    /// The record of `KVM_GET_VM_CLOCK_GUEST`.
    pub record: ClockGuest,
    /// Whether that record is pinned.
    pub pinned: bool,
    /// `KVM_GET_CLOCK` minus kvmclock by that record at the same host TSC, ns.
    pub clock_diff_ns: Option<i64>,
}

impl Clocks {
    /// The clocks of the stopped `vm`. Fails if the clock is pinned, and `KVM_GET_CLOCK` differs.
    pub fn of(vm: &Vm) -> Result<Self> {
        let clock = get(vm)?;
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

    /// The same clocks, pinned.
    pub fn as_pinned(&self) -> Self {
        Self {
            pinned: true,
            ..self.clone()
        }
    }

    /// Clocks that are pinned to `record`, and have these TSC `offsets`.
    pub fn pinned_to(record: ClockGuest, offsets: Vec<TscOffset>) -> Self {
        Self {
            pages: vec![record; offsets.len()],
            offsets,
            record,
            pinned: true,
            clock_diff_ns: Some(0),
        }
    }

    /// The same with all TSCs moved as far as the first vCPU's is in `now`, pinned to `record`.
    pub fn moved_to(&self, now: &Self, record: ClockGuest) -> Self {
        let shift = now.offsets[0].since(self.offsets[0]);
        let offsets = self.offsets.iter();
        let offsets = offsets.map(|offset| offset.wrapping_add(shift)).collect();
        Self::pinned_to(record, offsets)
    }

    /// Fails unless the clock is pinned, and every vCPU's record is the same function as `record`.
    pub fn ensure_pinned_to(&self, record: ClockGuest) -> Result<()> {
        let record = function(record);
        ensure!(
            self.pinned
                && function(self.record) == record
                && self.pages.iter().all(|&page| function(page) == record),
            "SET was {record:x?}, clocks are {self:x?}"
        );
        Ok(())
    }

    /// Fails unless the clocks of the stopped `vm` are these, stay so when it runs, so that no
    /// request to update them is pending, and are what the guest reads.
    pub fn ensure_unchanged(&self, vm: &Vm) -> Result<()> {
        self.ensure_is(&Self::of(vm)?, "immediately")?;
        let reading = run_a_little(vm)?;
        self.ensure_is(&Self::of(vm)?, "after the guest ran")?;
        self.ensure_reads(&reading)
    }

    /// Fails unless every reading of the guest is, to the tick and the ns, the value of these
    /// clocks at its host TSC.
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
        ensure_eq!(error, ClockError::default(), "error of the guest's clocks");
        Ok(())
    }

    /// Fails unless `other`, as of `when`, is bit-identical.
    pub fn ensure_is(&self, other: &Self, when: &str) -> Result<()> {
        ensure!(
            self == other,
            "clocks differ {when}:\nexpected {self:x?}\nactual   {other:x?}"
        );
        Ok(())
    }
}

/// `KVM_GET_CLOCK` of the stopped `vm` minus the value of `clock`'s record at the same host TSC,
/// ns.
///
/// `None` if KVM reports no host TSC; or if it derives its clock from the host TSC, with a factor
/// for the host's rate, and the guest's record from the scaled TSC.
pub fn clock_diff_ns(vm: &Vm, clock: &VmClock) -> Result<Option<i64>> {
    let data = get_clock(vm)?;
    let transform = reference_transform(clock)?;
    let is_pinned = clock.header.status & STATUS_PINNED != 0;
    if data.flags & KVM_CLOCK_HOST_TSC == 0 || !(is_pinned || transform.scale.is_identity()) {
        return Ok(None);
    }
    let expected = clock
        .header
        .record
        .kvmclock_ns(transform.guest_tsc(HostTsc(data.host_tsc)));
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

/// The record without `version`, which counts KVM's updates.
pub fn without_version(record: ClockGuest) -> ClockGuest {
    ClockGuest {
        version: 0,
        ..record
    }
}

/// The record without `version` and `flags`: kvmclock as a function of the TSC.
pub fn function(record: ClockGuest) -> ClockGuest {
    ClockGuest {
        flags: 0,
        ..without_version(record)
    }
}
