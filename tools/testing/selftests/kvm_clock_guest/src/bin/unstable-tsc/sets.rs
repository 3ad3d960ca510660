// SPDX-License-Identifier: GPL-2.0-only

//! SET with FALLBACK on a host whose TSC is unstable.

use crate::{get_or_fall_back, Host, Pinned, TOLERANCE_NS, VCPUS};
use anyhow::{ensure, Context, Result};
use clockguest::{host::rdtsc_ordered, vmm::Vm};
use kvm_clock::{get_vm_clock_guest, set_vm_clock_guest};
use kvm_clock_guest_selftests::{
    continued::{Continued, Function, Paired},
    fixture::{make_consistent, move_to_domain, reference_transform, run_a_little},
    ktap::{note, Case},
    refusal::ensure_errno,
    time::HOUR_NS,
};
use pvclock::{
    abi::{FLAG_FALLBACK, MODE_ADVANCE, MODE_EXACT, MODE_FREEZE},
    tsc::TscTransform,
};

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("SET exact with FALLBACK", |host| sets(host, MODE_EXACT)),
        Case::new("SET advance with FALLBACK", |host| sets(host, MODE_ADVANCE)),
        Case::new("SET freeze with FALLBACK", |host| sets(host, MODE_FREEZE)),
        Case::new("a new VM on such a host", new_vm),
    ]
}

/// The saved offsets, or such that the TSC goes on as asked for; and kvmclock the saved function of
/// it when SET is done, to within what is reported, and by the raw clock from then on.
fn sets(host: &Host, mode: u32) -> Result<()> {
    const SAVED_NS: u32 = 12_345;
    /// Ahead of the present TSC, ticks.
    const AHEAD: u64 = 1 << 45;

    let Pinned { vm, clock, .. } = &host.stopped;
    let mut clock = clock.clone();
    let present = get_or_fall_back(vm)?.vcpus;
    // Where the TSC is to be at the anchor is in the offsets, whose changes made by KVM meanwhile
    // are no matter.
    for (vcpu, present) in clock.vcpus.iter_mut().zip(present) {
        vcpu.tsc_offset = present.tsc_offset.wrapping_add(AHEAD);
    }
    let first = clock.vcpus[0].tsc_offset;
    clock.vcpus[1].tsc_offset = first;
    // Some time before the anchor, as the record is evaluated before SET too.
    clock.header.record.tsc_timestamp = first
        .wrapping_add(clock.header.host_tsc)
        .wrapping_sub(1 << 36);
    clock.header.record.system_time += HOUR_NS.unsigned_abs();
    clock.header.precision_ns = SAVED_NS;
    make_consistent(&mut clock);
    if mode != MODE_EXACT {
        move_to_domain(&mut clock, 1 << 60);
    }

    let khz = u64::from(clock.header.host_tsc_khz);
    let mut set = clock.clone();
    (set.header.mode, set.header.flags) = (mode, FLAG_FALLBACK);
    let (tai, raw, begin) = (
        Paired::now(libc::CLOCK_TAI)?,
        Paired::now(libc::CLOCK_MONOTONIC_RAW)?,
        rdtsc_ordered(),
    );
    set_vm_clock_guest(vm.fd(), &mut set).context("KVM_SET_VM_CLOCK_GUEST with FALLBACK")?;
    let end = rdtsc_ordered();
    let told = get_or_fall_back(vm)?;
    let (status, told_status) = (set.header.status, told.header.status);
    ensure!(
        (status, told_status) == (0, 0),
        "SET reports status {status:#x}, GET tells {told_status:#x}, expected 0"
    );
    let own_ns = i64::from(set.header.precision_ns) - i64::from(SAVED_NS);
    let took_ns = i64::try_from((end - begin) * 1_000_000 / khz)? + 1;
    ensure!(
        (1..=2 * took_ns).contains(&own_ns),
        "SET reports {} ns, {SAVED_NS} ns of it saved, and took {took_ns} ns",
        set.header.precision_ns
    );

    // Where the guest's TSC is to be at some host TSC near SET.
    let due = match mode {
        MODE_EXACT => reference_transform(&clock)?.guest_tsc(begin),
        MODE_ADVANCE => {
            let elapsed = u64::try_from(tai.ns - clock.header.tai_ns)?;
            let ticks = u128::from(elapsed) * u128::from(khz) / 1_000_000;
            clock.header.guest_tsc.wrapping_add(u64::try_from(ticks)?)
        }
        _ => clock.header.guest_tsc,
    };
    let tolerance = u64::from(TOLERANCE_NS) * khz / 1_000_000;
    let by_offset = |offset| -> Result<(i64, TscTransform)> {
        let transform = TscTransform {
            offset,
            ..reference_transform(&clock)?
        };
        // CAST: the signed difference of values mod 2^64.
        let off_by = transform.guest_tsc(begin).wrapping_sub(due) as i64;
        ensure!(
            off_by.unsigned_abs() < tolerance,
            "mode {mode}: a guest TSC is {off_by} ticks off, tolerance {tolerance}"
        );
        Ok((off_by, transform))
    };
    // KVM may have loaded a vCPU anew already, even between two steps of SET. That takes a bit away
    // from its offset, so the other is the one that SET wrote.
    let (first, second) = (
        by_offset(told.vcpus[0].tsc_offset)?,
        by_offset(told.vcpus[1].tsc_offset)?,
    );
    let (off_by, transform) = if first.0 < second.0 { second } else { first };

    let function = Function {
        record: clock.header.record,
        transform,
    };
    let continued = Continued::since(function, raw, u32::try_from(own_ns)?)?;
    note(&format!(
        "mode {mode}: TSC {off_by} ticks off, SET adds {own_ns} ns, took {took_ns} ns; the clocks \
         leave {} ns open",
        continued.open_ns()
    ));
    continued.ensure_told_by_kvm(vm)?;
    let reading = continued.ensure_read_by_guest(|| run_a_little(vm))?;
    for bracketed in reading.vcpus.iter().flat_map(|vcpu| &vcpu.samples) {
        let [least, most] = [bracketed.host_before, bracketed.host_after]
            .map(|host_tsc| transform.guest_tsc(host_tsc));
        let since = bracketed
            .sample
            .tsc
            .wrapping_sub(least.wrapping_sub(tolerance));
        ensure!(
            since <= most.wrapping_sub(least) + 2 * tolerance,
            "the guest read TSC {}, expected {least} to {most}, tolerance {tolerance}",
            bracketed.sample.tsc
        );
    }
    Ok(())
}

/// Nothing pinned, nothing stale: it falls back from the start.
fn new_vm(host: &Host) -> Result<()> {
    let vm = Vm::new(&host.kvm, VCPUS)?;
    for _ in 0..2 {
        ensure_errno(libc::ENODATA, get_vm_clock_guest(vm.fd()).map(|_| ()))?;
        let raw = Paired::now(libc::CLOCK_MONOTONIC_RAW)?;
        let mut clock = get_or_fall_back(&vm)?;
        ensure!(
            clock.header.status == 0 && clock.header.precision_ns > 0,
            "GET tells status {:#x} and precision {} ns",
            clock.header.status,
            clock.header.precision_ns
        );
        let function = Function {
            record: clock.header.record,
            transform: reference_transform(&clock)?,
        };
        let saved_ns = clock.header.precision_ns;
        (clock.header.mode, clock.header.flags) = (MODE_EXACT, FLAG_FALLBACK);
        Continued::since(function, raw, saved_ns)?.ensure_told_by_kvm(&vm)?;
        let raw = Paired::now(libc::CLOCK_MONOTONIC_RAW)?;
        set_vm_clock_guest(vm.fd(), &mut clock).context("SET with FALLBACK")?;
        let own_ns = clock.header.precision_ns - saved_ns;
        let continued = Continued::since(function, raw, own_ns)?;
        continued.ensure_told_by_kvm(&vm)?;
        continued.ensure_read_by_guest(|| run_a_little(&vm))?;
    }
    Ok(())
}
