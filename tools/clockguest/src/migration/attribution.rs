// SPDX-License-Identifier: GPL-2.0-only

//! Attributes a guest's TSC error after a move to the restore and to the hosts' clocks.
//!
//! The restore continues the guest's TSC from the anchor by the elapsed time of the two kernels'
//! clocks. `clock_trace` observes the instant that it uses, which gives the expected TSC.
//! [`GroundTruth`](super::GroundTruth) gives the error of the clocks' elapsed time. Both parts are
//! computed independently in floating point, with none of the module's code: their sum must be the
//! error that the guest read, which checks all three.

use super::message::{ClockShift, SetAt};
use crate::{
    measure::RawTransform,
    method::{Mode, Saved},
};
use kvm_clock::VmClock;
use pvclock::{
    counter::{GuestTsc, HostTsc},
    plan::knows_tai,
};

const NSEC_PER_SEC: i128 = 1_000_000_000;

/// The source's clocks at one instant, and the guest's TSC rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Anchor {
    pub(super) host_tsc: HostTsc,
    tai_ns: i128,
    tai_offset_s: i32,
    /// Guest TSC rate, Hz.
    hz: f64,
}

impl Anchor {
    /// The anchor of `clock`; `None` for a ratio that no hardware has.
    fn of_clock(clock: &VmClock) -> Option<Self> {
        let header = &clock.header;
        let scale = match (header.tsc_ratio, header.tsc_frac_bits) {
            (0, 0) => 1.0,
            (ratio, bits @ 0..64) => ratio as f64 / (1u64 << bits) as f64,
            _ => return None,
        };
        Some(Self {
            host_tsc: header.host_tsc,
            tai_ns: header.tai_ns.into(),
            tai_offset_s: header.tai_offset_s,
            hz: f64::from(header.host_tsc_khz) * 1000.0 * scale,
        })
    }

    /// The anchor of saved clocks, `None` if they have no time of day; `tai_offset_s` is the
    /// source's.
    pub(super) fn of(saved: &Saved, tai_offset_s: i32) -> Option<Self> {
        match saved {
            Saved::Atomic(saved) => Self::of_clock(&saved.0.clock().ok()?),
            Saved::LegacyOffset(saved) => Some(Self {
                host_tsc: HostTsc(saved.clock.host_tsc),
                // CAST: KVM's type for a time after 1970.
                tai_ns: i128::from(saved.clock.realtime as i64) + seconds(tai_offset_s),
                tai_offset_s,
                hz: f64::from(saved.tsc_khz) * 1000.0,
            }),
            Saved::LegacyMsr(_) | Saved::LuoMsr(_) => None,
        }
    }

    /// Guest ticks from the anchor to `at`, according to the two hosts' clocks.
    fn elapsed_ticks(&self, shift: Option<ClockShift>, at: SetAt) -> f64 {
        self.elapsed_ns(shift, at) as f64 * self.hz / 1e9
    }

    /// The two times are untrusted input.
    fn elapsed_ns(&self, shift: Option<ClockShift>, at: SetAt) -> i128 {
        let by_tai = i128::from(at.tai_ns) - self.tai_ns;
        match shift {
            Some(shift) => by_tai - i128::from(shift.tai_ns),
            None if knows_tai(at.tai_offset_s) == knows_tai(self.tai_offset_s) => by_tai,
            // One host's TAI is UTC.
            None => by_tai - (seconds(at.tai_offset_s) - seconds(self.tai_offset_s)),
        }
    }

    /// The part of the TSC error that the hosts' clocks add, guest ticks, for the time from the
    /// anchor to `at`, when the source's TSC was `source_tsc`; `before` is the transform at the
    /// source.
    pub(super) fn clock_sync_error_ticks(
        &self,
        shift: Option<ClockShift>,
        at: SetAt,
        source_tsc: HostTsc,
        before: RawTransform,
    ) -> Option<f64> {
        let before = before.transform().ok()?;
        let passed = ahead_of(
            before.guest_tsc(source_tsc),
            before.guest_tsc(self.host_tsc),
        );
        Some(self.elapsed_ticks(shift, at) - passed)
    }
}

/// The part of the TSC error that the restore adds, ticks, at the instant `at`; `after` is the
/// transform of the reference vCPU after SET.
///
/// `None` if the transform is invalid, or the reference vCPU does not exist.
pub(super) fn restore_error_ticks(
    saved: &VmClock,
    mode: Mode,
    shift: Option<ClockShift>,
    at: SetAt,
    after: RawTransform,
) -> Option<f64> {
    let header = &saved.header;
    let guest_tsc = after.transform().ok()?.guest_tsc(at.host_tsc);
    let expected = match mode {
        Mode::Freeze => 0.0,
        Mode::Advance => Anchor::of_clock(saved)?.elapsed_ticks(shift, at),
        Mode::Exact => {
            let id = header.ref_vcpu_id;
            let reference = saved.vcpus.iter().find(|vcpu| vcpu.vcpu_id == id)?;
            let before = RawTransform {
                offset: reference.tsc_offset,
                ..after
            };
            ahead_of(
                before.transform().ok()?.guest_tsc(at.host_tsc),
                header.guest_tsc,
            )
        }
    };
    Some(ahead_of(guest_tsc, header.guest_tsc) - expected)
}

/// `count` seconds, ns.
fn seconds(count: i32) -> i128 {
    i128::from(count) * NSEC_PER_SEC
}

/// The difference of two TSC values, ticks.
fn ahead_of(tsc: GuestTsc, other: GuestTsc) -> f64 {
    // CAST: The signed difference of values mod 2^64; f64 is exact enough for errors.
    tsc.since(other) as i64 as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvclock::{
        abi::{ClockGuestVcpu, VmClockGuest},
        counter::TscOffset,
    };

    fn saved() -> VmClock {
        VmClock {
            header: VmClockGuest {
                host_tsc: HostTsc(1_000_000),
                guest_tsc: GuestTsc(900_000),
                tai_ns: 5_000_000_000,
                tai_offset_s: 37,
                host_tsc_khz: 2_600_000,
                ..VmClockGuest::default()
            },
            vcpus: vec![ClockGuestVcpu {
                tsc_offset: TscOffset(100_000u64.wrapping_neg()),
                ..ClockGuestVcpu::default()
            }],
        }
    }

    fn at(host_tsc: u64, tai_ns: i64) -> SetAt {
        SetAt {
            host_tsc: HostTsc(host_tsc),
            tai_ns,
            tai_offset_s: 37,
        }
    }

    fn offset(offset: u64) -> RawTransform {
        RawTransform {
            offset: TscOffset(offset),
            ..RawTransform::default()
        }
    }

    #[test]
    fn advance_is_elapsed_time_times_rate() {
        // 1 ms later on a host whose TSC is 7: 2,600,000 ticks after 900,000.
        let shift = ClockShift {
            tai_ns: -3_000_000_000,
            uncertainty_ns: 0,
        };
        let at = at(7, 2_001_000_000);
        for error in [0, 1, 5] {
            let after = offset(900_000 + 2_600_000 - 7 + error);
            let found = restore_error_ticks(&saved(), Mode::Advance, Some(shift), at, after);
            assert_eq!(found, Some(error as f64));
        }
        // 1 ns is 2.6 ticks: the fraction counts.
        let at = SetAt {
            tai_ns: at.tai_ns + 1,
            ..at
        };
        let after = offset(900_000 + 2_600_002 - 7);
        let found = restore_error_ticks(&saved(), Mode::Advance, Some(shift), at, after).unwrap();
        assert!((found + 0.6).abs() < 1e-6, "{found}");
    }

    #[test]
    fn clocks_part_is_their_error_of_the_elapsed_time() {
        let anchor = Anchor::of_clock(&saved()).unwrap();
        // 1 ms passes; the clocks count 10 ns more.
        let at = at(7, 5_001_000_010);
        let found =
            anchor.clock_sync_error_ticks(None, at, HostTsc(1_000_000 + 2_600_000), offset(5));
        assert_eq!(found, Some(26.0));
    }

    #[test]
    fn freeze_and_exact_use_no_time_of_day() {
        let at = at(4_000_000, 77);
        let after = offset(900_000u64.wrapping_sub(4_000_000).wrapping_add(2));
        let found = restore_error_ticks(&saved(), Mode::Freeze, None, at, after);
        assert_eq!(found, Some(2.0));
        let after = offset(100_000u64.wrapping_neg());
        let found = restore_error_ticks(&saved(), Mode::Exact, None, at, after);
        assert_eq!(found, Some(0.0));
    }

    #[test]
    fn a_host_without_tai_offset_is_compared_in_utc() {
        let at = SetAt {
            host_tsc: HostTsc(7),
            tai_ns: 5_001_000_000 - 37_000_000_000,
            tai_offset_s: 0,
        };
        let after = offset(900_000 + 2_600_000 - 7);
        let found = restore_error_ticks(&saved(), Mode::Advance, None, at, after);
        assert_eq!(found, Some(0.0));
    }
}
