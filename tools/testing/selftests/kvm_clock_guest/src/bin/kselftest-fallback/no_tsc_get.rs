// SPDX-License-Identifier: GPL-2.0-only

//! The host's clocksource is not the TSC: GET with FALLBACK reports KVM's clock, and how far apart
//! the clocks of the instant may be.

use crate::{ensure_no_data, ensure_valid, Host, VCPUS};
use kvm_clock_guest_selftests::{
    clocksource::{run_until_noticed, WithoutTsc},
    continued::{Continued, Function},
    host_clock::clock_and_tsc,
    prelude::*,
};

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("no TSC: GET with FALLBACK reports KVM's clock", gets),
        Case::new(
            "no TSC: GET with FALLBACK of a clock that KVM has not unpinned yet",
            gets_pinned,
        ),
        Case::new(
            "clocks saved with FALLBACK are pinned after the TSC is back",
            restored_with_tsc,
        ),
    ]
}

/// A stopped VM whose clock was pinned an hour ahead until the host stopped using its TSC.
fn unpinned(host: &Host) -> Result<(Vm, WithoutTsc)> {
    let (vm, clock) = pinned_an_hour_ahead(&host.kvm, VCPUS)?;
    let without_tsc = WithoutTsc::switch(&host.other_clocksource)?;
    run_until_noticed(&vm, &clock.header.record)?;
    Ok((vm, without_tsc))
}

fn gets(host: &Host) -> Result<()> {
    let (vm, _until_checked) = unpinned(host)?;
    for _ in 0..20 {
        ensure_no_data(&vm, "GET", |vm| get_vm_clock_guest(vm.fd()).map(drop))?;
        let (clock, took_ns) = ensure_valid(&vm)?;
        let precision_ns = i64::from(clock.header.precision_ns);
        ensure!(
            clock.header.status == 0 && clock.header.record.flags == 0,
            "status {:#x} and flags {:#x}, expected 0",
            clock.header.status,
            clock.header.record.flags
        );
        // The instant is in the middle of the read window, which is part of the call; and the
        // kernel does not read its clock much faster than this program does.
        let least_ns = (took_here_ns(&clock)? / 32).max(1);
        ensure!(
            (least_ns..=took_ns / 2 + 2).contains(&precision_ns),
            "GET reports a precision of {precision_ns} ns, and took {took_ns} ns at most; expected \
             at least {least_ns} ns"
        );
        let function = Function::of(&clock)?;
        let raw = clock_and_tsc(libc::CLOCK_MONOTONIC_RAW)?;
        let continued = Continued::since(function, raw, clock.header.precision_ns)?;
        continued.ensure_in_kvm(&vm)?;
        ensure_instant(&clock)?;
    }
    Ok(())
}

/// How long it takes this program to read the raw clock, with a system call and from a device, ns.
fn took_here_ns(clock: &VmClock) -> Result<i64> {
    let [before, after] = clock_and_tsc(libc::CLOCK_MONOTONIC_RAW)?.host_tsc;
    let khz = u64::from(clock.header.host_tsc_khz);
    Ok(i64::try_from(after.since(before) * 1_000_000 / khz)?)
}

/// The raw clock and TAI are those of the anchor, to within the precision.
fn ensure_instant(clock: &VmClock) -> Result<()> {
    let header = &clock.header;
    for (name, id, reported) in [
        ("raw", libc::CLOCK_MONOTONIC_RAW, header.monotonic_raw_ns),
        ("TAI", libc::CLOCK_TAI, header.tai_ns),
    ] {
        // Time since the anchor by the clock and by the TSC: they differ by a calibration at most.
        let pair = clock_and_tsc(id)?;
        let since = i128::from(pair.ns) - i128::from(reported);
        let by_tsc = pair.host_tsc.map(|host_tsc| {
            i128::from(host_tsc.since(header.host_tsc)) * 1_000_000
                / i128::from(header.host_tsc_khz)
        });
        let drift = since / 1_000;
        let slack = i128::from(header.precision_ns) + drift + 1;
        ensure!(
            since >= by_tsc[0] - slack && since <= by_tsc[1] + slack,
            "by the {name} clock the anchor was {since} ns ago, by the TSC {by_tsc:?} ns, \
             precision {} ns",
            header.precision_ns
        );
    }
    Ok(())
}

/// No vCPU ran since the switch: the clock is still pinned, but the host's other clocks cannot be
/// read at one instant with its TSC.
fn gets_pinned(host: &Host) -> Result<()> {
    let vm = pinned(&host.kvm, VCPUS)?;
    let record = get(&vm)?.header.record;
    let _until_checked = WithoutTsc::switch(&host.other_clocksource)?;
    let clock = get_or_fall_back(&vm)?;
    let header = &clock.header;
    ensure!(
        header.status == STATUS_PINNED && header.record == record,
        "status {:#x} and {:x?}, expected {STATUS_PINNED:#x} and {record:x?}",
        header.status,
        header.record
    );
    ensure_instant(&clock)?;
    ensure!(
        header.precision_ns > 0,
        "GET reports TAI and the TSC as of one instant, which is impossible on this host"
    );
    Ok(())
}

/// Clocks are saved without the TSC and restored with it: pinned, and the guest's clock is right to
/// the ns.
fn restored_with_tsc(host: &Host) -> Result<()> {
    let (vm, without_tsc) = unpinned(host)?;
    let mut clock = get_or_fall_back(&vm)?;
    without_tsc.end()?;
    let (saved_ns, record) = (clock.header.precision_ns, clock.header.record);
    clock.header.flags = 0;
    set(&vm, &mut clock, MODE_EXACT)?;
    let observed = (clock.header.status, clock.header.precision_ns);
    let expected = (STATUS_PINNED | STATUS_HOST_TSC_STABLE, saved_ns);
    ensure_eq_hex!(observed, expected, "SET's status and precision");
    run_a_little(&vm)?;
    let now = get(&vm)?;
    ensure_eq!(
        now.header.precision_ns,
        0,
        "precision of the pinned clock, ns"
    );
    for page in pages(&vm) {
        ensure_eq_hex!(function(page), record, "the guest's record");
    }
    Ok(())
}
