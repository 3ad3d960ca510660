// SPDX-License-Identifier: GPL-2.0-only

//! What holds of a vCPU that was just added.

use anyhow::{ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::VmClock;
use kvm_clock_guest_selftests::{
    clocks::{function, pages},
    fixture::{get, run_a_little, vcpu_transform},
    halting,
};
use kvm_ioctls::{Kvm, VcpuFd};
use pvclock::abi::STATUS_PINNED;

/// Fails unless a vCPU that is added to the stopped `vm` joins vCPU 0, before and after it and the
/// others run.
pub(crate) fn ensure_joins(kvm: &Kvm, vm: &Vm) -> Result<()> {
    let record = get(vm)?.header.record;
    let mut added = halting::add_vcpu(kvm, vm)?;
    ensure_joined(vm, &added).context("before its first KVM_RUN")?;

    let page = halting::record(vm, &mut added)?;
    ensure_joined(vm, &added).context("after its first KVM_RUN")?;
    run_a_little(vm)?;
    let after = ensure_joined(vm, &added).context("after the others ran")?;
    ensure!(
        function(after.header.record) == function(record),
        "GET reported {record:x?} before, reports {:x?} with the new vCPU",
        after.header.record
    );
    let expected = pages(vm)[0];
    ensure!(
        function(page) == function(expected),
        "the new vCPU reads {page:x?}, vCPU 0 {expected:x?}"
    );
    Ok(())
}

/// Fails unless the vCPU `added` has the TSC of vCPU 0, and GET reports it and the pinned clock.
fn ensure_joined(vm: &Vm, added: &VcpuFd) -> Result<VmClock> {
    let first = vcpu_transform(&vm.vcpus()[0].fd())?;
    let observed = vcpu_transform(added)?;
    ensure!(
        observed.scale == first.scale,
        "the new vCPU's ratio is {:#x}, vCPU 0's is {:#x}",
        observed.scale.ratio(),
        first.scale.ratio()
    );
    // CAST: the signed difference of values mod 2^64.
    let ahead = observed.offset.wrapping_sub(first.offset) as i64;
    ensure!(
        ahead == 0,
        "the new vCPU's TSC is {ahead} ticks ahead of vCPU 0's"
    );
    let clock = get(vm).context("with the new vCPU")?;
    ensure!(
        clock.header.status & STATUS_PINNED != 0,
        "GET does not report a pinned clock: status {:#x}",
        clock.header.status
    );
    let last = clock.vcpus.last().map(|vcpu| vcpu.tsc_offset);
    ensure!(
        clock.vcpus.len() == vm.vcpus().len() + 1 && last == Some(observed.offset),
        "GET reports {:x?}, the new vCPU's offset is {:#x}",
        clock.vcpus,
        observed.offset
    );
    Ok(clock)
}
