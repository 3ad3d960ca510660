// SPDX-License-Identifier: GPL-2.0-only

//! The host does not keep its time by its TSC: GET with FALLBACK tells KVM's clock, and how far
//! apart the clocks of the instant may be.

use crate::{ensure_no_data, ensure_sound, get_or_fall_back, Host, VCPUS};
use anyhow::{ensure, Result};
use clockguest::vmm::Vm;
use kvm_clock::{get_vm_clock_guest, VmClock};
use kvm_clock_guest_selftests::{
    clocks::{function, pages},
    clocksource::{run_until_noticed, WithoutTsc},
    continued::{Continued, Function, Paired},
    fixture::{an_hour_ahead, get, pinned, reference_transform, run_a_little, set},
    ktap::Case,
};
use pvclock::abi::{MODE_EXACT, STATUS_HOST_TSC_STABLE, STATUS_PINNED};

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("no TSC: GET with FALLBACK tells KVM's clock", gets),
        Case::new(
            "no TSC: GET with FALLBACK of a record that KVM has not dropped yet",
            gets_pinned,
        ),
        Case::new(
            "what GET with FALLBACK told is pinned once the TSC is back",
            comes_home,
        ),
    ]
}

/// A stopped VM that had a pinned record an hour ahead, which KVM dropped as the host stopped using its
/// TSC.
fn dropped(host: &Host) -> Result<(Vm, WithoutTsc)> {
    let vm = pinned(&host.kvm, VCPUS)?;
    let mut clock = an_hour_ahead(get(&vm)?);
    set(&vm, &mut clock, MODE_EXACT)?;
    run_a_little(&vm)?;
    let without_tsc = WithoutTsc::switch(&host.other_clocksource)?;
    run_until_noticed(&vm, &clock.header.record)?;
    Ok((vm, without_tsc))
}

fn gets(host: &Host) -> Result<()> {
    let (vm, _until_checked) = dropped(host)?;
    for _ in 0..20 {
        ensure_no_data(&vm, "GET", |vm| get_vm_clock_guest(vm.fd()).map(|_| ()))?;
        let (clock, took_ns) = ensure_sound(&vm)?;
        let precision_ns = i64::from(clock.header.precision_ns);
        ensure!(
            clock.header.status == 0 && clock.header.record.flags == 0,
            "status {:#x} and flags {:#x}, expected 0",
            clock.header.status,
            clock.header.record.flags
        );
        // The instant lies in the middle of what was taken for reading it, which was part of the
        // call; and the kernel does not read its clock that much faster than this program does.
        let least_ns = (took_here_ns(&clock)? / 32).max(1);
        ensure!(
            (least_ns..=took_ns / 2 + 2).contains(&precision_ns),
            "GET says it is precise to {precision_ns} ns, and took {took_ns} ns at most; to be \
             believed is {least_ns} ns"
        );
        let function = Function {
            record: clock.header.record,
            transform: reference_transform(&clock)?,
        };
        let raw = Paired::now(libc::CLOCK_MONOTONIC_RAW)?;
        let continued = Continued::since(function, raw, clock.header.precision_ns)?;
        continued.ensure_told_by_kvm(&vm)?;
        ensure_instant(&clock)?;
    }
    Ok(())
}

/// How long it takes this program to read the raw clock, ns: a device's, and by a call to the
/// kernel.
fn took_here_ns(clock: &VmClock) -> Result<i64> {
    let [before, after] = Paired::now(libc::CLOCK_MONOTONIC_RAW)?.host_tsc;
    let khz = u64::from(clock.header.host_tsc_khz);
    Ok(i64::try_from((after - before) * 1_000_000 / khz)?)
}

/// The raw clock and TAI are those of the anchor, to within the precision.
fn ensure_instant(clock: &VmClock) -> Result<()> {
    let header = &clock.header;
    for (name, id, told) in [
        ("raw", libc::CLOCK_MONOTONIC_RAW, header.monotonic_raw_ns),
        ("TAI", libc::CLOCK_TAI, header.tai_ns),
    ] {
        // Time since the anchor by the one clock and by the TSC: a calibration apart at most.
        let pair = Paired::now(id)?;
        let since = i128::from(pair.ns) - i128::from(told);
        let by_tsc = pair.host_tsc.map(|host_tsc| {
            i128::from(host_tsc.wrapping_sub(header.host_tsc)) * 1_000_000
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

/// No vCPU ran since the switch: the record is pinned still, but the host's other clocks cannot be
/// read as one with its TSC.
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
        "GET says that TAI and the TSC are of one instant, which this host cannot tell"
    );
    Ok(())
}

/// Saved without TSC, restored with: pinned, and the guest's clock to the ns.
fn comes_home(host: &Host) -> Result<()> {
    let (vm, without_tsc) = dropped(host)?;
    let mut clock = get_or_fall_back(&vm)?;
    without_tsc.end()?;
    let (saved_ns, record) = (clock.header.precision_ns, clock.header.record);
    clock.header.flags = 0;
    set(&vm, &mut clock, MODE_EXACT)?;
    let observed = (clock.header.status, clock.header.precision_ns);
    let expected = (STATUS_PINNED | STATUS_HOST_TSC_STABLE, saved_ns);
    ensure!(
        observed == expected,
        "SET reports status and precision {observed:x?}, expected {expected:x?}"
    );
    run_a_little(&vm)?;
    let now = get(&vm)?;
    ensure!(
        now.header.precision_ns == 0,
        "the pinned record has a precision of {} ns",
        now.header.precision_ns
    );
    for page in pages(&vm) {
        ensure!(
            function(page) == record,
            "the guest has {page:x?}, expected {record:x?}"
        );
    }
    Ok(())
}
