// SPDX-License-Identifier: GPL-2.0-only

//! The host's own clock, read together with its TSC.

use crate::host::rdtsc_ordered;
use pvclock::counter::HostTsc;
use std::io;

/// How often the two are read; the tightest reading counts.
const TRIES: usize = 20;

/// `CLOCK_MONOTONIC` at a host TSC.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostTime {
    pub(super) tsc: HostTsc,
    /// ns.
    pub(super) monotonic_ns: i64,
    /// The TSC was read by so many ticks before and after.
    pub(super) window_ticks: u64,
}

impl HostTime {
    pub(super) fn now() -> io::Result<Self> {
        let mut best = Self::read()?;
        for _ in 1..TRIES {
            let other = Self::read()?;
            if other.window_ticks < best.window_ticks {
                best = other;
            }
        }
        Ok(best)
    }

    fn read() -> io::Result<Self> {
        let mut now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let before = rdtsc_ordered();
        // SAFETY: `now` is valid for writes.
        let done = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
        let window = rdtsc_ordered().since(before);
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            tsc: before.wrapping_add(window / 2),
            monotonic_ns: now.tv_sec * 1_000_000_000 + now.tv_nsec,
            window_ticks: window.div_ceil(2),
        })
    }
}
