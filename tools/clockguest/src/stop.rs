// SPDX-License-Identifier: GPL-2.0-only

//! Ctrl-C and other terminating signals, which end a command that runs until then.

use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use vmm_sys_util::signal::register_signal_handler;

/// A signal has requested the end.
static STOP: AtomicBool = AtomicBool::new(false);

/// Makes terminating signals request the end instead.
pub(crate) fn catch_signals() -> Result<()> {
    extern "C" fn handler(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        STOP.store(true, Ordering::Relaxed);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        register_signal_handler(signal, handler).context("sigaction")?;
    }
    Ok(())
}

/// Whether a signal has requested the end.
pub(crate) fn is_requested() -> bool {
    STOP.load(Ordering::Relaxed)
}
