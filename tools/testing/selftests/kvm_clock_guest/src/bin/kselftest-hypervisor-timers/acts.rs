// SPDX-License-Identifier: GPL-2.0-only

//! Actions on a stopped guest.

use crate::armed::Armed;
use kvm_clock_guest_selftests::{fixture::add_to_offsets, prelude::*};

/// A timer armed so far ahead fires in no case unless it uses the new clock.
pub(crate) const FAR_NS: u64 = 60_000_000_000;
/// How far ahead a timer is armed that must fire later than with the former clock.
pub(crate) const NEAR_NS: u64 = 1_000_000_000;
/// The time from a SET to a deadline.
pub(crate) const LEFT_NS: u64 = 1_000_000_000;
/// How long the guest is stopped, or goes back, with a timer that is near.
const PAUSE_NS: u64 = 600_000_000;
/// An action.
pub(crate) type Act = fn(&mut Armed) -> Result<()>;

/// Name, how far ahead the timers are armed (ns), and what happens then.
pub(crate) type Row = (&'static str, u64, Act);

const ADVANCE_SHORT: Row = ("advance short of the deadline", FAR_NS, advance_short);
const FREEZE_AFTER_PAUSE: Row = ("freeze after a pause", NEAR_NS, freeze_after_pause);

/// One brings the deadline nearer, the other moves it away.
pub(crate) const SHORT_LIST: &[Row] = &[ADVANCE_SHORT, FREEZE_AFTER_PAUSE];

/// All of them.
pub(crate) const BEFORE: &[Row] = &[
    ("nothing is SET", NEAR_NS, |_| Ok(())),
    ("exact", NEAR_NS, |armed| armed.set(MODE_EXACT)),
    ("exact, kvmclock 59 s ahead", FAR_NS, |armed| {
        armed.saved.header.record.system_time += FAR_NS - LEFT_NS;
        make_consistent(&mut armed.saved);
        armed.set(MODE_EXACT)
    }),
    (
        "exact after a pause, kvmclock as saved",
        NEAR_NS,
        exact_back,
    ),
    ADVANCE_SHORT,
    ("advance past the deadline", FAR_NS, |armed| {
        move_to_other_host(&mut armed.saved);
        armed.set(MODE_ADVANCE)
    }),
    ("advance backwards", NEAR_NS, advance_backwards),
    FREEZE_AFTER_PAUSE,
    ("freeze near the deadline", FAR_NS, |armed| {
        go_on(armed, FAR_NS - LEFT_NS)?;
        move_to_domain(&mut armed.saved, OTHER_DOMAIN);
        armed.set(MODE_FREEZE)
    }),
    (
        "KVM_SET_CLOCK_GUEST, kvmclock 59 s ahead",
        FAR_NS,
        through_vcpu,
    ),
];

/// With timers armed afterwards, before the guest runs.
pub(crate) const AFTER: &[(&str, Act)] = &[
    ("exact, kvmclock an hour ahead", |armed| {
        armed.saved.header.record.system_time += HOUR_NS.unsigned_abs();
        make_consistent(&mut armed.saved);
        armed.set(MODE_EXACT)
    }),
    ("advance by an hour", |armed| {
        move_to_other_host(&mut armed.saved);
        armed.set(MODE_ADVANCE)
    }),
    ("freeze an hour ahead", |armed| {
        go_on(armed, HOUR_NS.unsigned_abs())?;
        move_to_domain(&mut armed.saved, OTHER_DOMAIN);
        armed.set(MODE_FREEZE)
    }),
];

/// Makes the saved clock that of a guest that ran `ns` longer.
fn go_on(armed: &mut Armed, ns: u64) -> Result<()> {
    let ticks = armed.ticks(ns)?;
    add_to_offsets(&mut armed.saved, ticks);
    make_consistent(&mut armed.saved);
    Ok(())
}

/// Saved so long ago that the guest gets near its deadline.
fn advance_short(armed: &mut Armed) -> Result<()> {
    let ahead = armed.deadline_ns() - armed.saved.header.kvmclock_ns;
    move_to_domain(&mut armed.saved, OTHER_DOMAIN);
    armed.saved.header.tai_ns -= i64::try_from(ahead - LEFT_NS)?;
    armed.set(MODE_ADVANCE)
}

/// The host's time of day was stepped back.
fn advance_backwards(armed: &mut Armed) -> Result<()> {
    armed.saved.header.tai_ns += i64::try_from(PAUSE_NS)?;
    armed.saved.header.flags = FLAG_ALLOW_BACKWARDS;
    armed.set(MODE_ADVANCE)
}

fn freeze_after_pause(armed: &mut Armed) -> Result<()> {
    sleep(Duration::from_nanos(PAUSE_NS));
    ensure_not_late(armed)?;
    armed.set(MODE_FREEZE)
}

/// kvmclock goes back by the pause, and the TSC does not.
fn exact_back(armed: &mut Armed) -> Result<()> {
    sleep(Duration::from_nanos(PAUSE_NS));
    ensure_not_late(armed)?;
    let was_ns = armed.saved.header.kvmclock_ns;
    armed.save()?;
    let header = &mut armed.saved.header;
    header.record.tsc_timestamp = header.guest_tsc;
    header.record.system_time = was_ns;
    make_consistent(&mut armed.saved);
    armed.set(MODE_EXACT)
}

/// A slow host may not get here in time.
fn ensure_not_late(armed: &Armed) -> Result<()> {
    let now_ns = get(&armed.vm)?.header.kvmclock_ns;
    ensure!(
        now_ns + 50_000_000 < armed.deadline_ns(),
        "this host is too slow: kvmclock is {now_ns} ns, the deadline is {} ns",
        armed.deadline_ns()
    );
    Ok(())
}

fn through_vcpu(armed: &mut Armed) -> Result<()> {
    let mut record = armed.saved.header.record;
    record.system_time += FAR_NS - LEFT_NS;
    set_clock_guest(&armed.vm.vcpus()[0].fd(), &record).context("KVM_SET_CLOCK_GUEST")
}
