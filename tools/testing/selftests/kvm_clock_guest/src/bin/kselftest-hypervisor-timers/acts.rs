// SPDX-License-Identifier: GPL-2.0-only

//! What is done to a stopped guest.

use crate::armed::Armed;
use anyhow::{ensure, Context, Result};
use kvm_clock::set_clock_guest;
use kvm_clock_guest_selftests::{
    fixture::{make_consistent, move_to_domain},
    time::HOUR_NS,
};
use pvclock::abi::{FLAG_ALLOW_BACKWARDS, MODE_ADVANCE, MODE_EXACT, MODE_FREEZE};
use std::{thread::sleep, time::Duration};

/// A timer armed so far ahead fires in no case unless it goes by the new clock.
const FAR_NS: u64 = 60_000_000_000;
/// How far ahead a timer is armed that is to fire later than it would by the former clock.
pub(crate) const NEAR_NS: u64 = 1_000_000_000;
/// What a SET leaves until a timer is due.
const LEFT_NS: u64 = 1_000_000_000;
/// How long the guest is stopped, or goes back, with a timer armed that is near.
const PAUSE_NS: u64 = 600_000_000;
/// A host TSC of another domain, far ahead of any of here.
const OTHER_DOMAIN: u64 = 1 << 60;

/// What is done.
pub(crate) type Act = fn(&mut Armed) -> Result<()>;

/// Name, how far ahead the timers are armed (ns), and what is done then.
pub(crate) type Row = (&'static str, u64, Act);

const ADVANCE_SHORT: Row = ("ADVANCE short of the deadline", FAR_NS, advance_short);
const FREEZE_AFTER_PAUSE: Row = ("FREEZE after a pause", NEAR_NS, freeze_after_pause);

/// One takes the deadline nearer, the other away.
pub(crate) const SHORT_LIST: &[Row] = &[ADVANCE_SHORT, FREEZE_AFTER_PAUSE];

/// All of them.
pub(crate) const BEFORE: &[Row] = &[
    ("nothing is SET", NEAR_NS, |_| Ok(())),
    ("EXACT", NEAR_NS, |armed| armed.set(MODE_EXACT)),
    ("EXACT, kvmclock 59 s ahead", FAR_NS, |armed| {
        armed.saved.header.record.system_time += FAR_NS - LEFT_NS;
        make_consistent(&mut armed.saved);
        armed.set(MODE_EXACT)
    }),
    (
        "EXACT after a pause, kvmclock as saved",
        NEAR_NS,
        exact_back,
    ),
    ADVANCE_SHORT,
    ("ADVANCE past the deadline", FAR_NS, |armed| {
        move_to_domain(&mut armed.saved, OTHER_DOMAIN);
        armed.saved.header.tai_ns -= HOUR_NS;
        armed.set(MODE_ADVANCE)
    }),
    ("ADVANCE backwards", NEAR_NS, advance_backwards),
    FREEZE_AFTER_PAUSE,
    ("FREEZE near the deadline", FAR_NS, |armed| {
        go_on(armed, FAR_NS - LEFT_NS)?;
        move_to_domain(&mut armed.saved, OTHER_DOMAIN);
        armed.set(MODE_FREEZE)
    }),
    ("KVM_SET_CLOCK_GUEST, kvmclock 59 s ahead", FAR_NS, by_vcpu),
];

/// With timers armed afterwards, before the guest runs.
pub(crate) const AFTER: &[(&str, Act)] = &[
    ("EXACT, kvmclock an hour ahead", |armed| {
        armed.saved.header.record.system_time += HOUR_NS.unsigned_abs();
        make_consistent(&mut armed.saved);
        armed.set(MODE_EXACT)
    }),
    ("ADVANCE by an hour", |armed| {
        move_to_domain(&mut armed.saved, OTHER_DOMAIN);
        armed.saved.header.tai_ns -= HOUR_NS;
        armed.set(MODE_ADVANCE)
    }),
    ("FREEZE an hour ahead", |armed| {
        go_on(armed, HOUR_NS.unsigned_abs())?;
        move_to_domain(&mut armed.saved, OTHER_DOMAIN);
        armed.set(MODE_FREEZE)
    }),
];

/// Makes the saved clock that of a guest that has gone on by so many ns.
fn go_on(armed: &mut Armed, ns: u64) -> Result<()> {
    let ticks = armed.ticks(ns)?;
    for vcpu in &mut armed.saved.vcpus {
        vcpu.tsc_offset = vcpu.tsc_offset.wrapping_add(ticks);
    }
    make_consistent(&mut armed.saved);
    Ok(())
}

/// Saved as long ago as takes the guest near its deadline.
fn advance_short(armed: &mut Armed) -> Result<()> {
    let ahead = armed.due_ns() - armed.saved.header.kvmclock_ns;
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
    ensure_not_due(armed)?;
    armed.set(MODE_FREEZE)
}

/// kvmclock goes back by the pause, by the record alone.
fn exact_back(armed: &mut Armed) -> Result<()> {
    sleep(Duration::from_nanos(PAUSE_NS));
    ensure_not_due(armed)?;
    let was_ns = armed.saved.header.kvmclock_ns;
    armed.save()?;
    let header = &mut armed.saved.header;
    header.record.tsc_timestamp = header.guest_tsc;
    header.record.system_time = was_ns;
    make_consistent(&mut armed.saved);
    armed.set(MODE_EXACT)
}

/// A slow host may not get here in time.
fn ensure_not_due(armed: &Armed) -> Result<()> {
    let now_ns = armed.machine.clock()?.header.kvmclock_ns;
    ensure!(
        now_ns + 50_000_000 < armed.due_ns(),
        "this host is too slow: kvmclock is {now_ns} ns, the timers are due at {} ns",
        armed.due_ns()
    );
    Ok(())
}

fn by_vcpu(armed: &mut Armed) -> Result<()> {
    let mut record = armed.saved.header.record;
    record.system_time += FAR_NS - LEFT_NS;
    set_clock_guest(&armed.machine.vcpus()[0].fd(), &record).context("KVM_SET_CLOCK_GUEST")
}
