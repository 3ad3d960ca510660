// SPDX-License-Identifier: GPL-2.0-only

//! The host's clocks, and what of them a case may change for its duration.

use anyhow::{
    ensure,
    Result, //
};
use std::{
    io,
    mem::MaybeUninit, //
};

/// The host's clock `id`, ns.
pub fn now_ns(id: libc::clockid_t) -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` may be written.
    let ret = unsafe { libc::clock_gettime(id, &mut time) };
    assert_eq!(ret, 0, "no clock {id}: {}", io::Error::last_os_error());
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// The host's idea of TAI - UTC; dropping this puts the former one back.
#[derive(Debug)]
pub struct TaiOffset {
    former_s: libc::c_int,
}

impl TaiOffset {
    /// Makes TAI - UTC `seconds`; 0 means that it is not known.
    ///
    /// # Errors
    ///
    /// That of `clock_adjtime()`, which only root may call.
    pub fn set(seconds: i32) -> Result<Self> {
        let former_s = adjust(0, 0)?;
        let this = Self { former_s };
        adjust(libc::ADJ_TAI, seconds)?;
        let now = adjust(0, 0)?;
        ensure!(
            now == seconds,
            "TAI - UTC is {now} s, was set to {seconds} s"
        );
        Ok(this)
    }
}

impl Drop for TaiOffset {
    fn drop(&mut self) {
        if let Err(error) = adjust(libc::ADJ_TAI, self.former_s) {
            eprintln!("cannot put TAI - UTC back to {} s: {error}", self.former_s);
        }
    }
}

/// `clock_adjtime()`; returns TAI - UTC (s) of before.
fn adjust(modes: libc::c_uint, constant: i32) -> io::Result<i32> {
    // SAFETY: The structure holds integers only, and 0 is a value of each.
    let mut timex = unsafe { MaybeUninit::<libc::timex>::zeroed().assume_init() };
    timex.modes = modes;
    timex.constant = constant.into();
    // SAFETY: `timex` may be read and written.
    match unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &mut timex) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(timex.tai),
    }
}
