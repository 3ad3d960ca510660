// SPDX-License-Identifier: GPL-2.0-only

//! Modes advance and freeze at any ratio, with anchors that this host's TSC never reached.

use crate::{
    exact::ensure_kvm_agrees,
    tsc::{ensure_on_function, move_to_domain, Tsc},
    Host, Rate, RATES,
};
use kvm_clock_guest_selftests::{
    expect::{error_ticks, ticks},
    prelude::*,
};

/// Anchors of the other domain: behind, and far ahead of, any host TSC of this host. Scaled by a
/// ratio above 1, the last two exceed 64 bits.
const DOMAINS: &[HostTsc] = &[
    HostTsc(0),
    HostTsc(1 << 63),
    HostTsc(u64::MAX - 1_000_000_007),
];

/// Downtimes, ns.
const DOWNTIMES: &[(&str, i64)] = &[("0 ns", 0), ("3 weeks", 21 * 24 * 3600 * SECOND_NS)];

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases = Vec::new();
    for rate in RATES {
        for &(name, downtime_ns) in DOWNTIMES {
            cases.push(Case::new(
                format!("advance by {name}, {}", rate.name),
                move |host| advance(host, rate, downtime_ns),
            ));
        }
        cases.extend([
            Case::new(format!("freeze, {}", rate.name), |host| {
                freeze(&rate.derived(host)?)
            }),
            Case::new(
                format!("freeze, record pinned before, {}", rate.name),
                |host| freeze(&rate.pinned(host)?),
            ),
        ]);
    }
    cases
}

/// Fails unless all offsets of the stopped `vm` moved from `before` by the same amount, and the
/// record is what `saved` has, to the guest and to KVM.
pub(crate) fn ensure_moved_as_one(vm: &Vm, before: &Clocks, saved: &VmClock) -> Result<()> {
    let record = saved.header.record;
    ensure_kvm_agrees(vm, &record)?;
    let reading = run_a_little(vm)?;
    let now = Clocks::of(vm)?;
    let expected = before.moved_to(&now, record);
    expected.ensure_is(&now, "after SET")?;
    expected.ensure_reads(&reading)?;
    ensure_on_function(vm, &reading)?;
    ensure_kvm_agrees(vm, &record)
}

/// SET does not report its instant, but it is between the anchors of a GET before and after. The
/// error is the same at both, except for the drift between TAI and TSC and the granularity of a ns.
fn advance(host: &Host, rate: &Rate, downtime_ns: i64) -> Result<()> {
    for &domain in DOMAINS {
        let vm = rate.derived(host)?;
        let clocks = Clocks::of(&vm)?;
        let mut saved = get(&vm)?;
        move_to_domain(&mut saved, domain);
        saved.header.tai_ns -= downtime_ns;

        let before = get(&vm)?.header;
        set(&vm, &mut saved, MODE_ADVANCE)?;
        let after = get(&vm)?;

        let errors = [
            error_ticks(&saved.header, &after, &before)?,
            error_ticks(&saved.header, &after, &after.header)?,
        ];
        let [least, most] = [errors[0].min(errors[1]), errors[0].max(errors[1])];
        // A ns of either reading of TAI, and a tick.
        let tolerance = 1 + i64::try_from(ticks(&saved.header, 1))? + 1;
        let window = i128::from(after.header.tai_ns) - i128::from(before.tai_ns);
        let drift = i64::try_from(ticks(&saved.header, window))? / 1_000_000;
        note!("error {errors:?} ticks, tolerance {tolerance}");
        ensure!(
            least <= tolerance && most >= -tolerance && most - least <= 2 * tolerance + drift,
            "guest TSC is {least} to {most} ticks off saved + elapsed TAI * rate, tolerance \
             {tolerance}"
        );
        ensure_moved_as_one(&vm, &clocks, &saved)?;
    }
    Ok(())
}

/// At some host TSC during SET, the guest's is the saved one to the tick.
fn freeze(vm: &Vm) -> Result<()> {
    for &domain in DOMAINS {
        let mut saved = get(vm)?;
        move_to_domain(&mut saved, domain);
        ensure_freezes(vm, &mut saved)?;
    }
    Ok(())
}

/// SET of `saved` in mode freeze: at a host TSC during the call, the guest TSC is the saved one to
/// the tick; all TSCs move alike.
pub(crate) fn ensure_freezes(vm: &Vm, saved: &mut VmClock) -> Result<()> {
    let clocks = Clocks::of(vm)?;
    let host_before = rdtsc_ordered();
    set(vm, saved, MODE_FREEZE)?;
    let window = [host_before, rdtsc_ordered()];

    let (tsc, expected) = (Tsc::of(vm, 0)?, saved.header.guest_tsc);
    ensure!(
        tsc.is_at_some_time(expected, window),
        "guest TSC {expected} is not reached during SET, host TSC {window:?}: it went from {} to \
         {} by {tsc:x?}",
        tsc.at(window[0]),
        tsc.at(window[1])
    );
    ensure_moved_as_one(vm, &clocks, saved)
}
