// SPDX-License-Identifier: GPL-2.0-only

//! What the host refuses, and what the policy makes of it.

use crate::{
    state::{always, ensure_advanced, ensure_frozen, on_host, restore, save_changed},
    Host, VCPUS,
};
use kvm_clock::{Error, Loss, Mode, OtherRate, Otherwise, Policy, SavedClocks};
use kvm_clock_guest_selftests::prelude::*;

const MINUTE: Duration = Duration::from_secs(60);

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("ERANGE by the record: reslope", reslope),
        Case::new("ERANGE by the record: refuse", reslope_refused),
        Case::new("ERANGE by the TSC: refuse, or accept", other_rate),
        Case::new("ETIME: freeze", behind),
        Case::new("ETIME: refuse", behind_refused),
        Case::new("advance beyond the limit: refuse", limit_refused),
        Case::new("advance beyond the limit: freeze", limit_frozen),
        Case::new("advance beyond the default limit: refuse", default_limit),
        Case::new("advance without a limit", no_limit),
        Case::new(
            "a measured difference of the clocks is added",
            clocks_differ,
        ),
        Case::new("the pause is steal time, or not", steal_time),
        Case::new("exact on a host whose TSC is behind: refuse", stale),
    ]
}

/// Fails unless a restore of `saved` in a stopped VM is refused, and changes nothing; returns why.
fn refused(kvm: &Kvm, saved: &SavedClocks, policy: &Policy) -> Result<Error> {
    let vm = pinned(kvm, VCPUS)?;
    let mut error = None;
    ensure_changes_nothing(&vm, |_| {
        error = restore(&vm, saved, policy).err();
        Ok(())
    })?;
    error.context("the restore succeeded")
}

/// The record is 1000 ppm faster than the TSC.
fn faster_record(clock: &mut VmClock) {
    let header = &mut clock.header;
    header.record.tsc_to_system_mul -= header.record.tsc_to_system_mul / 1000;
    make_consistent(clock);
}

fn saved(host: &Host, change: impl FnOnce(&mut VmClock)) -> Result<(Kvm, Vm, SavedClocks)> {
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, VCPUS)?;
    let saved = save_changed(&vm, change)?;
    let vm = successor(&kvm, vm)?;
    Ok((kvm, vm, saved))
}

fn reslope(host: &Host) -> Result<()> {
    let (_kvm, vm, saved) = saved(host, faster_record)?;
    let outcome = restore(&vm, &saved, &Policy::default())?;
    ensure_eq!(outcome.lost, vec![Loss::Resloped], "lost");
    ensure_eq!(outcome.mode, Mode::Exact, "mode");
    let (clock, now) = (saved.clock()?, get(&vm)?);
    let (actual, expected) = (offsets(&now), offsets(&clock));
    ensure_eq_hex!(actual, expected, "TSC offsets");
    let kvmclock_ns = now.header.record.kvmclock_ns(clock.header.guest_tsc);
    ensure_eq!(
        kvmclock_ns,
        clock.header.kvmclock_ns,
        "kvmclock at the anchor"
    );
    ensure!(
        now.header.record.factor() != clock.header.record.factor(),
        "the slope is the same"
    );
    Ok(())
}

fn reslope_refused(host: &Host) -> Result<()> {
    let (kvm, _vm, saved) = saved(host, faster_record)?;
    let policy = Policy {
        other_rate: OtherRate::Refuse,
        ..Policy::default()
    };
    let error = refused(&kvm, &saved, &policy)?;
    ensure!(
        matches!(error, Error::OtherRate { diff_hz: 0 }),
        "{error:?}"
    );
    Ok(())
}

fn other_rate(host: &Host) -> Result<()> {
    // It comes from a host 1 % faster.
    let (kvm, vm, saved) = saved(host, |clock| {
        clock.header.host_tsc_khz += clock.header.host_tsc_khz / 100;
    })?;
    let here = on_host("another");
    let error = refused(&kvm, &saved, &here)?;
    ensure!(
        matches!(error, Error::OtherRate { diff_hz } if diff_hz < -1_000_000),
        "{error:?}"
    );
    let policy = Policy {
        other_rate: OtherRate::Accept,
        ..here
    };
    let outcome = restore(&vm, &saved, &policy)?;
    ensure!(
        matches!(outcome.lost[..], [Loss::OtherRate(hz)] if hz == outcome.rate_diff_hz),
        "lost: {:?}",
        outcome.lost
    );
    ensure!(outcome.rate_diff_hz < -1_000_000, "{outcome:?}");
    Ok(())
}

fn in_an_hour(clock: &mut VmClock) {
    clock.header.tai_ns += HOUR_NS;
}

fn behind(host: &Host) -> Result<()> {
    let (_kvm, vm, saved) = saved(host, in_an_hour)?;
    let outcome = restore(&vm, &saved, &on_host("another"))?;
    ensure_eq!(outcome.mode, Mode::Freeze, "mode");
    let [Loss::Behind(ns)] = outcome.lost[..] else {
        bail!("lost: {:?}", outcome.lost);
    };
    let open = 60 * SECOND_NS.unsigned_abs();
    let hour = HOUR_NS.unsigned_abs();
    ensure!((hour - open..=hour).contains(&ns), "behind by {ns} ns");
    ensure_frozen(&vm, &saved.clock()?, 0)
}

fn behind_refused(host: &Host) -> Result<()> {
    let (kvm, _vm, saved) = saved(host, in_an_hour)?;
    let policy = Policy {
        behind: Otherwise::Refuse,
        ..on_host("another")
    };
    let error = refused(&kvm, &saved, &policy)?;
    ensure!(
        matches!(error, Error::Behind { by } if by > 59 * MINUTE),
        "{error:?}"
    );
    Ok(())
}

fn limit_refused(host: &Host) -> Result<()> {
    let (kvm, _vm, saved) = saved(host, move_to_other_host)?;
    let policy = Policy {
        max_advance: Some(59 * MINUTE),
        ..on_host("another")
    };
    let error = refused(&kvm, &saved, &policy)?;
    ensure!(
        matches!(error, Error::BeyondLimit { elapsed, limit } if elapsed >= 60 * MINUTE && limit == 59 * MINUTE),
        "{error:?}"
    );
    Ok(())
}

fn limit_frozen(host: &Host) -> Result<()> {
    let (_kvm, vm, saved) = saved(host, move_to_other_host)?;
    let policy = Policy {
        max_advance: Some(59 * MINUTE),
        beyond_limit: Otherwise::Freeze,
        ..on_host("another")
    };
    let outcome = restore(&vm, &saved, &policy)?;
    ensure_eq!(outcome.mode, Mode::Freeze, "mode");
    ensure!(
        matches!(outcome.lost[..], [Loss::BeyondLimit(ns)] if ns >= HOUR_NS.unsigned_abs()),
        "lost: {:?}",
        outcome.lost
    );
    ensure_frozen(&vm, &saved.clock()?, 0)
}

fn years_ago(clock: &mut VmClock) {
    move_to_domain(clock, OTHER_DOMAIN);
    clock.header.tai_ns -= 20_000 * HOUR_NS;
}

fn default_limit(host: &Host) -> Result<()> {
    let (kvm, _vm, saved) = saved(host, years_ago)?;
    let error = refused(&kvm, &saved, &on_host("another"))?;
    ensure!(matches!(error, Error::BeyondLimit { .. }), "{error:?}");
    Ok(())
}

fn no_limit(host: &Host) -> Result<()> {
    let (_kvm, vm, saved) = saved(host, years_ago)?;
    let policy = Policy {
        max_advance: None,
        ..on_host("another")
    };
    let outcome = restore(&vm, &saved, &policy)?;
    ensure_eq!(outcome.mode, Mode::Advance, "mode");
    ensure_advanced(&vm, &saved.clock()?, 0)
}

fn clocks_differ(host: &Host) -> Result<()> {
    let (_kvm, vm, saved) = saved(host, move_to_other_host)?;
    let policy = Policy {
        // The hour is the difference of the clocks, so that no time passed.
        clock_ahead_ns: Some(HOUR_NS),
        ..on_host("another")
    };
    let outcome = restore(&vm, &saved, &policy)?;
    ensure_eq!(outcome.mode, Mode::Advance, "mode");
    let mut clock = saved.clock()?;
    clock.header.tai_ns += HOUR_NS;
    ensure_advanced(&vm, &clock, 0)
}

fn steal_time(host: &Host) -> Result<()> {
    for steal_time in [true, false] {
        let (_kvm, vm, saved) = saved(host, |_| ())?;
        let pause = Duration::from_millis(50);
        sleep(pause);
        let policy = Policy {
            steal_time,
            ..Policy::default()
        };
        let outcome = restore(&vm, &saved, &policy)?;
        ensure_eq!(outcome.lost, vec![], "lost");
        for vcpu in get(&vm)?.vcpus {
            let is_counted = u128::from(vcpu.steal_ns) >= pause.as_nanos();
            ensure_eq!(is_counted, steal_time, "steal time of {} ns", vcpu.steal_ns);
            ensure!(steal_time || vcpu.steal_ns == 0, "{} ns", vcpu.steal_ns);
        }
    }
    Ok(())
}

fn stale(host: &Host) -> Result<()> {
    let (kvm, _vm, saved) = saved(host, |clock| move_to_domain(clock, OTHER_DOMAIN))?;
    let error = refused(&kvm, &saved, &always(Mode::Exact))?;
    ensure!(matches!(error, Error::Stale), "{error:?}");
    Ok(())
}
