// SPDX-License-Identifier: GPL-2.0-only

//! Suspends the host.

use kvm_clock_guest_selftests::{host_clock::now_ns, prelude::*};
use std::{fs, io, str::FromStr, thread};
use thiserror::Error;

const STATE: &str = "/sys/power/state";
const MEM_SLEEP: &str = "/sys/power/mem_sleep";

/// A suspension of the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sleep {
    /// Host TSC just before.
    pub(crate) before: HostTsc,
    /// Host TSC just after.
    pub(crate) after: HostTsc,
    /// Time between them that the host was awake, ns.
    pub(crate) awake_ns: i64,
    /// Time between them, ns.
    pub(crate) passed_ns: i64,
}

/// The host TSC is not below its former value: KVM may have seen no step back.
#[derive(Debug, Error)]
#[error("the host TSC kept counting, or the host took too long to wake up: {0:?}")]
pub(crate) struct NotBehind(Sleep);

impl Sleep {
    /// Whether the TSC, which has more than a tick per ns, did not count all the time.
    fn is_restarted(&self) -> bool {
        let counted = self.after.0.checked_sub(self.before.0);
        counted.is_none_or(|ticks| ticks < self.awake_ns.unsigned_abs())
    }
}

/// Makes "mem" mean ACPI's S3.
pub(crate) fn prepare() -> Result<()> {
    let states = fs::read_to_string(STATE).unwrap_or_default();
    if !states.split_whitespace().any(|state| state == "mem") {
        bail!(Skip(format!(
            "{STATE} has {states:?}: no suspend to memory"
        )));
    }
    fs::write(MEM_SLEEP, "deep").context(MEM_SLEEP)
}

/// Suspends the host; returns when it was woken up.
fn sleep() -> Result<Sleep> {
    let clocks = || {
        (
            rdtsc_ordered(),
            now_ns(libc::CLOCK_MONOTONIC),
            now_ns(libc::CLOCK_BOOTTIME),
        )
    };
    let (before, awake, booted) = clocks();
    fs::write(STATE, "mem").context(STATE)?;
    let (after, awake_later, booted_later) = clocks();
    let slept = Sleep {
        before,
        after,
        awake_ns: awake_later - awake,
        passed_ns: booted_later - booted,
    };
    note!(
        "{slept:?}, asleep for {} ns by CLOCK_BOOTTIME",
        slept.passed_ns - slept.awake_ns
    );
    Ok(slept)
}

/// What the host TSC does during the sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TscInSleep {
    CountsOn,
    Restarts,
}

impl FromStr for TscInSleep {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        match text {
            "counts-on" => Ok(Self::CountsOn),
            "restarts" => Ok(Self::Restarts),
            _ => Err(io::Error::other("neither counts-on nor restarts")),
        }
    }
}

/// Suspends the host, whose TSC must behave as in `tsc`.
pub(crate) fn sleep_as(tsc: TscInSleep) -> Result<Sleep> {
    match tsc {
        TscInSleep::CountsOn => sleep_counting(),
        TscInSleep::Restarts => sleep_restarting(),
    }
}

/// Suspends the host, whose TSC must keep counting.
pub(crate) fn sleep_counting() -> Result<Sleep> {
    let slept = sleep()?;
    ensure!(!slept.is_restarted(), "the host TSC restarted: {slept:?}");
    Ok(slept)
}

/// Suspends the host, whose TSC must restart; fails with [`NotBehind`] if it does not.
pub(crate) fn sleep_restarting() -> Result<Sleep> {
    /// More ticks than usually pass until the host is awake.
    const ENOUGH: HostTsc = HostTsc(8_000_000_000);

    wait_for_tsc(ENOUGH);
    let slept = sleep()?;
    ensure!(slept.before.is_ahead_of(slept.after), NotBehind(slept));
    Ok(slept)
}

/// Returns when the host TSC is at `least`.
pub(crate) fn wait_for_tsc(least: HostTsc) {
    while least.is_ahead_of(rdtsc_ordered()) {
        thread::sleep(Duration::from_millis(10));
    }
}
