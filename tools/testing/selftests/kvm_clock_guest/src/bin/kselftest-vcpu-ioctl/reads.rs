// SPDX-License-Identifier: GPL-2.0-only

//! KVM_GET_CLOCK_GUEST: what the guest reads, whatever the state of the VM.

use crate::{
    get,
    list::{get_clock_guest, PVCLOCK_TSC_STABLE_BIT},
    record, second_descriptor, set, Host, VCPUS,
};
use anyhow::{ensure, Context, Result};
use clockguest::{observe, vmm::Vm};
use kvm_clock::set_tsc_offset;
use kvm_clock_guest_selftests::{
    clocks::{pages, Clocks},
    fixture::{self, pinned, run_a_little},
    halting,
    ktap::Case,
};
use pvclock::tsc::TscTransform;

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("GET: the record that the guest has", as_guest),
        Case::new("GET: offsets apart, each vCPU's own, not stable", apart),
        Case::new("GET: before the first KVM_RUN", never_run),
        Case::new("GET: a guest that never enabled kvmclock", never_enabled),
        Case::new("GET: while the vCPU runs", running),
    ]
}

/// `version` and padding are 0.
fn ensure_as_guest(vm: &Vm, flags: u8) -> Result<()> {
    for (index, page) in pages(vm).into_iter().enumerate() {
        let told = record(&get(vm, index)?);
        ensure!(
            told == page && page.flags == flags,
            "vCPU {index} is told {told:x?}, the guest has {page:x?}, flags expected {flags:#x}"
        );
    }
    Ok(())
}

fn as_guest(host: &Host) -> Result<()> {
    for vm in &host.vms {
        let before = Clocks::of(vm)?;
        ensure_as_guest(vm, PVCLOCK_TSC_STABLE_BIT)?;
        before.ensure_unchanged(vm)?;
        ensure_as_guest(vm, PVCLOCK_TSC_STABLE_BIT)?;
    }
    Ok(())
}

fn apart(host: &Host) -> Result<()> {
    let vm = pinned(&host.kvm, VCPUS)?;
    let offset = vm.tsc_offsets()?[1].wrapping_sub(1_000_000_007);
    set_tsc_offset(&vm.vcpus()[1].fd(), offset).context("KVM_VCPU_TSC_OFFSET")?;
    run_a_little(&vm)?;
    ensure_as_guest(&vm, 0)?;
    let (first, last) = (get(&vm, 0)?, get(&vm, 1)?);
    let observed = last.tsc_timestamp.wrapping_sub(first.tsc_timestamp);
    let expected = 1_000_000_007u64.wrapping_neg();
    ensure!(
        observed == expected,
        "the records are {observed:#x} ticks apart, expected {expected:#x}"
    );
    Ok(())
}

/// What is told then is a clock that can be SET, and is what the VM ioctl tells of a like instant.
fn never_run(host: &Host) -> Result<()> {
    let vm = Vm::new(&host.kvm, VCPUS)?;
    let info = get(&vm, 0)?;
    ensure!(
        (info.version, info.pad0, info.pad) == (0, 0, [0; 2])
            && info.flags == PVCLOCK_TSC_STABLE_BIT,
        "{info:x?}, expected version and padding 0 and stable"
    );
    ensure_near_kvmclock(&vm)?;
    set(&vm, 0, &info)?;
    ensure!(
        get(&vm, 0)? == info,
        "GET after SET: {:x?}, set {info:x?}",
        get(&vm, 0)?
    );
    run_a_little(&vm)?;
    ensure!(
        pages(&vm)[0] == record(&info),
        "the guest has {:x?}, set {info:x?}",
        pages(&vm)[0]
    );
    Ok(())
}

/// The record of vCPU 0 tells what KVM_GET_CLOCK does.
fn ensure_near_kvmclock(vm: &Vm) -> Result<()> {
    /// Roundings on the way.
    const TOLERANCE_NS: u64 = 2;

    let transform = TscTransform {
        offset: vm.tsc_offsets()?[0],
        ..fixture::reference_transform(&fixture::get(vm)?)?
    };
    let told = record(&get(vm, 0)?);
    let at = |host_tsc| told.kvmclock_ns(transform.guest_tsc(host_tsc));
    let before = at(clockguest::host::rdtsc_ordered());
    let kvmclock = vm.fd().get_clock().context("KVM_GET_CLOCK")?.clock;
    let after = at(clockguest::host::rdtsc_ordered());
    ensure!(
        (before - TOLERANCE_NS..=after + TOLERANCE_NS).contains(&kvmclock),
        "KVM_GET_CLOCK says {kvmclock} ns, the record {before} before and {after} ns after"
    );
    Ok(())
}

/// One instruction, HLT, is all it executes.
fn never_enabled(host: &Host) -> Result<()> {
    let vm = Vm::empty(&host.kvm, 1)?;
    for _ in 0..2 {
        let mut fd = vm.vcpus()[0].fd();
        fd.set_kvm_immediate_exit(0);
        halting::run(&vm, &mut fd)?;
        drop(fd);
        ensure_near_kvmclock(&vm)?;
        set(&vm, 0, &get(&vm, 0)?)?;
    }
    Ok(())
}

fn running(host: &Host) -> Result<()> {
    for vm in &host.vms {
        let fds: Vec<_> = (0..vm.vcpus().len())
            .map(|index| second_descriptor(vm, index))
            .collect::<Result<_>>()?;
        let before = Clocks::of(vm)?;
        let run = observe::run(vm)?;
        let told: Result<Vec<_>, _> = fds.iter().cycle().take(200).map(get_clock_guest).collect();
        vm.stop()?;
        drop(run);
        for told in told.context("KVM_GET_CLOCK_GUEST while the vCPU runs")? {
            ensure!(
                record(&told) == before.record,
                "told is {told:x?}, expected {:x?}",
                before.record
            );
        }
        before.ensure_unchanged(vm)?;
    }
    Ok(())
}
