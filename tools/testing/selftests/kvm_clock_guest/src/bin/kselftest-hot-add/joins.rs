// SPDX-License-Identifier: GPL-2.0-only

//! The expected clocks of a vCPU that was just added.

use kvm_clock_guest_selftests::{prelude::*, snippet};

/// Fails unless a vCPU that is added to the stopped `vm` has vCPU 0's clocks, before and after it
/// and the others run.
pub(crate) fn ensure_joins(vm: &Vm) -> Result<()> {
    let record = get(vm)?.header.record;
    let mut added = snippet::add_vcpu(vm)?;
    ensure_joined(vm, &added).context("before its first KVM_RUN")?;

    let page = snippet::record_in_real_mode(vm, &mut added)?;
    ensure_joined(vm, &added).context("after its first KVM_RUN")?;
    run_a_little(vm)?;
    let after = ensure_joined(vm, &added).context("after the others ran")?;
    ensure_eq_hex!(
        function(after.header.record),
        function(record),
        "GET's record with the new vCPU"
    );
    let expected = pages(vm)[0];
    ensure_eq_hex!(function(page), function(expected), "the new vCPU's record");
    Ok(())
}

/// Fails unless the vCPU `added` has the TSC of vCPU 0, and GET reports it and the pinned clock.
fn ensure_joined(vm: &Vm, added: &VcpuFd) -> Result<VmClock> {
    let first = vcpu_transform(&vm.vcpus()[0].fd())?;
    let observed = vcpu_transform(added)?;
    ensure_eq!(observed.scale, first.scale, "the new vCPU's ratio");
    // CAST: the signed difference of values mod 2^64.
    let ahead = observed.offset.since(first.offset) as i64;
    ensure_eq!(ahead, 0, "ticks by which the new vCPU's TSC is ahead");
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
