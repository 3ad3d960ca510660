// SPDX-License-Identifier: GPL-2.0-only

//! KVM_GET_CLOCK_GUEST returns the guest's record in every state of the VM.

use crate::{
    get,
    list::{get_clock_guest, PVCLOCK_TSC_STABLE_BIT},
    record, second_descriptor, set, Host, VCPUS,
};
use kvm_clock_guest_selftests::{fixture, prelude::*, snippet};

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("GET: the record that the guest has", as_guest),
        Case::new(
            "GET: different offsets, each vCPU's own record, not stable",
            apart,
        ),
        Case::new("GET: before the first KVM_RUN", never_run),
        Case::new("GET: a guest that never enabled kvmclock", never_enabled),
        Case::new("GET: while the vCPU runs", running),
    ]
}

/// Fails unless GET reports the record of each vCPU's page, with `version` and padding 0.
fn ensure_as_guest(vm: &Vm, flags: u8) -> Result<()> {
    for (index, page) in pages(vm).into_iter().enumerate() {
        let reported = record(&get(vm, index)?);
        ensure!(
            reported == page && page.flags == flags,
            "vCPU {index}: GET reports {reported:x?}, the guest has {page:x?}, expected flags {flags:#x}"
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
    vm.set_tsc_offset(1, offset)?;
    run_a_little(&vm)?;
    ensure_as_guest(&vm, 0)?;
    let (first, last) = (get(&vm, 0)?, get(&vm, 1)?);
    let observed = last.tsc_timestamp.wrapping_sub(first.tsc_timestamp);
    let expected = 1_000_000_007u64.wrapping_neg();
    ensure_eq_hex!(observed, expected, "ticks between the records");
    Ok(())
}

/// GET reports a clock that can be SET.
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
    ensure_eq_hex!(get(&vm, 0)?, info, "GET after SET");
    run_a_little(&vm)?;
    ensure_eq_hex!(pages(&vm)[0], record(&info), "the guest's record");
    Ok(())
}

/// Fails unless the record of vCPU 0 agrees with KVM_GET_CLOCK.
fn ensure_near_kvmclock(vm: &Vm) -> Result<()> {
    /// Rounding errors.
    const TOLERANCE_NS: u64 = 2;

    let transform = TscTransform {
        offset: vm.tsc_offsets()?[0],
        ..fixture::reference_transform(&fixture::get(vm)?)?
    };
    let reported = record(&get(vm, 0)?);
    let at = |host_tsc| reported.kvmclock_ns(transform.guest_tsc(host_tsc));
    let before = at(rdtsc_ordered());
    let kvmclock = get_clock(vm)?.clock;
    let after = at(rdtsc_ordered());
    ensure!(
        (before - TOLERANCE_NS..=after + TOLERANCE_NS).contains(&kvmclock),
        "KVM_GET_CLOCK returns {kvmclock} ns, the record {before} before and {after} ns after"
    );
    Ok(())
}

/// The guest only executes HLT.
fn never_enabled(host: &Host) -> Result<()> {
    let vm = Vm::empty(&host.kvm, 1)?;
    for _ in 0..2 {
        let mut fd = vm.vcpus()[0].fd();
        fd.set_kvm_immediate_exit(0);
        snippet::halt_in_real_mode(&vm, &mut fd)?;
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
        let reported: Result<Vec<_>, _> =
            fds.iter().cycle().take(200).map(get_clock_guest).collect();
        vm.stop()?;
        drop(run);
        for reported in reported.context("KVM_GET_CLOCK_GUEST while the vCPU runs")? {
            ensure_eq_hex!(record(&reported), before.record, "GET while the vCPU runs");
        }
        before.ensure_unchanged(vm)?;
    }
    Ok(())
}
