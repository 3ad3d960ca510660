// SPDX-License-Identifier: GPL-2.0-only

//! Modes advance and freeze, from another host TSC domain: the guest TSC goes where it should, by
//! arithmetic of the test's own, and the record comes along bit for bit.

use anyhow::{
    ensure,
    Result, //
};
use clockguest::{
    host::rdtsc_ordered,
    vmm::{
        ioctl::VmClock,
        Vm, //
    },
};
use kvm_clock_guest_selftests::{
    clocks::Clocks,
    fixture::{
        derived,
        get,
        kept,
        move_to_domain,
        reference_relation,
        run_a_little,
        set, //
    },
    host_clock::TaiOffset,
    ktap::{
        self,
        note,
        Case, //
    },
    require,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{
    VmClockGuest,
    FLAG_ALLOW_BACKWARDS,
    MODE_ADVANCE,
    MODE_FREEZE, //
};
use std::process::ExitCode;

const SECOND_NS: i64 = 1_000_000_000;
const WEEK_NS: i64 = 7 * 24 * 3600 * SECOND_NS;

/// Downtimes by TAI, ns; less than 0 with `FLAG_ALLOW_BACKWARDS`.
const DOWNTIMES: &[(&str, i64)] = &[
    ("0 ns", 0),
    ("1 ns", 1),
    ("1 s", SECOND_NS),
    ("1 h", 3600 * SECOND_NS),
    ("3 weeks", 3 * WEEK_NS),
    ("10 years", 520 * WEEK_NS),
    ("-1 s", -SECOND_NS),
    ("-3 weeks", -3 * WEEK_NS),
];

/// Anchors of the other domain: behind, and far ahead of, any host TSC of here.
const DOMAINS: &[u64] = &[0, 1 << 63, u64::MAX - 1_000_000_007];

/// TAI - UTC (s) of the host that saved, and of the one that sets; 0 = not known.
const TAI_OFFSETS: &[(i32, i32)] = &[(37, 0), (0, 37), (37, 37), (36, 37)];

fn main() -> ExitCode {
    let mut cases = Vec::new();
    for &(name, downtime_ns) in DOWNTIMES {
        cases.push(Case::new(format!("advance by {name}"), move |kvm| {
            advance(kvm, downtime_ns)
        }));
    }
    for &(saved_s, here_s) in TAI_OFFSETS {
        cases.push(Case::new(
            format!("advance where TAI - UTC was {saved_s} s and is {here_s} s"),
            move |kvm| advance_tai(kvm, saved_s, here_s),
        ));
    }
    cases.extend([
        Case::new("freeze", |kvm| freeze(&derived(kvm, 2)?, |_| ())),
        Case::new("freeze, record kept before", |kvm| {
            freeze(&kept(kvm, 2)?, |_| ())
        }),
        Case::new("freeze minds no time of day", |kvm| {
            freeze(&derived(kvm, 2)?, |header| {
                header.tai_ns = i64::MAX;
                header.tai_offset_s = i32::MIN;
            })
        }),
    ]);
    ktap::main(require::clock_guest, cases)
}

/// Guest ticks in `ns` at the rate of `header`, by the definition of the rate.
fn ticks(header: &VmClockGuest, ns: i128) -> i128 {
    let host_ticks = ns.unsigned_abs() * u128::from(header.host_tsc_khz);
    let guest_ticks = match header.tsc_ratio {
        0 => host_ticks,
        ratio => (host_ticks * u128::from(ratio)) >> header.tsc_frac_bits,
    };
    // CAST: centuries at any rate fit.
    let ticks = (guest_ticks / 1_000_000) as i128;
    if ns < 0 {
        -ticks
    } else {
        ticks
    }
}

/// Time from `saved` to `now`, ns: by TAI if both or neither know it, else by UTC.
fn elapsed_ns(saved: &VmClockGuest, now: &VmClockGuest) -> i128 {
    let by_utc = (saved.tai_offset_s == 0) != (now.tai_offset_s == 0);
    let time = |header: &VmClockGuest| {
        let leap_s = if by_utc { header.tai_offset_s } else { 0 };
        i128::from(header.tai_ns) - i128::from(leap_s) * i128::from(SECOND_NS)
    };
    time(now) - time(saved)
}

/// How far the guest TSC of `after` is, at the anchor of `at`, from where it should be, ticks.
fn error_ticks(saved: &VmClockGuest, after: &VmClock, at: &VmClockGuest) -> Result<i64> {
    let observed = reference_relation(after)?.guest_tsc(at.host_tsc);
    // CAST: mod 2^64, as TSC values are.
    let expected = saved
        .guest_tsc
        .wrapping_add(ticks(saved, elapsed_ns(saved, at)) as u64);
    // CAST: the signed difference of values mod 2^64.
    Ok(observed.wrapping_sub(expected) as i64)
}

fn advance(kvm: &Kvm, downtime_ns: i64) -> Result<()> {
    for &domain in DOMAINS {
        let vm = derived(kvm, 2)?;
        let mut saved = get(&vm)?;
        move_to_domain(&mut saved, domain);
        saved.header.tai_ns -= downtime_ns;
        if downtime_ns < 0 {
            saved.header.flags = FLAG_ALLOW_BACKWARDS;
        }
        ensure_advances(&vm, &mut saved)?;
    }
    Ok(())
}

fn advance_tai(kvm: &Kvm, saved_s: i32, here_s: i32) -> Result<()> {
    let vm = derived(kvm, 2)?;
    let mut saved = {
        let _until_saved = TaiOffset::set(saved_s)?;
        get(&vm)?
    };
    move_to_domain(&mut saved, 0);
    // One second of UTC less between them, if a leap second was inserted.
    saved.header.tai_ns -= 2 * SECOND_NS;
    let _until_set = TaiOffset::set(here_s)?;
    ensure_advances(&vm, &mut saved)
}

/// SET does not tell its instant, but it is between the anchors of a GET before and after. At each
/// of them the error is the same, but for drift between TAI and TSC and the granularity of a ns.
fn ensure_advances(vm: &Vm, saved: &mut VmClock) -> Result<()> {
    let clocks = Clocks::of(vm)?;
    let before = get(vm)?;
    set(vm, saved, MODE_ADVANCE)?;
    let after = get(vm)?;

    let errors = [
        error_ticks(&saved.header, &after, &before.header)?,
        error_ticks(&saved.header, &after, &after.header)?,
    ];
    let [least, most] = [errors[0].min(errors[1]), errors[0].max(errors[1])];
    let tolerance = 1 + i64::try_from(ticks(&saved.header, 1))? + 1;
    note(&format!("error {errors:?} ticks, tolerance {tolerance}"));
    ensure!(
        least <= tolerance && most >= -tolerance && most - least <= 2 * tolerance + 100,
        "guest TSC is {least} to {most} ticks off saved + elapsed TAI * rate, tolerance {tolerance}"
    );
    ensure_moved_as_one(vm, &clocks)
}

/// The guest TSC at the time of SET is the saved one.
fn freeze(vm: &Vm, edit: fn(&mut VmClockGuest)) -> Result<()> {
    for &domain in DOMAINS {
        let clocks = Clocks::of(vm)?;
        let mut saved = get(vm)?;
        move_to_domain(&mut saved, domain);
        edit(&mut saved.header);

        let host_before = rdtsc_ordered();
        set(vm, &mut saved, MODE_FREEZE)?;
        let host_after = rdtsc_ordered();

        let relation = reference_relation(&get(vm)?)?;
        let saved_tsc = saved.header.guest_tsc;
        // CAST: the signed differences of values mod 2^64.
        let window = [host_before, host_after]
            .map(|host_tsc| relation.guest_tsc(host_tsc).wrapping_sub(saved_tsc) as i64);
        ensure!(
            window[0] <= 0 && window[1] >= 0,
            "guest TSC is the saved one outside SET: it was {window:?} ticks ahead before and after"
        );
        ensure_moved_as_one(vm, &clocks)?;
    }
    Ok(())
}

/// All offsets moved by the same amount, and the record is what it was, also to the guest.
fn ensure_moved_as_one(vm: &Vm, before: &Clocks) -> Result<()> {
    run_a_little(vm)?;
    let now = Clocks::of(vm)?;
    let shift = now.offsets[0].wrapping_sub(before.offsets[0]);
    let expected = Clocks {
        offsets: before
            .offsets
            .iter()
            .map(|offset| offset.wrapping_add(shift))
            .collect(),
        kept: true,
        ..before.clone()
    };
    expected.ensure_is(&now, "after SET")
}
