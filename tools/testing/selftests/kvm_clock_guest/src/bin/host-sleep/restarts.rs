// SPDX-License-Identifier: GPL-2.0-only

//! The host TSC restarts while the host sleeps: KVM raises all offsets, and moves records with
//! them.

use crate::{
    expected::{all_of, for_each, own_steps_back, read_and_stop, Before},
    sleep::{sleep_restarting, Sleep},
    Host,
};
use kvm_clock::get_vm_clock_guest_or_fall_back;
use kvm_clock_guest_selftests::{fixture, prelude::*, snippet};

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("VMs that run when the host is suspended", running),
        Case::new("VMs that are stopped when the host is suspended", stopped),
        Case::new("3 sleeps in a row, stopped VMs", in_a_row),
        Case::new("a VM whose clock is not pinned, before it runs", unpinned),
        Case::new("a vCPU that is added afterwards", added_afterwards),
        Case::new("a VM that is created afterwards", created_afterwards),
    ]
}

fn running(host: &Host) -> Result<()> {
    let vms = host.pinned()?;
    let before = all_of(&vms, Before::of)?;
    let saved = all_of(&vms, get)?;
    for vm in &vms {
        observe::run(vm)?;
    }
    let slept = sleep_restarting()?;
    for_each(&vms, &before, |vm, before| {
        let reading = read_and_stop(vm)?;
        before.ensure_raised(vm, &reading)
    })?;
    for_each(&vms, &saved, |vm, saved| {
        ensure_went_on(saved, &get(vm)?, slept, true)
    })
}

/// Fails unless the guest TSC continued from its value when the host went to sleep, by no more than
/// the time that passed. If the VM did not run (`ran`), it may continue from its value at the last
/// ioctl of a vCPU.
fn ensure_went_on(saved: &VmClock, now: &VmClock, slept: Sleep, ran: bool) -> Result<()> {
    const SECOND_NS: u64 = 1_000_000_000;
    /// Time since that ioctl, and until the kernel keeps time again.
    const MOST_NS: u64 = 10 * SECOND_NS;

    let (then, since) = (reference_transform(saved)?, reference_transform(now)?);
    let khz = u64::from(now.header.host_tsc_khz);
    // CAST: Some seconds are far below 2^63 ticks.
    let ticks = |ns: u64| then.scale.apply(ns * khz / 1_000_000) as i64;
    let went = since
        .guest_tsc(slept.after)
        .since(then.guest_tsc(slept.before));
    // CAST: The sign of a difference mod 2^64 is the order.
    let went = went as i64;
    let least = if ran { 0 } else { -ticks(MOST_NS) };
    let most = ticks(slept.passed_ns.unsigned_abs() + SECOND_NS);
    ensure!(
        (least..=most).contains(&went),
        "the guest TSC grew by {went} ticks, expected {least} to {most}"
    );
    Ok(())
}

/// Fails unless GET, before KVM loads any vCPU of the stopped `vm`, reports the clocks that the
/// vCPUs will have.
fn ensure_reported(vm: &Vm, saved: &VmClock) -> Result<VmClock> {
    let reported = get(vm)?;
    let (header, was) = (reported.header, saved.header);
    ensure_eq_hex!(
        header.status,
        STATUS_PINNED | STATUS_HOST_TSC_STABLE,
        "GET's status"
    );
    // CAST: The sign of a difference mod 2^64 is the order.
    let went = header.guest_tsc.since(was.guest_tsc) as i64;
    let kvmclock_went = header.kvmclock_ns.wrapping_sub(was.kvmclock_ns) as i64;
    let offsets = vm.tsc_offsets()?;
    let reported_offsets = fixture::offsets(&reported);
    ensure_eq_hex!(reported_offsets, offsets, "GET's TSC offsets");
    ensure!(
        went >= 0 && kvmclock_went >= 0,
        "since before the sleep the guest TSC grew by {went} ticks, kvmclock by {kvmclock_went} ns"
    );
    Ok(reported)
}

fn stopped(host: &Host) -> Result<()> {
    let vms = host.pinned()?;
    let before = all_of(&vms, Before::of)?;
    let saved = all_of(&vms, get)?;
    let slept = sleep_restarting()?;
    for_each(&vms, &saved, |vm, saved| {
        let reported = ensure_reported(vm, saved)?;
        ensure_went_on(saved, &reported, slept, false)
    })?;
    for_each(&vms, &before, |vm, before| {
        before.ensure_raised(vm, &run_a_little(vm)?)
    })
}

/// The changes add up until the vCPUs are loaded. With a scaled TSC, KVM rounds their sum, but each
/// change of the record.
fn in_a_row(host: &Host) -> Result<()> {
    const TIMES: u64 = 3;

    let vms = host.pinned()?;
    let before = all_of(&vms, Before::of)?;
    let saved = all_of(&vms, get)?;
    for _ in 0..TIMES {
        sleep_restarting()?;
    }
    for_each(&vms, &saved, |vm, saved| {
        ensure_reported(vm, saved).map(drop)
    })?;
    for_each(&vms, &before, |vm, before| {
        let is_scaled = vm.tsc_khz()? != host.rates[0];
        let error = if is_scaled { TIMES - 1 } else { 0 };
        before.ensure_raised_to_within(vm, &run_a_little(vm)?, error)
    })
}

/// Its master clock was computed from the former TSC: ENODATA, and KVM's clock with FALLBACK.
fn unpinned(host: &Host) -> Result<()> {
    let vms = host.derived()?;
    let before = all_of(&vms, |vm| Ok((own_steps_back(vm), get(vm)?)))?;
    sleep_restarting()?;
    for_each(&vms, &before, |vm, (steps_back, saved)| {
        for when in ["immediately", "after the guest ran"] {
            ensure_errno(libc::ENODATA, get_vm_clock_guest(vm.fd()).map(drop)).context(when)?;
            let reported = get_vm_clock_guest_or_fall_back(vm.fd()).context("FALLBACK")?;
            let (now, was) = (reported.header, saved.header);
            // CAST: The sign of a difference mod 2^64 is the order.
            let went = now.kvmclock_ns.wrapping_sub(was.kvmclock_ns) as i64;
            ensure!(
                (0..600_000_000_000).contains(&went) && now.status == STATUS_HOST_TSC_STABLE,
                "{when}: kvmclock grew by {went} ns, {:x?}",
                now
            );
            run_a_little(vm)?;
        }
        // Without a master clock, vCPUs do not share one clock.
        ensure_eq!(
            own_steps_back(vm),
            *steps_back,
            "steps back of each vCPU's TSC and kvmclock"
        );
        Ok(())
    })
}

/// KVM gives it the TSC that the others would have without the sleep, but all read one kvmclock.
fn added_afterwards(host: &Host) -> Result<()> {
    let vms = host.pinned()?;
    let before = all_of(&vms, Before::of)?;
    sleep_restarting()?;
    for_each(&vms, &before, |vm, before| {
        before.ensure_raised(vm, &run_a_little(vm)?)?;
        let mut fd = snippet::add_vcpu(vm)?;
        let page = snippet::record_in_real_mode(vm, &mut fd)?;
        let offset = tsc_offset(&fd).context("KVM_VCPU_TSC_OFFSET")?;
        let ahead = offset.since(vm.tsc_offsets()?[0]);
        // CAST: The sign of a difference mod 2^64 is the order.
        note!("its TSC is {} ticks ahead", ahead as i64);
        let record = before.clocks.record;
        let expected = ClockGuest {
            tsc_timestamp: record.tsc_timestamp.wrapping_add(ahead),
            ..function(record)
        };
        ensure_eq_hex!(function(page), expected, "the new vCPU's record");
        before.ensure_raised(vm, &run_a_little(vm)?)
    })
}

/// It does not depend on the former TSC.
fn created_afterwards(host: &Host) -> Result<()> {
    sleep_restarting()?;
    let vm = derived(&host.kvm, 2)?;
    let header = get(&vm)?.header;
    ensure!(
        header.record.flags == PVCLOCK_TSC_STABLE && header.status == STATUS_HOST_TSC_STABLE,
        "GET reports {header:x?}"
    );
    let vms = host.pinned()?;
    for_each(&vms, &all_of(&vms, Before::of)?, |vm, before| {
        before.clocks.ensure_reads(&run_a_little(vm)?)
    })
}
