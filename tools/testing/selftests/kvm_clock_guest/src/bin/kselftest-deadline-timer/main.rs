// SPDX-License-Identifier: GPL-2.0-only

//! A TSC-deadline timer that is armed when SET moves the guest's TSC uses the new TSC: it fires not
//! before its deadline, not long after it, and once.
//!
//! How far a SET moves the TSC depends on the deadline that the guest chose, so that a timer which
//! uses the former TSC exceeds all bounds here, however slow the host is.

mod armed;
mod restore;

use armed::{Armed, Guest, MSEC_NS};
use kvm_clock_guest_selftests::{fixture::shift, prelude::*, timer_guest::Wait};

/// A timer armed so far ahead fires in no case unless it uses the new TSC.
const FAR_NS: i64 = 60 * SECOND_NS;
/// How far ahead a timer is armed that must fire later than with the former TSC.
const NEAR_NS: i64 = 300 * MSEC_NS;
/// The time from a SET to a deadline.
const LEFT_NS: i64 = 300 * MSEC_NS;

/// An action while the vCPUs are stopped.
type Act = fn(&mut Armed) -> Result<()>;

/// Name, how far ahead the timer is armed (ns), and what happens then.
type Row = (&'static str, i64, Act);

const FIRING: &[Row] = &[
    ("nothing is set", NEAR_NS, |_| Ok(())),
    ("exact", NEAR_NS, |armed| armed.set(MODE_EXACT)),
    ("exact, other TSC in between", FAR_NS, other_tsc_in_between),
    ("advance short of the deadline", FAR_NS, advance_short),
    ("advance past the deadline", FAR_NS, advance_past),
    ("advance backwards", NEAR_NS, backwards),
    ("freeze after a pause", NEAR_NS, freeze_after_pause),
    ("freeze near the deadline", FAR_NS, freeze_near),
    ("exact, deadline passed meanwhile", NEAR_NS, |armed| {
        armed.sleep_past_deadline()?;
        armed.set(MODE_EXACT)
    }),
    ("advance, deadline passed meanwhile", NEAR_NS, |armed| {
        armed.sleep_past_deadline()?;
        move_to_domain(&mut armed.saved, OTHER_DOMAIN);
        armed.set(MODE_ADVANCE)
    }),
    ("freeze, deadline passed meanwhile", NEAR_NS, |armed| {
        armed.sleep_past_deadline()?;
        armed.set(MODE_FREEZE)
    }),
];

/// Guests that are not [`Guest::PLAIN`].
const GUESTS: &[(&str, Guest)] = &[
    (
        "spinning",
        Guest {
            wait: Wait::Spinning,
            apart_ns: &[0],
            ..Guest::PLAIN
        },
    ),
    (
        "vCPUs with different TSCs",
        Guest {
            apart_ns: &[0, HOUR_NS, -SECOND_NS],
            ..Guest::PLAIN
        },
    ),
    (
        "TSC at 7/5 of the host's rate",
        Guest {
            rate: (7, 5),
            ..Guest::PLAIN
        },
    ),
];

/// For those guests; one action brings the deadline nearer, the other moves it away.
const IN_OTHER_GUESTS: &[Row] = &[
    ("advance short of the deadline", FAR_NS, advance_short),
    ("freeze after a pause", NEAR_NS, freeze_after_pause),
];

/// SETs that must not raise an interrupt without a deadline.
const SETS: &[(&str, Act)] = &[
    ("exact", |armed| armed.set(MODE_EXACT)),
    ("advance", |armed| {
        move_to_other_host(&mut armed.saved);
        armed.set(MODE_ADVANCE)
    }),
    ("freeze", |armed| {
        move_to_domain(&mut armed.saved, OTHER_DOMAIN);
        armed.set(MODE_FREEZE)
    }),
];

fn main() -> ExitCode {
    let scales = require::host_scales();
    let mut cases = Vec::new();
    for &(name, ahead_ns, act) in FIRING {
        cases.push(Case::new(format!("armed, {name}"), move |kvm| {
            fires(kvm, &Guest::PLAIN, ahead_ns, act)
        }));
    }
    for &(kind, guest) in GUESTS {
        if guest.rate != Guest::PLAIN.rate && !scales {
            continue;
        }
        for &(name, ahead_ns, act) in IN_OTHER_GUESTS {
            cases.push(Case::new(format!("{kind}, {name}"), move |kvm| {
                fires(kvm, &guest, ahead_ns, act)
            }));
        }
    }
    cases.extend(restore::cases());
    for &(name, act) in SETS {
        cases.push(Case::new(format!("not armed, {name}"), move |kvm| {
            not_armed(kvm, act)
        }));
        cases.push(Case::new(format!("fired before, {name}"), move |kvm| {
            fired_before(kvm, act)
        }));
    }
    ktap::main(require::clock_guest_of_any_rate, cases)
}

fn fires(kvm: &Kvm, guest: &Guest, ahead_ns: i64, act: Act) -> Result<()> {
    let mut armed = Armed::new(kvm, guest, ahead_ns)?;
    act(&mut armed)?;
    armed.ensure_fires()
}

/// SET has to write the offsets, so that the timer is armed for the former TSC.
fn other_tsc_in_between(armed: &mut Armed) -> Result<()> {
    let ticks = armed.ticks(FAR_NS - LEFT_NS);
    shift(&mut armed.saved, ticks);
    armed.set(MODE_EXACT)
}

/// Saved so long ago that the guest gets near its deadline.
fn advance_short(armed: &mut Armed) -> Result<()> {
    let ahead_ns = armed.until_deadline_ns()?;
    move_to_domain(&mut armed.saved, OTHER_DOMAIN);
    armed.saved.header.tai_ns -= ahead_ns - LEFT_NS;
    armed.set(MODE_ADVANCE)
}

fn advance_past(armed: &mut Armed) -> Result<()> {
    move_to_other_host(&mut armed.saved);
    armed.set(MODE_ADVANCE)
}

/// The host's time of day was stepped back.
fn backwards(armed: &mut Armed) -> Result<()> {
    armed.saved.header.tai_ns += NEAR_NS;
    armed.saved.header.flags = FLAG_ALLOW_BACKWARDS;
    armed.set(MODE_ADVANCE)
}

fn freeze_after_pause(armed: &mut Armed) -> Result<()> {
    // CAST: positive.
    sleep(Duration::from_nanos(NEAR_NS as u64 * 2 / 3));
    armed.set(MODE_FREEZE)
}

/// Saved on a host where the guest's TSC was further.
fn freeze_near(armed: &mut Armed) -> Result<()> {
    let ticks = armed.ticks(FAR_NS - LEFT_NS);
    shift(&mut armed.saved, ticks);
    move_to_domain(&mut armed.saved, OTHER_DOMAIN);
    armed.set(MODE_FREEZE)
}

fn not_armed(kvm: &Kvm, act: Act) -> Result<()> {
    let mut armed = Armed::new(kvm, &Guest::PLAIN, 0)?;
    act(&mut armed)?;
    armed.ensure_no_more(0)
}

/// The TSC goes back to before the deadline: KVM must not re-arm a timer that was disarmed.
fn fired_before(kvm: &Kvm, act: Act) -> Result<()> {
    let mut armed = Armed::new(kvm, &Guest::PLAIN, NEAR_NS)?;
    armed.ensure_fires()?;
    for index in 0..armed.vm.vcpus().len() {
        // So that even mode exact writes the TSC.
        armed.vm.set_tsc_offset(index, TscOffset(0))?;
    }
    act(&mut armed)?;
    armed.ensure_no_more(1)
}
