// SPDX-License-Identifier: GPL-2.0-only

//! How far a vCPU's clocks moved, from its TSC transforms and records.

use pvclock::{
    abi::ClockGuest,
    counter::{GuestTsc, HostTsc},
    tsc::TscTransform,
};

/// A vCPU's clocks: functions of the host TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clocks {
    pub(super) transform: TscTransform,
    pub(super) record: ClockGuest,
}

/// By how much clocks moved at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// The TSC against the host's, ticks.
    pub(super) tsc_ticks: i64,
    /// The same, ns.
    pub(super) tsc_ns: i64,
    /// kvmclock against the host TSC, ns.
    pub(super) kvmclock_ns: i64,
    /// kvmclock against the guest's TSC, ns.
    pub(super) against_tsc_ns: i64,
}

impl Clocks {
    /// kvmclock at host TSC `at`, ns; `None` for a record that KVM would not write.
    pub(super) fn kvmclock_ns(&self, at: HostTsc) -> Option<u64> {
        read(&self.record, self.transform.guest_tsc(at))
    }

    /// From these clocks to `after`, at host TSC `at`.
    pub(super) fn moved_to(&self, after: &Self, at: HostTsc) -> Option<Moved> {
        let (before_tsc, tsc) = (self.transform.guest_tsc(at), after.transform.guest_tsc(at));
        let kvmclock = read(&after.record, tsc)?;
        // CAST: Modular differences, which are signed.
        let tsc_ticks = tsc.since(before_tsc) as i64;
        Some(Moved {
            tsc_ticks,
            tsc_ns: ns_of(&after.record, tsc_ticks),
            kvmclock_ns: kvmclock.wrapping_sub(read(&self.record, before_tsc)?) as i64,
            against_tsc_ns: kvmclock.wrapping_sub(read(&self.record, tsc)?) as i64,
        })
    }

    /// The time since the guest's TSC was 0, minus kvmclock, ns.
    pub(super) fn apart_ns(&self) -> i64 {
        let record = &self.record;
        // CAST: A TSC that has not reached 0 yet is a negative one; kvmclock likewise.
        ns_of(record, record.tsc_timestamp.0 as i64).wrapping_sub(record.system_time as i64)
    }
}

/// The record at a guest TSC, also before its timestamp.
fn read(record: &ClockGuest, tsc: GuestTsc) -> Option<u64> {
    Some(record.not_ahead_of(tsc)?.kvmclock_ns(tsc))
}

/// Ticks as ns with the record's slope.
pub(super) fn ns_of(record: &ClockGuest, ticks: i64) -> i64 {
    let slope = ClockGuest {
        tsc_timestamp: GuestTsc(0),
        system_time: 0,
        ..*record
    };
    // CAST: Less than the ticks for any TSC of 1 GHz or more, and of 2^63 ns otherwise.
    let ns = slope.kvmclock_ns(GuestTsc(ticks.unsigned_abs())) as i64;
    if ticks < 0 {
        -ns
    } else {
        ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvclock::{counter::TscOffset, tsc::Scale};

    /// A guest of 1 GHz, whose clocks began at host TSC 1,000, kvmclock 30 ns earlier.
    fn clocks() -> Clocks {
        Clocks {
            transform: TscTransform {
                scale: Scale::IDENTITY,
                offset: TscOffset(1_000u64.wrapping_neg()),
            },
            record: ClockGuest {
                tsc_timestamp: GuestTsc(500),
                system_time: 530,
                tsc_to_system_mul: 1 << 31,
                tsc_shift: 1,
                flags: 1,
                ..ClockGuest::default()
            },
        }
    }

    #[test]
    fn kvmclock_that_stood_still_is_behind() {
        let before = clocks();
        assert_eq!(before.apart_ns(), -30);
        assert_eq!(before.kvmclock_ns(HostTsc(2_000)), Some(1_030));
        // As QEMU's cont: kvmclock continues from 1,030 ns at TSC 6,000.
        let record = ClockGuest {
            tsc_timestamp: GuestTsc(6_000),
            system_time: 1_030,
            ..before.record
        };
        let after = Clocks { record, ..before };
        let expected = Moved {
            tsc_ticks: 0,
            tsc_ns: 0,
            kvmclock_ns: -5_000,
            against_tsc_ns: -5_000,
        };
        assert_eq!(before.moved_to(&after, HostTsc(7_100)), Some(expected));
        assert_eq!(after.apart_ns() - before.apart_ns(), 5_000);
        // The event may be older than the new record.
        assert_eq!(before.moved_to(&after, HostTsc(6_900)), Some(expected));
    }

    #[test]
    fn clocks_that_stood_still_together_stay_together() {
        let before = clocks();
        let offset = before.transform.offset.wrapping_sub(5_000);
        let after = Clocks {
            transform: TscTransform {
                offset,
                ..before.transform
            },
            ..before
        };
        let expected = Moved {
            tsc_ticks: -5_000,
            tsc_ns: -5_000,
            kvmclock_ns: -5_000,
            against_tsc_ns: 0,
        };
        assert_eq!(before.moved_to(&after, HostTsc(9_000)), Some(expected));
        assert_eq!(after.apart_ns(), before.apart_ns());
    }

    #[test]
    fn a_record_of_the_same_function_is_no_move() {
        let before = clocks();
        let record = ClockGuest {
            tsc_timestamp: GuestTsc(700),
            system_time: 730,
            ..before.record
        };
        let after = Clocks { record, ..before };
        let moved = before.moved_to(&after, HostTsc(9_000));
        assert_eq!(moved, Some(Moved::default()));
    }
}
