// SPDX-License-Identifier: GPL-2.0-only

//! The guest goes back if that is allowed. A record that would be ahead of its TSC then moves back
//! by its exact steps, no further than necessary; any other record does not change.

use crate::{moved::ensure_advances, DOMAINS, VCPUS};
use kvm_clock_guest_selftests::{
    expect::{elapsed_ns, ticks},
    host_clock::WallClock,
    prelude::*,
    time::WEEK_NS,
};
use pvclock_reference::arithmetic::exact_step;

/// How far back behind the record, ns.
const STEPS: &[(&str, i64)] = &[
    ("1 s", SECOND_NS),
    ("1 h", HOUR_NS),
    ("3 weeks", 3 * WEEK_NS),
];

/// How far the wall clock is stepped, us.
const WALL_STEP_US: i64 = 10_000_000;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for &(name, ns) in STEPS {
        cases.push(Case::new(
            format!("advance to {name} before the record: it moves by exact steps"),
            move |kvm| back(kvm, ns),
        ));
    }
    cases.extend([
        Case::new(
            "advance by -1 s: a record of an hour ago does not change",
            older,
        ),
        Case::new("wall clock stepped back: ETIME unless allowed", |kvm| {
            stepped(&derived(kvm, VCPUS)?)
        }),
        Case::new("wall clock stepped back, record of an hour ago", |kvm| {
            stepped(&aged(kvm)?)
        }),
    ]);
    cases
}

fn back(kvm: &Kvm, ns: i64) -> Result<()> {
    for &domain in DOMAINS {
        let vm = derived(kvm, VCPUS)?;
        let mut saved = get(&vm)?;
        move_to_domain(&mut saved, domain);
        // A slow host may need seconds from the record to here.
        let age_ns = saved.header.kvmclock_ns - saved.header.record.system_time;
        saved.header.tai_ns += ns + i64::try_from(age_ns)?;
        saved.header.flags = FLAG_ALLOW_BACKWARDS;
        let after = ensure_advances(&vm, &mut saved)?;

        let [was, is] = [saved.header, after.header].map(|header| header.record.tsc_timestamp);
        let step = exact_step(&saved.header.record);
        note!(
            "record moved by {} steps of {step} ticks",
            was.since(is) / step
        );
        ensure!(was != is, "the record did not move");
    }
    Ok(())
}

/// A VM whose record is an hour behind its TSC.
fn aged(kvm: &Kvm) -> Result<Vm> {
    let vm = derived(kvm, VCPUS)?;
    let mut saved = get(&vm)?;
    saved.header.tai_ns -= HOUR_NS;
    ensure_advances(&vm, &mut saved)?;
    Ok(vm)
}

fn older(kvm: &Kvm) -> Result<()> {
    let vm = aged(kvm)?;
    let mut saved = get(&vm)?;
    saved.header.tai_ns += SECOND_NS;
    saved.header.flags = FLAG_ALLOW_BACKWARDS;
    let after = ensure_advances(&vm, &mut saved)?;
    ensure_eq_hex!(after.header.record, saved.header.record, "the record");
    Ok(())
}

/// On one host, only the step moves the guest: offsets decrease by as many ticks.
fn stepped(vm: &Vm) -> Result<()> {
    let mut saved = get(vm)?;
    saved.header.mode = MODE_ADVANCE;
    let wall_clock = WallClock::hold()?;
    wall_clock.step_us(-WALL_STEP_US)?;
    ensure_refused(vm, libc::ETIME, |fd| set_vm_clock_guest(fd, &mut saved))?;

    saved.header.flags = FLAG_ALLOW_BACKWARDS;
    let after = ensure_advances(vm, &mut saved)?;
    let step_ns = i128::from(WALL_STEP_US) * 1_000;
    let [was, is] = [&saved, &after].map(|clock| clock.vcpus[0].tsc_offset);
    // CAST: the signed difference of values mod 2^64.
    let error = i128::from(is.since(was) as i64) + ticks(&saved.header, step_ns);
    // Two roundings to a ns; and TAI may drift against the TSC by a part per million.
    let passed_ns = elapsed_ns(&saved.header, &after.header) + step_ns;
    let tolerance = ticks(&saved.header, 2) + 2 + ticks(&saved.header, passed_ns) / 1_000_000;
    note!("the offset decreased by the step and {error} ticks; tolerance {tolerance}");
    ensure!(
        error.abs() <= tolerance,
        "the offset decreased by the step and {error} ticks: tolerance {tolerance}"
    );
    Ok(())
}
