// SPDX-License-Identifier: GPL-2.0-only

//! The host's clocks, and the temporary changes that cases make to them.

use crate::ensure_eq;
use anyhow::Result;
use clockguest::host::{clock_ns, ClockAndTsc};
use std::{io, mem::MaybeUninit, time::Duration};

/// Readings, of which the narrowest counts.
pub const TRIES: u32 = 100;

/// The host's clock `id`, ns. Panics if there is none.
pub fn now_ns(id: libc::clockid_t) -> i64 {
    clock_ns(id).unwrap_or_else(|error| panic!("no clock {id}: {error}"))
}

/// The narrowest of some readings of the host's clock `id`.
pub fn clock_and_tsc(id: libc::clockid_t) -> io::Result<ClockAndTsc> {
    ClockAndTsc::tightest(id, TRIES)
}

/// The host's TAI - UTC; dropping this restores the former value.
#[derive(Debug)]
pub struct TaiOffset {
    former_s: libc::c_int,
}

impl TaiOffset {
    /// Sets TAI - UTC to `seconds`; 0 means unknown.
    pub fn set(seconds: i32) -> Result<Self> {
        let former_s = adjust(0, 0)?;
        let this = Self { former_s };
        adjust(libc::ADJ_TAI, seconds)?;
        let now = adjust(0, 0)?;
        ensure_eq!(now, seconds, "TAI - UTC, s");
        Ok(this)
    }
}

impl Drop for TaiOffset {
    fn drop(&mut self) {
        if let Err(error) = adjust(libc::ADJ_TAI, self.former_s) {
            eprintln!("cannot restore TAI - UTC to {} s: {error}", self.former_s);
        }
    }
}

/// The host's wall clock; dropping this restores it, with an error of some us.
#[derive(Debug)]
pub struct WallClock {
    /// `CLOCK_REALTIME` - `CLOCK_MONOTONIC`, ns.
    former_ns: i64,
    former_status: libc::c_int,
}

/// A leap second at the end of the UTC day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leap {
    /// 23:59:60 is inserted: TAI - UTC grows.
    Insert,
    /// 23:59:59 is left out: TAI - UTC shrinks.
    Delete,
}

impl WallClock {
    /// Stores the present wall clock.
    pub fn hold() -> io::Result<Self> {
        Ok(Self {
            former_ns: wall_minus_monotonic_ns(),
            former_status: adjtime(&mut timex(0))?.status,
        })
    }

    /// Steps it, and TAI with it, by exactly `us`, but not the monotonic clocks.
    pub fn step_us(&self, us: i64) -> io::Result<()> {
        const SECOND_US: i64 = 1_000_000;

        let mut timex = timex(libc::ADJ_SETOFFSET);
        timex.time.tv_sec = us.div_euclid(SECOND_US);
        timex.time.tv_usec = us.rem_euclid(SECOND_US);
        adjtime(&mut timex).map(drop)
    }

    /// Sets it to `before` the end of a UTC day with a `leap` second. The kernel prepares that at
    /// the beginning of a second, and executes it no earlier than a second later.
    pub fn set_before(&self, before: Duration, leap: Leap) -> io::Result<()> {
        const DAY_S: i64 = 24 * 3600;
        /// How much of `before` may pass until the function returns.
        const SLACK: Duration = Duration::from_millis(250);

        let flag = match leap {
            Leap::Insert => libc::STA_INS,
            Leap::Delete => libc::STA_DEL,
        };
        let today_s = now_ns(libc::CLOCK_REALTIME) / 1_000_000_000;
        let end = Duration::from_secs((today_s - today_s % DAY_S + DAY_S).unsigned_abs());
        let time = end - before;
        loop {
            set_wall_clock(time)?;
            self.forget_leap_seconds()?;
            set_status(self.former_status | libc::STA_UNSYNC | flag)?;
            let latest = time + SLACK;
            // CAST: Below 292 years.
            if now_ns(libc::CLOCK_REALTIME) < latest.as_nanos() as i64 {
                return Ok(());
            }
        }
    }

    /// Makes the kernel forget a future or past leap second, which the end of a phase lock does.
    /// The clock is marked as not synchronised, or the kernel would set the hardware clock.
    fn forget_leap_seconds(&self) -> io::Result<()> {
        set_status(libc::STA_UNSYNC | libc::STA_PLL)?;
        set_status(libc::STA_UNSYNC)
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        let step_us = (self.former_ns - wall_minus_monotonic_ns()) / 1_000;
        let result = self
            .forget_leap_seconds()
            .and_then(|()| self.step_us(step_us))
            .and_then(|()| set_status(self.former_status));
        if let Err(error) = result {
            eprintln!("cannot restore the wall clock by {step_us} us: {error}");
        }
    }
}

fn set_wall_clock(time: Duration) -> io::Result<()> {
    let time = libc::timespec {
        // CAST: some 10^9 s.
        tv_sec: time.as_secs() as i64,
        tv_nsec: time.subsec_nanos().into(),
    };
    // SAFETY: `time` may be read.
    match unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_status(status: libc::c_int) -> io::Result<()> {
    let mut timex = timex(libc::ADJ_STATUS);
    timex.status = status;
    adjtime(&mut timex).map(drop)
}

fn wall_minus_monotonic_ns() -> i64 {
    let before = now_ns(libc::CLOCK_MONOTONIC);
    let wall = now_ns(libc::CLOCK_REALTIME);
    let after = now_ns(libc::CLOCK_MONOTONIC);
    wall - before - (after - before) / 2
}

/// `clock_adjtime()`; returns TAI - UTC (s) of before.
fn adjust(modes: libc::c_uint, constant: i32) -> io::Result<i32> {
    let mut timex = timex(modes);
    timex.constant = constant.into();
    Ok(adjtime(&mut timex)?.tai)
}

fn timex(modes: libc::c_uint) -> libc::timex {
    // SAFETY: The structure holds integers only, and 0 is a value of each.
    let mut timex = unsafe { MaybeUninit::<libc::timex>::zeroed().assume_init() };
    timex.modes = modes;
    timex
}

fn adjtime(timex: &mut libc::timex) -> io::Result<&libc::timex> {
    // SAFETY: `timex` may be read and written.
    match unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, timex) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(timex),
    }
}
