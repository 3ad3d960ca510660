// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether the TSC of this host is the one that a guest was saved by.

use crate::{counter::HostTsc, error::Error, policy::Mode, VmClock};
use pvclock::plan::ClockSnapshot;
use std::{
    arch::x86_64::{_mm_lfence, _rdtsc},
    fs,
};

/// Readings of the host's clocks, of which the shortest counts.
const TRIES: u32 = 10;

const NSEC_PER_SEC: i64 = 1_000_000_000;

/// The identity of a host: Linux's ID of its boot.
///
/// # Example
///
/// ```
/// use kvm_clock::HostId;
///
/// // In a jail without /proc: what somebody outside has read.
/// let host = HostId::new("5c3cd9f5-4d75-4d0b-8ffb-1f9cc4cba9ee\n");
/// assert_eq!(host.boot_id(), "5c3cd9f5-4d75-4d0b-8ffb-1f9cc4cba9ee");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(transparent)
)]
pub struct HostId {
    boot_id: String,
}

impl HostId {
    /// This host, from `/proc/sys/kernel/random/boot_id`.
    ///
    /// # Errors
    ///
    /// [`Error::HostId`] if the file cannot be read, e.g. in a jail without `/proc`.
    ///
    /// # Example
    ///
    /// ```
    /// assert_eq!(kvm_clock::HostId::read().unwrap(), kvm_clock::HostId::read().unwrap());
    /// ```
    pub fn read() -> Result<Self, Error> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        boot_id.map(Self::new).map_err(Error::HostId)
    }

    /// The host whose boot has this ID.
    pub fn new(boot_id: impl AsRef<str>) -> Self {
        Self {
            boot_id: boot_id.as_ref().trim().to_owned(),
        }
    }

    /// The ID.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Whether both are the same boot of one host.
    ///
    /// # Example
    ///
    /// ```
    /// use kvm_clock::HostId;
    ///
    /// assert!(HostId::new("a").is_same_boot(&HostId::new("a")));
    /// assert!(!HostId::new("a").is_same_boot(&HostId::new("b")));
    /// // Unknown is not equal to unknown.
    /// assert!(!HostId::new("").is_same_boot(&HostId::new("")));
    /// ```
    pub fn is_same_boot(&self, other: &Self) -> bool {
        self == other && !self.boot_id.is_empty()
    }

    /// The mode for a guest that moves between the two hosts: exact if they are one. A
    /// [restore](crate::SavedClocks::restore) also compares the clocks.
    ///
    /// # Example
    ///
    /// ```
    /// use kvm_clock::{HostId, Mode};
    ///
    /// assert_eq!(HostId::new("a").mode_to(&HostId::new("b")), Mode::Advance);
    /// ```
    pub fn mode_to(&self, other: &Self) -> Mode {
        if self.is_same_boot(other) {
            Mode::Exact
        } else {
            Mode::Advance
        }
    }
}

/// What the comparison of two hosts showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum HostCheck {
    /// It is the same boot, and the TSC has counted on.
    Same,
    /// The boot has another ID.
    OtherBoot,
    /// The boot has the same ID, but the TSC has not counted as `CLOCK_MONOTONIC_RAW` has: it was
    /// reset, or this host is a copy of the other.
    TscDiffers {
        /// How far the TSC is ahead of what it should be, ns.
        by_ns: i64,
    },
    /// The policy named the mode, so the hosts were not compared.
    NotCompared,
}

impl HostCheck {
    /// Compares the host that saved `clock`, after it had slept for `asleep_ns` since its boot,
    /// with this one.
    pub(crate) fn new(there: &HostId, here: &HostId, clock: &VmClock, asleep_ns: i64) -> Self {
        if !there.is_same_boot(here) {
            return Self::OtherBoot;
        }
        Self::of_clocks(clock, asleep_ns, &now(), asleep_since_boot_ns())
    }

    fn of_clocks(clock: &VmClock, asleep_ns: i64, now: &ClockSnapshot, asleep_now_ns: i64) -> Self {
        /// Largest difference of the rates of TSC and raw clock, as a divisor: 1000 ppm. The raw
        /// clock need not be derived from the TSC.
        const DRIFT: i128 = 1000;
        /// Largest error of the readings, ns.
        const SLACK_NS: i128 = 1_000_000;

        let saved = &clock.header;
        let khz = i128::from(saved.host_tsc_khz.max(1));
        // CAST: The sign of the wrapped difference.
        let ticks = now.host_tsc.since(saved.host_tsc) as i64;
        let by_tsc = i128::from(ticks) * 1_000_000 / khz;
        // The raw clock stands still while the host sleeps.
        let by_raw = i128::from(now.monotonic_raw_ns) - i128::from(saved.monotonic_raw_ns)
            + i128::from(asleep_now_ns)
            - i128::from(asleep_ns);
        let window = i128::from(now.precision_ns(saved.host_tsc_khz));
        let ahead = by_tsc - by_raw;
        if ticks < 0 || ahead.abs() > by_raw.abs() / DRIFT + SLACK_NS + window {
            // CAST: Clamped.
            let by_ns = ahead.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
            return Self::TscDiffers { by_ns };
        }
        Self::Same
    }
}

/// This host's clocks now.
pub(crate) fn now() -> ClockSnapshot {
    let read = |_| {
        let before = rdtsc();
        let tai_ns = clock_ns(libc::CLOCK_TAI);
        let monotonic_raw_ns = clock_ns(libc::CLOCK_MONOTONIC_RAW);
        let read_window = rdtsc().since(before);
        ClockSnapshot {
            host_tsc: before.wrapping_add(read_window / 2),
            tai_ns,
            tai_offset_s: 0,
            monotonic_raw_ns,
            read_window,
        }
    };
    let shortest = (0..TRIES).map(read).min_by_key(|read| read.read_window);
    ClockSnapshot {
        tai_offset_s: tai_offset_s(),
        ..shortest.unwrap_or_default()
    }
}

/// TAI - UTC of the kernel, s: the difference of two clocks, as `adjtimex()` is a system call that
/// a VMM's filter may not have.
fn tai_offset_s() -> i32 {
    let tai_minus_utc_ns = clock_ns(libc::CLOCK_TAI) - clock_ns(libc::CLOCK_REALTIME);
    // The second reading is a little later; CAST: some tens.
    ((tai_minus_utc_ns + NSEC_PER_SEC / 2).div_euclid(NSEC_PER_SEC)) as i32
}

/// How long the host has slept since its boot, ns.
pub(crate) fn asleep_since_boot_ns() -> i64 {
    // The thread may be preempted between two readings: the shortest try has the least error.
    let read = |_| {
        let before = clock_ns(libc::CLOCK_MONOTONIC);
        let boottime = clock_ns(libc::CLOCK_BOOTTIME);
        let window = clock_ns(libc::CLOCK_MONOTONIC) - before;
        (window, boottime - before - window / 2)
    };
    let shortest = (0..TRIES).map(read).min();
    shortest.map_or(0, |(_, asleep_ns)| asleep_ns)
}

/// The host's TSC, ordered against all instructions before and after it.
pub(crate) fn rdtsc() -> HostTsc {
    // SAFETY: Both instructions are part of x86-64 and access no memory.
    unsafe {
        _mm_lfence();
        let tsc = _rdtsc();
        _mm_lfence();
        HostTsc(tsc)
    }
}

fn clock_ns(id: libc::clockid_t) -> i64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is valid for writes. The call cannot fail: Linux has these clocks.
    unsafe { libc::clock_gettime(id, &mut now) };
    now.tv_sec * NSEC_PER_SEC + now.tv_nsec
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::VmClockGuest;

    const KHZ: u32 = 2_000_000;
    const SECOND: i64 = NSEC_PER_SEC;

    /// The host slept for 5 s before the save, and for `asleep_s` after it; the raw clock counted
    /// `raw_s`, and the TSC `tsc_s`.
    fn check(tsc_s: f64, raw_s: i64, asleep_s: i64) -> HostCheck {
        let saved = VmClock {
            header: VmClockGuest {
                host_tsc: HostTsc(u64::MAX - 5),
                host_tsc_khz: KHZ,
                monotonic_raw_ns: 7 * SECOND,
                ..VmClockGuest::default()
            },
            vcpus: vec![],
        };
        let ticks = (tsc_s * f64::from(KHZ) * 1000.0) as i64;
        let now = ClockSnapshot {
            // CAST: TSC arithmetic is mod 2^64.
            host_tsc: saved.header.host_tsc.wrapping_add(ticks as u64),
            monotonic_raw_ns: (7 + raw_s) * SECOND,
            ..ClockSnapshot::default()
        };
        HostCheck::of_clocks(&saved, 5 * SECOND, &now, (5 + asleep_s) * SECOND)
    }

    #[test]
    fn a_tsc_that_counts_on_is_the_same_also_over_a_sleep() {
        assert_eq!(check(10.0, 10, 0), HostCheck::Same);
        assert_eq!(check(10.0, 4, 6), HostCheck::Same);
        assert_eq!(check(10.009, 10, 0), HostCheck::Same);
    }

    #[test]
    fn a_tsc_that_was_reset_or_is_a_copys_is_another() {
        let differs = |found| matches!(found, HostCheck::TscDiffers { .. });
        assert!(differs(check(10.02, 10, 0)));
        assert!(differs(check(4.0, 4, 6)));
        assert!(differs(check(-3.0, 10, 0)));
        // The TSC counts mod 2^64; behind is behind, whatever the raw clock says.
        assert!(differs(check(-0.0005, 0, 0)));
    }

    #[test]
    fn this_host_is_itself() {
        let before = now();
        let saved = VmClock {
            header: VmClockGuest {
                host_tsc: before.host_tsc,
                host_tsc_khz: 1,
                monotonic_raw_ns: before.monotonic_raw_ns,
                ..VmClockGuest::default()
            },
            vcpus: vec![],
        };
        let host = HostId::read().unwrap();
        let other = HostId::new("another");
        let check = |there, here| HostCheck::new(there, here, &saved, asleep_since_boot_ns());
        assert_eq!(check(&other, &host), HostCheck::OtherBoot);
        // 1 kHz is not the rate of any host.
        assert!(matches!(check(&host, &host), HostCheck::TscDiffers { .. }));
    }
}
