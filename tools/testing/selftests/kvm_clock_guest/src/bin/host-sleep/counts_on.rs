// SPDX-License-Identifier: GPL-2.0-only

//! The host TSC keeps counting while the host sleeps: a guest's clocks do not change.

use crate::{
    expected::{all_of, ensure_advanced, for_each, read_and_stop, Before},
    sleep::sleep_counting,
    Host, VCPUS,
};
use kvm_clock_guest_selftests::{expect, prelude::*};

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("VMs that run when the host is suspended", |host| {
            running(host, 1)
        }),
        Case::new("VMs that are stopped when the host is suspended", stopped),
        Case::new("3 sleeps in a row", |host| running(host, 3)),
        Case::new("SET exact of what was saved before, into new VMs", into_new),
        Case::new("SET advance of what was saved before", advance),
    ]
}

fn running(host: &Host, sleeps: u32) -> Result<()> {
    let vms = host.pinned()?;
    let before = all_of(&vms, Before::of)?;
    for vm in &vms {
        observe::run(vm)?;
    }
    for _ in 0..sleeps {
        sleep_counting()?;
    }
    for_each(&vms, &before, |vm, before| {
        let reading = read_and_stop(vm)?;
        before.ensure_pinned(vm, &reading)
    })
}

fn stopped(host: &Host) -> Result<()> {
    let vms = host.pinned()?;
    let before = all_of(&vms, Before::of)?;
    let saved = all_of(&vms, get)?;
    sleep_counting()?;
    // Before KVM loads any vCPU.
    for_each(&vms, &saved, |vm, saved| {
        let now = get(vm)?;
        let (header, was) = (now.header, saved.header);
        ensure_eq_hex!(
            (header.record, header.status, &now.vcpus),
            (was.record, was.status, &saved.vcpus),
            "GET after the sleep"
        );
        set(vm, &mut saved.clone(), MODE_EXACT)
    })?;
    for_each(&vms, &before, |vm, before| {
        before.ensure_pinned(vm, &run_a_little(vm)?)
    })
}

/// A snapshot is restored after the host slept.
fn into_new(host: &Host) -> Result<()> {
    let vms = host.pinned()?;
    let saved = all_of(&vms, |vm| {
        Ok((vm.save()?, get(vm)?, vm.tsc_khz()?, Before::of(vm)?))
    })?;
    drop(vms);
    sleep_counting()?;
    for (state, clock, khz, before) in saved {
        let vm = Vm::empty_at_rate(&host.kvm, VCPUS, khz)?;
        vm.load(&state)?;
        set(&vm, &mut clock.clone(), MODE_EXACT)?;
        let reading = run_a_little(&vm)?;
        before
            .clocks
            .ensure_is(&Clocks::of(&vm)?, "in the new VM")?;
        before.clocks.ensure_reads(&reading)?;
        before.progress.ensure_none_went_back(&vm, true)?;
    }
    Ok(())
}

/// The guest TSC follows the host's TAI, which the kernel corrects with the real time clock.
fn advance(host: &Host) -> Result<()> {
    let vms = host.pinned()?;
    let saved = all_of(&vms, get)?;
    sleep_counting()?;
    for_each(&vms, &saved, |vm, saved| {
        set(vm, &mut saved.clone(), MODE_ADVANCE)?;
        let now = get(vm)?;
        ensure_advanced(saved, &now)?;
        expect::ensure_reads(
            &run_a_little(vm)?,
            &saved.header.record,
            now.vcpus[0].tsc_offset,
        )
    })
}
