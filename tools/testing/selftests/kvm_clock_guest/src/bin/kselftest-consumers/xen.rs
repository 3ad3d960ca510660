// SPDX-License-Identifier: GPL-2.0-only

//! Xen's copies of the record, and of the wall clock.

use crate::{kvmclock::ensure_epoch, state::Pinned, Consumer};
use kvm_clock_guest_selftests::{
    prelude::*,
    snippet::record_at,
    xen::{
        enable, set_shared_info, set_vcpu_info, set_vcpu_time_info, SHARED_INFO_WALL_CLOCK,
        VCPU_INFO_TIME,
    },
};

pub(crate) const TIME_INFO: Consumer = Consumer {
    name: "Xen's vcpu_info and vcpu_time_info",
    enable: enable_time_info,
    check: time_info,
};

pub(crate) const WALL_CLOCK: Consumer = Consumer {
    name: "Xen's wall clock",
    enable: |vm| enable(vm.fd()),
    check: |vm, pinned| {
        let write = || set_shared_info(vm.fd(), SHARED_INFO);
        ensure_epoch(vm, pinned, SHARED_INFO + SHARED_INFO_WALL_CLOCK, write)
    },
};

// In pages that `clockguest::guest::layout` leaves free.
const VCPU_INFOS: u64 = 0x6000;
const VCPU_STRIDE: u64 = 128;
const TIME_INFO_OFFSET: u64 = 64;
const SHARED_INFO: u64 = 0x7000;

fn vcpu_info(index: usize) -> u64 {
    VCPU_INFOS + index as u64 * VCPU_STRIDE
}

/// Enables valid records, which SET must renew.
fn enable_time_info(vm: &Vm) -> Result<()> {
    enable(vm.fd())?;
    for vcpu in vm.vcpus() {
        let gpa = vcpu_info(vcpu.index());
        set_vcpu_info(&vcpu.fd(), gpa)?;
        set_vcpu_time_info(&vcpu.fd(), gpa + TIME_INFO_OFFSET)?;
    }
    run_a_little(vm)?;
    for (name, record) in vm.vcpus().iter().flat_map(|vcpu| records(vm, vcpu.index())) {
        ensure!(record.version != 0, "KVM wrote no record to {name}");
    }
    Ok(())
}

/// Both are, except for version and flags, the guest's pvclock record and the pinned record.
fn time_info(vm: &Vm, pinned: &Pinned) -> Result<()> {
    run_a_little(vm)?;
    for (index, &ahead) in pinned.ahead.iter().enumerate() {
        // CAST: mod 2^64, as TSC values are.
        let expected = function(pinned.record.shifted_by(ahead as u64));
        let page = function(vm.view(index).pvclock());
        ensure_eq_hex!(page, expected, "vCPU {index}'s page");
        for (name, record) in records(vm, index) {
            let observed = function(record);
            ensure_eq_hex!(observed, expected, "vCPU {index}'s {name}");
        }
    }
    Ok(())
}

fn records(vm: &Vm, index: usize) -> [(&'static str, ClockGuest); 2] {
    let gpa = vcpu_info(index);
    [
        ("vcpu_info", record_at(vm, gpa + VCPU_INFO_TIME)),
        ("vcpu_time_info", record_at(vm, gpa + TIME_INFO_OFFSET)),
    ]
}
