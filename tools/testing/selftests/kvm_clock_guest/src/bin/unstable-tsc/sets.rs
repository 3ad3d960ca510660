// SPDX-License-Identifier: GPL-2.0-only

//! SET with FALLBACK on a host whose TSC is unstable.

use crate::{Host, Pinned, TOLERANCE_NS, VCPUS};
use kvm_clock_guest_selftests::{
    continued::{Continued, Function},
    host_clock::clock_and_tsc,
    prelude::*,
};
use pvclock::abi::FLAG_FALLBACK;

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("SET exact with FALLBACK", |host| sets(host, MODE_EXACT)),
        Case::new("SET advance with FALLBACK", |host| sets(host, MODE_ADVANCE)),
        Case::new("SET freeze with FALLBACK", |host| sets(host, MODE_FREEZE)),
        Case::new("a new VM on such a host", new_vm),
    ]
}

/// EXACT restores the saved offsets, the other modes continue the TSC. kvmclock is the saved
/// function of it at the end of SET, within the reported precision, and then follows the raw clock.
fn sets(host: &Host, mode: u32) -> Result<()> {
    const SAVED_NS: u32 = 12_345;
    /// Ahead of the present TSC, ticks.
    const AHEAD: u64 = 1 << 45;

    let Pinned { vm, clock, .. } = &host.stopped;
    let mut clock = clock.clone();
    let present = get_or_fall_back(vm)?.vcpus;
    // The offsets define the TSC at the anchor; KVM's changes of them in the meantime do not
    // matter.
    for (vcpu, present) in clock.vcpus.iter_mut().zip(present) {
        vcpu.tsc_offset = present.tsc_offset.wrapping_add(AHEAD);
    }
    let first = clock.vcpus[0].tsc_offset;
    clock.vcpus[1].tsc_offset = first;
    // Some time before the anchor, because the check also evaluates the record before SET.
    clock.header.record.tsc_timestamp = reference_transform(&clock)?
        .guest_tsc(clock.header.host_tsc)
        .wrapping_sub(1 << 36);
    clock.header.record.system_time += HOUR_NS.unsigned_abs();
    clock.header.precision_ns = SAVED_NS;
    make_consistent(&mut clock);
    if mode != MODE_EXACT {
        move_to_domain(&mut clock, HostTsc(1 << 60));
    }

    let khz = u64::from(clock.header.host_tsc_khz);
    let mut set = clock.clone();
    (set.header.mode, set.header.flags) = (mode, FLAG_FALLBACK);
    let (tai, raw, begin) = (
        clock_and_tsc(libc::CLOCK_TAI)?,
        clock_and_tsc(libc::CLOCK_MONOTONIC_RAW)?,
        rdtsc_ordered(),
    );
    set_vm_clock_guest(vm.fd(), &mut set).context("KVM_SET_VM_CLOCK_GUEST with FALLBACK")?;
    let end = rdtsc_ordered();
    let reported = get_or_fall_back(vm)?;
    let (status, reported_status) = (set.header.status, reported.header.status);
    ensure_eq_hex!((status, reported_status), (0, 0), "statuses of SET and GET");
    let own_ns = i64::from(set.header.precision_ns) - i64::from(SAVED_NS);
    let took_ns = i64::try_from(end.since(begin) * 1_000_000 / khz)? + 1;
    ensure!(
        (1..=2 * took_ns).contains(&own_ns),
        "SET reports {} ns, {SAVED_NS} ns of it saved, and took {took_ns} ns",
        set.header.precision_ns
    );

    // The expected guest TSC at a host TSC near SET.
    let expected = match mode {
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
        let error = transform.guest_tsc(begin).since(expected) as i64;
        ensure!(
            error.unsigned_abs() < tolerance,
            "mode {mode}: the error of a guest TSC is {error} ticks, tolerance {tolerance}"
        );
        Ok((error, transform))
    };
    // KVM may have loaded a vCPU again, even between two steps of SET, which reduces its offset a
    // little. So the higher offset is the one that SET wrote.
    let (first, second) = (
        by_offset(reported.vcpus[0].tsc_offset)?,
        by_offset(reported.vcpus[1].tsc_offset)?,
    );
    let (error, transform) = if first.0 < second.0 { second } else { first };

    let function = Function {
        record: clock.header.record,
        transform,
    };
    let continued = Continued::since(function, raw, u32::try_from(own_ns)?)?;
    note!(
        "mode {mode}: the error of the TSC is {error} ticks, SET adds {own_ns} ns, took {took_ns} ns; the \
         uncertainty is {} ns",
        continued.open_ns()
    );
    continued.ensure_in_kvm(vm)?;
    let reading = continued.ensure_read_by_guest(|| run_a_little(vm))?;
    for bracketed in reading.vcpus.iter().flat_map(|vcpu| &vcpu.samples) {
        let [least, most] = [bracketed.host_before, bracketed.host_after]
            .map(|host_tsc| transform.guest_tsc(host_tsc));
        let since = bracketed.sample.tsc.since(least.wrapping_sub(tolerance));
        ensure!(
            since <= most.since(least) + 2 * tolerance,
            "the guest read TSC {}, expected {least} to {most}, tolerance {tolerance}",
            bracketed.sample.tsc
        );
    }
    Ok(())
}

/// A new VM has no pinned record; FALLBACK works for it from the start.
fn new_vm(host: &Host) -> Result<()> {
    let vm = Vm::new(&host.kvm, VCPUS)?;
    for _ in 0..2 {
        ensure_errno(libc::ENODATA, get_vm_clock_guest(vm.fd()).map(drop))?;
        let raw = clock_and_tsc(libc::CLOCK_MONOTONIC_RAW)?;
        let mut clock = get_or_fall_back(&vm)?;
        ensure!(
            clock.header.status == 0 && clock.header.precision_ns > 0,
            "GET reports status {:#x} and precision {} ns",
            clock.header.status,
            clock.header.precision_ns
        );
        let function = Function::of(&clock)?;
        let saved_ns = clock.header.precision_ns;
        (clock.header.mode, clock.header.flags) = (MODE_EXACT, FLAG_FALLBACK);
        Continued::since(function, raw, saved_ns)?.ensure_in_kvm(&vm)?;
        let raw = clock_and_tsc(libc::CLOCK_MONOTONIC_RAW)?;
        set_vm_clock_guest(vm.fd(), &mut clock).context("SET with FALLBACK")?;
        let own_ns = clock.header.precision_ns - saved_ns;
        let continued = Continued::since(function, raw, own_ns)?;
        continued.ensure_in_kvm(&vm)?;
        continued.ensure_read_by_guest(|| run_a_little(&vm))?;
    }
    Ok(())
}
