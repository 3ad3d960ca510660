// SPDX-License-Identifier: GPL-2.0-only

//! SET after the host TSC restarted, before KVM loads any vCPU, of clocks saved before and since.

use crate::{
    expected::{all_of, ensure_advanced, for_each, Before},
    sleep::{sleep_restarting, wait_for_tsc},
    Host,
};
use kvm_clock_guest_selftests::{expect, prelude::*};

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("SET exact of clocks saved before: ESTALE", stale),
        Case::new("SET exact of clocks saved immediately afterwards", exact),
        Case::new("SET exact of the former offsets", same_offsets),
        Case::new("SET advance of clocks saved before", |host| {
            moved(host, MODE_ADVANCE)
        }),
        Case::new("SET freeze of clocks saved before", |host| {
            moved(host, MODE_FREEZE)
        }),
        Case::new("KVM_SET_CLOCK_GUEST of the former record", through_vcpu),
        Case::new("KVM_SET_CLOCK, and a new record", replaced),
    ]
}

/// The host TSC has not reached the anchor yet: nothing changes.
fn stale(host: &Host) -> Result<()> {
    /// Enough ticks for the whole case.
    const ENOUGH: HostTsc = HostTsc(20_000_000_000);

    let vms = host.pinned()?;
    wait_for_tsc(ENOUGH);
    let (before, saved) = (all_of(&vms, Before::of)?, all_of(&vms, get)?);
    sleep_restarting()?;
    let refused = |vm: &Vm, saved: &VmClock| {
        let mut clock = saved.clone();
        clock.header.mode = MODE_EXACT;
        ensure_errno(libc::ESTALE, set_vm_clock_guest(vm.fd(), &mut clock))
    };
    for_each(&vms, &saved, |vm, saved| {
        refused(vm, saved).context("immediately")
    })?;
    for_each(&vms, &before, |vm, before| {
        before.ensure_raised(vm, &run_a_little(vm)?)
    })?;
    for_each(&vms, &saved, |vm, saved| {
        refused(vm, saved).context("after the guest ran")
    })?;
    for_each(&vms, &before, |vm, before| {
        before.ensure_raised(vm, &run_a_little(vm)?)
    })
}

/// Fails unless the stopped `vm` has exactly the clocks `clock`, also after it runs.
fn ensure_is_set(vm: &Vm, clock: &VmClock) -> Result<()> {
    let expected = offsets(clock);
    let record = function(clock.header.record);
    let reading = run_a_little(vm)?;
    let now = Clocks::of(vm)?;
    ensure!(
        now.offsets == expected && now.pinned && function(now.record) == record,
        "SET were offsets {expected:x?} and record {record:x?}, clocks are {now:x?}"
    );
    expect::ensure_reads(&reading, &record, reference_offset(clock))?;
    now.ensure_unchanged(vm)
}

fn exact(host: &Host) -> Result<()> {
    let vms = host.pinned()?;
    let before = all_of(&vms, Before::of)?;
    sleep_restarting()?;
    let reported = all_of(&vms, get)?;
    for_each(&vms, &reported, |vm, reported| {
        set(vm, &mut reported.clone(), MODE_EXACT)?;
        ensure_is_set(vm, reported)
    })?;
    for_each(&vms, &before, |vm, before| {
        before.progress.ensure_none_went_back(vm, true)
    })
}

/// A SET that would have nothing to write if the vCPUs' former offsets were still valid.
fn same_offsets(host: &Host) -> Result<()> {
    let vms = host.pinned()?;
    let saved = all_of(&vms, get)?;
    sleep_restarting()?;
    for_each(&vms, &saved, |vm, saved| {
        let mut clock = saved.clone();
        // A present anchor, and a guest that was saved long before it, as its TSC must be behind.
        clock.header.host_tsc = get(vm)?.header.host_tsc;
        clock.header.record.tsc_timestamp = reference_transform(&clock)?.guest_tsc(HostTsc(0));
        make_consistent(&mut clock);
        set(vm, &mut clock, MODE_EXACT)?;
        ensure_is_set(vm, &clock)
    })
}

fn moved(host: &Host, mode: u32) -> Result<()> {
    let vms = host.pinned()?;
    let (before, saved) = (all_of(&vms, Before::of)?, all_of(&vms, get)?);
    sleep_restarting()?;
    for_each(&vms, &saved, |vm, saved| {
        set(vm, &mut saved.clone(), mode)?;
        let now = get(vm)?;
        if mode == MODE_ADVANCE {
            ensure_advanced(saved, &now)?;
        } else {
            let went = now.header.guest_tsc.since(saved.header.guest_tsc);
            let second = u64::from(vm.tsc_khz()?) * 1000;
            ensure!(went < 10 * second, "the guest TSC grew by {went} ticks");
        }
        let clock = VmClock {
            header: VmClockGuest {
                record: saved.header.record,
                ..now.header
            },
            vcpus: now.vcpus,
        };
        ensure_is_set(vm, &clock)
    })?;
    for_each(&vms, &before, |vm, before| {
        before.progress.ensure_none_went_back(vm, true)
    })
}

/// The record is for the TSC that the vCPU will have.
fn through_vcpu(host: &Host) -> Result<()> {
    // Such a record must have the vCPU's rate.
    let vms = host.pinning(|clock| clock)?;
    let (before, saved) = (all_of(&vms, Before::of)?, all_of(&vms, get)?);
    sleep_restarting()?;
    for_each(&vms, &saved, |vm, saved| {
        let record = saved.header.record;
        set_clock_guest(&vm.vcpus()[0].fd(), &record).context("KVM_SET_CLOCK_GUEST")
    })?;
    for_each(&vms, &before, |vm, before| {
        before.ensure_raised(vm, &run_a_little(vm)?)
    })
}

/// KVM_SET_CLOCK unpins the clock, and SET pins it again.
fn replaced(host: &Host) -> Result<()> {
    let vms = host.pinned()?;
    sleep_restarting()?;
    let reported = all_of(&vms, get)?;
    for_each(&vms, &reported, |vm, reported| {
        let mut data = get_clock(vm)?;
        data.flags = 0;
        vm.fd().set_clock(&data).context("KVM_SET_CLOCK")?;
        run_a_little(vm)?;
        // All TSCs were raised alike, so KVM has a master clock to derive one from.
        let status = get(vm)?.header.status;
        ensure!(
            status & STATUS_PINNED == 0,
            "GET reports status {status:#x}"
        );
        set(vm, &mut reported.clone(), MODE_EXACT)?;
        ensure_is_set(vm, reported)
    })
}
