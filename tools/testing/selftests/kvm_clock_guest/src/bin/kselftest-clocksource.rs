// SPDX-License-Identifier: GPL-2.0-only

//! A host that stops using its TSC: `ENODATA`, and kvmclock continues from its value.
//!
//! Switches the host's clocksource, which needs root, and restores it.

use clockguest::host::ClockAndTsc;
use kvm_clock_guest_selftests::{
    clocksource::{self, run_until_noticed, WithoutTsc},
    fixture::at_another_rate,
    host_clock::{clock_and_tsc, now_ns},
    prelude::*,
};

fn main() -> ExitCode {
    let cases = vec![
        Case::new(
            "ENODATA GET and SET: host clocksource is not the TSC",
            no_data,
        ),
        Case::new(
            "kvmclock continues when the host stops using its TSC",
            continues,
        ),
        Case::new(
            "after the TSC is back, GET reports what the guest reads or ENODATA",
            back_again,
        ),
    ];
    ktap::main(requirements, cases)
}

/// KVM, and the host's other clocksource.
fn requirements() -> Result<(Kvm, String)> {
    Ok((require::clock_guest()?, clocksource::other()?))
}

fn no_data((kvm, other): &(Kvm, String)) -> Result<()> {
    let vms = [derived(kvm, 2)?, pinned(kvm, 2)?];
    let clocks = [get(&vms[0])?, get(&vms[1])?];
    let _until_checked = WithoutTsc::switch(other)?;
    for (vm, mut clock) in vms.iter().zip(clocks) {
        clock.header.mode = MODE_EXACT;
        let before = vm.tsc_offsets()?;
        // Immediately, and after KVM could notice.
        for _ in 0..2 {
            ensure_errno(libc::ENODATA, get_vm_clock_guest(vm.fd()).map(drop)).context("GET")?;
            ensure_errno(libc::ENODATA, set_vm_clock_guest(vm.fd(), &mut clock)).context("SET")?;
            let after = vm.tsc_offsets()?;
            ensure_eq_hex!(after, before, "TSC offsets");
            run_a_little(vm)?;
        }
    }
    Ok(())
}

/// kvmclock, and the host's raw clock before and after it was read, ns.
struct Reading {
    kvmclock: i64,
    raw: [i64; 2],
}

impl Reading {
    fn of(vm: &Vm) -> Result<Self> {
        let before = now_ns(libc::CLOCK_MONOTONIC_RAW);
        let kvmclock = get_clock(vm)?.clock;
        Ok(Self {
            kvmclock: i64::try_from(kvmclock)?,
            raw: [before, now_ns(libc::CLOCK_MONOTONIC_RAW)],
        })
    }

    /// How far kvmclock gained on the raw clock since `earlier`: minimum and maximum.
    fn gained_since(&self, earlier: &Self) -> [i64; 2] {
        let kvmclock = self.kvmclock - earlier.kvmclock;
        [
            kvmclock - (self.raw[1] - earlier.raw[0]),
            kvmclock - (self.raw[0] - earlier.raw[1]),
        ]
    }
}

/// How far the host's raw clock fell behind its TSC between two readings, ns: minimum and maximum.
/// In a switch of the clocksource, it loses the time between the last reading of the old one and
/// the first of the new one, which a busy machine makes long.
fn lost([then, now]: [ClockAndTsc; 2], host_tsc_khz: u32) -> [i64; 2] {
    let [then_tsc, now_tsc] = [then.host_tsc, now.host_tsc];
    [now_tsc[0].since(then_tsc[1]), now_tsc[1].since(then_tsc[0])]
        // CAST: Below 292 years.
        .map(|ticks| (u128::from(ticks) * 1_000_000 / u128::from(host_tsc_khz)) as i64)
        .map(|elapsed_ns| elapsed_ns - (now.ns - then.ns))
}

/// Neither the guest nor KVM_GET_CLOCK sees a step, in either direction.
fn continues((kvm, other): &(Kvm, String)) -> Result<()> {
    /// What the readings leave open, on a busy machine.
    const TOLERANCE_NS: i64 = 1_000_000;

    let vm = pinned(kvm, 1)?;
    let here = get(&vm)?;
    let host_tsc_khz = here.header.host_tsc_khz;
    let mut clock = at_another_rate(here);
    set(&vm, &mut clock, MODE_EXACT)?;
    observe::run(&vm)?;
    let steps_back = vm.view(0).backwards();

    let before = Reading::of(&vm)?;
    let then = clock_and_tsc(libc::CLOCK_MONOTONIC_RAW)?;
    let without_tsc = WithoutTsc::switch(other)?;
    let now = clock_and_tsc(libc::CLOCK_MONOTONIC_RAW)?;
    observe::run(&vm)?;
    vm.stop()?;
    run_until_noticed(&vm, &clock.header.record)?;
    let between = Reading::of(&vm)?;
    without_tsc.end()?;
    run_a_little(&vm)?;
    let after = Reading::of(&vm)?;

    // The rate differs by 100 ppm until KVM notices, and is the host's from then on.
    let until_noticed = (between.raw[1] - before.raw[0]) / 10_000;
    // kvmclock loses no time in a switch: away from the TSC, it counts by the TSC; back to it, by
    // the raw clock.
    let in_switch = lost([then, now], host_tsc_khz);
    for (when, earlier, later, may_gain, lost) in [
        ("away from", &before, &between, until_noticed, in_switch),
        ("back to", &between, &after, 0, [0, 0]),
    ] {
        let [least, most] = later.gained_since(earlier);
        let [least, most] = [least - lost[1], most - lost[0]];
        let text = format!(
            "{when} the TSC, kvmclock gained {least} to {most} ns on the raw clock, which lost {lost:?}"
        );
        note!("{text}");
        ensure!(
            most >= -may_gain - TOLERANCE_NS && least <= may_gain + TOLERANCE_NS,
            "{text}, expected at most {may_gain} ns either way, tolerance {TOLERANCE_NS}"
        );
    }
    let seen = vm.view(0).backwards() - steps_back;
    ensure!(
        seen.own_kvmclock == 0,
        "the guest saw kvmclock go backwards: {seen:?}"
    );
    Ok(())
}

/// KVM unpinned the clock meanwhile, and has no master clock until something makes it check again.
/// GET fails then, or else reports what the guest reads; SET restores the saved clocks.
fn back_again((kvm, other): &(Kvm, String)) -> Result<()> {
    let vm = pinned(kvm, 2)?;
    let before = Clocks::of(&vm)?;
    let mut saved = get(&vm)?;
    let without_tsc = WithoutTsc::switch(other)?;
    run_until_noticed(&vm, &saved.header.record)?;
    without_tsc.end()?;
    run_a_little(&vm)?;

    match get_vm_clock_guest(vm.fd()) {
        Ok(clock) => ensure_read_by_guest(&vm, &clock)?,
        result => ensure_errno(libc::ENODATA, result.map(drop))?,
    }
    set(&vm, &mut saved, MODE_EXACT)?;
    run_a_little(&vm)?;
    before.ensure_is(&Clocks::of(&vm)?, "after SET")
}

fn ensure_read_by_guest(vm: &Vm, clock: &VmClock) -> Result<()> {
    let (status, record) = (clock.header.status, clock.header.record);
    ensure!(
        status & STATUS_PINNED == 0,
        "a record is still pinned: status {status:#x}"
    );
    for (index, vcpu) in run_a_little(vm)?.vcpus.iter().enumerate() {
        for bracketed in &vcpu.samples {
            let sample = bracketed.sample;
            let reported = record.kvmclock_ns(sample.tsc);
            ensure_eq!(
                sample.kvmclock_ns,
                reported,
                "vCPU {index}'s kvmclock by GET's record, ns"
            );
        }
    }
    Ok(())
}
