// SPDX-License-Identifier: GPL-2.0-only

//! RESLOPE with a record whose slope differs from that of the guest's TSC on this host: kvmclock
//! continues from its value at the anchor and then runs at the rate of the host's raw clock.

mod slope;

use kvm_clock_guest_selftests::prelude::*;
use pvclock::abi::{CAP_RESLOPE, FLAG_ALLOW_RATE_MISMATCH, FLAG_RESLOPE};
use pvclock_reference::arithmetic::rounding_ns;
use slope::{ensure_continues, ensure_runs_at_1, times};

/// vCPUs of the VMs.
const VCPUS: u32 = 2;
/// How long ago the clocks of mode advance were saved, ns.
const DOWNTIME_NS: i64 = 5 * SECOND_NS;
const HOPS: u32 = 8;

/// Slopes of records, as multiples of the slope that KVM derives.
const SLOPES: [(&str, u64, u64); 4] = [
    ("200 ppm too steep", 1_000_200, 1_000_000),
    ("200 ppm too flat", 999_800, 1_000_000),
    ("2/3 as steep", 2, 3),
    ("3/2 as steep", 3, 2),
];

fn main() -> ExitCode {
    let mut cases = vec![Case::new("the capability bit is set", capability)];
    for (name, mode) in MODES {
        for (slope, numerator, denominator) in SLOPES {
            cases.push(Case::new(format!("{name}, record {slope}"), move |kvm| {
                let vm = derived(kvm, VCPUS)?;
                continued(&vm, mode, numerator, denominator)
            }));
        }
        cases.push(Case::new(
            format!("{name}, scaled guest, record 2/3 as steep"),
            move |kvm| scaled(kvm, mode),
        ));
        cases.push(Case::new(
            format!("{name}, this host's own factor keeps its bits"),
            move |kvm| kept(kvm, mode),
        ));
    }
    cases.extend([
        Case::new(
            "from a host 2/3 as fast: advance, kvmclock runs at 1.0",
            another_model,
        ),
        Case::new(
            format!("{HOPS} hops add no more than is reported, 1 or 2 ns each"),
            hops,
        ),
    ]);
    ktap::main(require::clock_guest, cases)
}

fn capability(kvm: &Kvm) -> Result<()> {
    let capabilities = require::capability(kvm);
    ensure!(capabilities & CAP_RESLOPE != 0, "{capabilities:#x}");
    Ok(())
}

/// The clocks of the stopped `vm` with a record of another slope, for SET with RESLOPE.
fn saved(vm: &Vm, mode: u32, numerator: u64, denominator: u64) -> Result<VmClock> {
    let mut clock = get(vm)?;
    clock.header.flags = FLAG_RESLOPE;
    clock.header.mode = mode;
    clock.header.record = times(clock.header.record, numerator, denominator)?;
    make_consistent(&mut clock);
    if mode == MODE_ADVANCE {
        clock.header.tai_ns -= DOWNTIME_NS;
    }
    Ok(clock)
}

fn continued(vm: &Vm, mode: u32, numerator: u64, denominator: u64) -> Result<()> {
    let mut clock = saved(vm, mode, numerator, denominator)?;
    let requested = clock.clone();
    let before = get(vm)?.header;
    set(vm, &mut clock, mode)?;
    let after = get(vm)?;
    let precision_ns = clock.header.precision_ns;
    let rounding_ns = rounding_ns(&requested.header.record);
    ensure_eq!(precision_ns, rounding_ns, "precision_ns");
    ensure_continues(&requested, &before, &after)?;
    ensure_runs_at_1(vm)
}

fn scaled(kvm: &Kvm, mode: u32) -> Result<()> {
    if !require::scales(kvm) {
        note!("this host does not scale a guest's TSC");
        return Ok(());
    }
    let khz = Vm::empty(kvm, 1)?.tsc_khz()?;
    // The ratio gives no whole number of kHz.
    let vm = Vm::at_rate(kvm, VCPUS, khz / 7 * 5 + 1)?;
    settle(&vm)?;
    continued(&vm, mode, 2, 3)
}

/// The flag has no effect.
fn kept(kvm: &Kvm, mode: u32) -> Result<()> {
    let vm = derived(kvm, VCPUS)?;
    let mut clock = get(&vm)?;
    clock.header.flags = FLAG_RESLOPE;
    let record = clock.header.record;
    set(&vm, &mut clock, mode)?;
    let precision_ns = clock.header.precision_ns;
    ensure_eq!(precision_ns, 0, "precision_ns");
    settle(&vm)?;
    let now = Clocks::of(&vm)?;
    ensure!(
        now.pinned
            && now
                .pages
                .iter()
                .all(|&page| function(page) == function(record)),
        "the record was {record:x?}, the guest's are {:x?}",
        now.pages
    );
    Ok(())
}

/// The TSC cannot run at the guest's former rate, but kvmclock can.
fn another_model(kvm: &Kvm) -> Result<()> {
    let vm = derived(kvm, VCPUS)?;
    let mut clock = saved(&vm, MODE_ADVANCE, 3, 2)?;
    let khz = u64::from(clock.header.host_tsc_khz) * 2 / 3;
    clock.header.host_tsc_khz = u32::try_from(khz)?;

    clock.header.flags = FLAG_RESLOPE;
    ensure_refused(&vm, libc::ERANGE, |fd| {
        set_vm_clock_guest(fd, &mut clock.clone())
    })
    .context("without ALLOW_RATE_MISMATCH")?;
    clock.header.flags = FLAG_ALLOW_RATE_MISMATCH;
    ensure_refused(&vm, libc::ERANGE, |fd| {
        set_vm_clock_guest(fd, &mut clock.clone())
    })
    .context("without RESLOPE")?;

    clock.header.flags = FLAG_ALLOW_RATE_MISMATCH | FLAG_RESLOPE;
    let requested = clock.clone();
    let before = get(&vm)?.header;
    set(&vm, &mut clock, MODE_ADVANCE)?;
    ensure_continues(&requested, &before, &get(&vm)?)?;
    ensure_runs_at_1(&vm)
}

/// Each record comes from a host with another calibration of its TSC.
fn hops(kvm: &Kvm) -> Result<()> {
    let vm = derived(kvm, VCPUS)?;
    let first = get(&vm)?.header.record;
    let (mut precision_ns, mut expected_ns) = (0, 0);
    for hop in 1..=HOPS {
        let mut clock = get(&vm)?;
        let header = &mut clock.header;
        let (_, numerator, denominator) = SLOPES[hop as usize % 2];
        header.record = times(header.record, numerator, denominator)?;
        // kvmclock keeps its value at the anchor.
        header.record.tsc_timestamp = header.guest_tsc;
        header.record.system_time = header.kvmclock_ns;
        (header.flags, header.precision_ns) = (FLAG_RESLOPE, precision_ns);
        set(&vm, &mut clock, MODE_EXACT).with_context(|| format!("hop {hop}"))?;
        expected_ns += rounding_ns(&clock.header.record);
        precision_ns = clock.header.precision_ns;
        ensure_eq!(precision_ns, expected_ns, "hop {hop}: precision_ns");
    }
    let after = get(&vm)?;
    let guest_tsc = reference_transform(&after)?.guest_tsc(after.header.host_tsc);
    // CAST: the signed difference of values mod 2^64.
    let late_ns = first
        .kvmclock_ns(guest_tsc)
        .wrapping_sub(after.header.kvmclock_ns) as i64;
    note!("kvmclock is {late_ns} ns late after {HOPS} hops");
    ensure!(
        (0..=i64::from(precision_ns)).contains(&late_ns),
        "kvmclock is {late_ns} ns late, precision_ns is {precision_ns}"
    );
    Ok(())
}
