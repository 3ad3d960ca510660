// SPDX-License-Identifier: GPL-2.0-only

//! Ten thousand times GET and SET in one VM, whose guest runs occasionally: at the end, kvmclock is
//! the same function of the TSC, to the bit, in all modes, and so is the TSC in mode exact.

use kvm_clock_guest_selftests::{
    expect::{ensure_reads, ticks},
    prelude::*,
};

const CYCLES: u32 = 10_000;
/// Cycles between two runs of the guest.
const AT_A_TIME: u32 = 250;
/// Cycles that each go back so far that the record must move.
const BACK: u32 = 1_000;
const VCPUS: u32 = 2;

fn main() -> ExitCode {
    ktap::main(
        require::clock_guest,
        vec![
            Case::new(format!("{CYCLES} x exact"), |kvm| {
                let vm = derived(kvm, VCPUS)?;
                let pinned = Clocks {
                    pinned: true,
                    ..Clocks::of(&vm)?
                };
                cycles(&vm, &[MODE_EXACT], |now| {
                    pinned.ensure_is(now, "to the bit")
                })
            }),
            Case::new(format!("{CYCLES} x advance"), advance),
            Case::new(
                format!("{CYCLES} x exact, freeze, advance in turn"),
                |kvm| same_function(kvm, &[MODE_EXACT, MODE_FREEZE, MODE_ADVANCE]),
            ),
            Case::new(format!("{BACK} x advance by -1 h"), back),
        ],
    )
}

/// GET and SET of `vm` in each of `modes` in turn; calls `check` whenever the guest ran.
fn cycles(vm: &Vm, modes: &[u32], check: impl Fn(&Clocks) -> Result<()>) -> Result<()> {
    let record = get(vm)?.header.record;
    let start = Instant::now();
    for (cycle, &mode) in (1..=CYCLES).zip(modes.iter().cycle()) {
        set(vm, &mut get(vm)?, mode)?;
        if cycle % AT_A_TIME == 0 {
            let reading = run_a_little(vm)?;
            let now = Clocks::of(vm)?;
            check(&now)?;
            ensure_reads(&reading, &record, now.offsets[0])?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    note!("{CYCLES} cycles in {seconds:.1} s");
    Ok(())
}

/// The records do not change; the offsets stay equal for all vCPUs.
fn same_function(kvm: &Kvm, modes: &[u32]) -> Result<()> {
    let vm = pinned(kvm, VCPUS)?;
    let before = Clocks::of(&vm)?;
    cycles(&vm, modes, |now| {
        let expected = Clocks {
            offsets: vec![now.offsets[0]; before.offsets.len()],
            ..before.clone()
        };
        expected.ensure_is(now, "in all but TSC")
    })
}

/// On one host, elapsed TAI is what the TSC counted meanwhile: only roundings of each cycle and the
/// drift between the two can add up.
fn advance(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, VCPUS)?;
    let record = get(&vm)?.header.record;
    let before = get(&vm)?;
    cycles(&vm, &[MODE_ADVANCE], |now| {
        ensure!(
            now.record == record && now.pages == vec![record; now.pages.len()],
            "record was {record:x?}, is {now:x?}"
        );
        Ok(())
    })?;
    ensure_moved(&before, &get(&vm)?, 0, CYCLES)
}

/// The record moves each time, but is still the same function, the extended first one.
fn back(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, VCPUS)?;
    let first = get(&vm)?;
    let mut last = first.header.record.tsc_timestamp;
    for cycle in 1..=BACK {
        let mut clock = get(&vm)?;
        clock.header.tai_ns += HOUR_NS;
        clock.header.flags = FLAG_ALLOW_BACKWARDS;
        set(&vm, &mut clock, MODE_ADVANCE)?;

        let now = get(&vm)?;
        let record = now.header.record;
        ensure!(
            record.tsc_timestamp != last,
            "the record did not move in cycle {cycle}"
        );
        last = record.tsc_timestamp;
        if cycle % AT_A_TIME == 0 {
            let reading = run_a_little(&vm)?;
            ensure_reads(&reading, &first.header.record, now.vcpus[0].tsc_offset)?;
        }
    }
    ensure_moved(&first, &get(&vm)?, -HOUR_NS, BACK)
}

/// Fails unless the TSC moved by `ns` in each of `cycles` cycles, except for their roundings.
fn ensure_moved(before: &VmClock, after: &VmClock, ns: i64, cycles: u32) -> Result<()> {
    /// How far TAI and TSC may drift apart: the error of the kernel's calibration to whole kHz, and
    /// its clock's corrections between two ticks.
    const DRIFT_PER_MILLION: i128 = 1;

    let [was, is] = [before, after].map(|clock| clock.vcpus[0].tsc_offset);
    let cycles = i128::from(cycles);
    let here = |ns: i64| ticks(&before.header, ns.into());
    // CAST: the signed difference of values mod 2^64.
    let error = i128::from(is.since(was) as i64) - cycles * here(ns);
    let passed_ns = after.header.monotonic_raw_ns - before.header.monotonic_raw_ns;
    // Two clocks read to the ns, and one division: less than 2 ns and a tick each.
    let tolerance = cycles * (here(2) + 1) + here(passed_ns) * DRIFT_PER_MILLION / 1_000_000;
    let text =
        format!("the error of the TSC is {error} ticks after {cycles} cycles in {passed_ns} ns");
    note!("{text}; tolerance {tolerance}");
    ensure!(error.abs() <= tolerance, "{text}: tolerance {tolerance}");
    Ok(())
}
