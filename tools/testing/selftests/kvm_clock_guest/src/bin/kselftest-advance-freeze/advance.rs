// SPDX-License-Identifier: GPL-2.0-only

//! The guest TSC continues from the saved value by the elapsed TAI, however long that is.

use crate::{moved::ensure_advances, DOMAINS, VCPUS};
use kvm_clock_guest_selftests::{
    expect::{rate, ticks},
    host_clock::TaiOffset,
    prelude::*,
    time::WEEK_NS,
};
use pvclock_reference::arithmetic::signed_ticks;

const YEAR_NS: i64 = 365 * 24 * HOUR_NS;

/// Downtimes by TAI, ns.
const DOWNTIMES: &[(&str, i64)] = &[
    ("0 ns", 0),
    ("1 ns", 1),
    ("1 s", SECOND_NS),
    ("1 h", HOUR_NS),
    ("3 weeks", 3 * WEEK_NS),
    ("10 years", 10 * YEAR_NS),
];

/// TSC values are compared by the sign of their difference: no guest moves further than this in one
/// step.
const REACH_TICKS: i128 = 1 << 63;

/// Downtimes (ns) that exceed [`REACH_TICKS`] at any rate from 1.5 GHz on, and so fail.
const BEYOND_REACH: &[(&str, i64)] =
    &[("200 years", 200 * YEAR_NS), ("-200 years", -200 * YEAR_NS)];

/// TAI - UTC (s) of the host that saved, and of the one that sets; below 10 = unknown.
const TAI_OFFSETS: &[(i32, i32)] = &[(37, 0), (0, 37), (37, 37), (36, 37), (0, 1), (37, 1)];

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for &(name, downtime_ns) in DOWNTIMES {
        cases.push(Case::new(format!("advance by {name}"), move |kvm| {
            advance(kvm, downtime_ns)
        }));
    }
    cases.push(Case::new("advance as far as TSC values reach", reach));
    for &(name, downtime_ns) in BEYOND_REACH {
        let name = format!("advance by {name} is beyond reach");
        cases.push(Case::new(name, move |kvm| beyond_reach(kvm, downtime_ns)));
    }
    for &(saved_s, here_s) in TAI_OFFSETS {
        cases.push(Case::new(
            format!("advance where TAI - UTC was {saved_s} s and is {here_s} s"),
            move |kvm| advance_tai(kvm, saved_s, here_s),
        ));
    }
    cases
}

fn advance(kvm: &Kvm, downtime_ns: i64) -> Result<()> {
    for &domain in DOMAINS {
        let vm = derived(kvm, VCPUS)?;
        let mut saved = get(&vm)?;
        move_to_domain(&mut saved, domain);
        saved.header.tai_ns -= downtime_ns;
        ensure_advances(&vm, &mut saved)?;
    }
    Ok(())
}

/// A minute less than the longest downtime.
fn reach(kvm: &Kvm) -> Result<()> {
    let vm = derived(kvm, VCPUS)?;
    let mut saved = get(&vm)?;
    let hour = ticks(&saved.header, HOUR_NS.into());
    let longest_ns = i64::try_from(REACH_TICKS * i128::from(HOUR_NS) / hour)?;
    saved.header.tai_ns -= longest_ns - 60 * SECOND_NS;
    ensure_advances(&vm, &mut saved)?;
    Ok(())
}

fn beyond_reach(kvm: &Kvm, downtime_ns: i64) -> Result<()> {
    let vm = derived(kvm, VCPUS)?;
    let mut saved = get(&vm)?;
    ensure!(
        signed_ticks(rate(&saved.header), downtime_ns.into()).is_none(),
        "{downtime_ns} ns are fewer than 2^63 ticks: the case needs a longer downtime"
    );
    saved.header.tai_ns -= downtime_ns;
    saved.header.mode = MODE_ADVANCE;
    saved.header.flags = FLAG_ALLOW_BACKWARDS;
    ensure_refused(&vm, libc::EINVAL, |fd| set_vm_clock_guest(fd, &mut saved))
}

fn advance_tai(kvm: &Kvm, saved_s: i32, here_s: i32) -> Result<()> {
    let vm = derived(kvm, VCPUS)?;
    let mut saved = {
        let _until_saved = TaiOffset::set(saved_s)?;
        get(&vm)?
    };
    move_to_domain(&mut saved, HostTsc(0));
    // One second less of UTC between them if a leap second was inserted.
    saved.header.tai_ns -= 2 * SECOND_NS;
    let _until_set = TaiOffset::set(here_s)?;
    ensure_advances(&vm, &mut saved)?;
    Ok(())
}
