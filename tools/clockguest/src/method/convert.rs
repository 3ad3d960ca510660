// SPDX-License-Identifier: GPL-2.0-only

//! Converts between [`atomic`] and [`legacy_offset`], for a guest that moves between a host with
//! the `kvm_clock_guest` module and one without it.

use super::{atomic, legacy_offset};
use kvm_bindings::{kvm_clock_data, KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME};
use kvm_clock::VmClock;
use pvclock::{
    abi::{ClockGuest, ClockGuestVcpu, VmClockGuest, PVCLOCK_TSC_STABLE},
    counter::HostTsc,
    rate::{Factor, GuestRate},
    tsc::{Scale, TscTransform},
};

const NSEC_PER_SEC: i64 = 1_000_000_000;

/// The largest difference between a record that [`to_atomic`] rebuilds and the guest's own, ns:
/// neither `KVM_GET_CLOCK`'s value nor a record's `system_time` has fractions of a ns.
pub const REBUILT_RECORD_NS: u32 = 2;

/// The values that the documented procedure saves at the anchor.
pub fn to_legacy_offset(saved: &atomic::Saved) -> legacy_offset::Saved {
    let header = &saved.0.header;
    let scale = Scale::new(header.tsc_ratio, header.tsc_frac_bits).unwrap_or(Scale::IDENTITY);
    let rate = GuestRate {
        host_khz: header.host_tsc_khz,
        scale,
    };
    let mut vcpus = saved.0.vcpus.clone();
    vcpus.sort_by_key(|vcpu| vcpu.vcpu_id);
    // Both conversions wrap, so that they are inverse even for values of an untrusted host.
    let realtime_ns = header
        .tai_ns
        .wrapping_sub(i64::from(header.tai_offset_s) * NSEC_PER_SEC);
    legacy_offset::Saved {
        clock: kvm_clock_data {
            clock: header.kvmclock_ns,
            // CAST: KVM's type for a time after 1970.
            realtime: realtime_ns as u64,
            host_tsc: header.host_tsc.0,
            flags: KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC,
            ..kvm_clock_data::default()
        },
        offsets: vcpus.into_iter().map(|vcpu| vcpu.tsc_offset).collect(),
        // CAST: KVM has kHz in 32 bits.
        tsc_khz: rate.khz() as u32,
    }
}

/// The clocks that the module reads at the same moment, with a record that is rebuilt to
/// [`REBUILT_RECORD_NS`]. The host does not scale the guest's TSC; its TAI - UTC is `tai_offset_s`.
///
/// `None` without a vCPU or a rate.
pub fn to_atomic(saved: &legacy_offset::Saved, tai_offset_s: i32) -> Option<atomic::Saved> {
    let clock = &saved.clock;
    let transform = TscTransform {
        scale: Scale::IDENTITY,
        offset: *saved.offsets.first()?,
    };
    let host_tsc = HostTsc(clock.host_tsc);
    let guest_tsc = transform.guest_tsc(host_tsc);
    // As in KVM: with a master clock, while all TSCs are equal.
    let is_stable = clock.flags & KVM_CLOCK_HOST_TSC != 0
        && saved
            .offsets
            .iter()
            .all(|&offset| offset == saved.offsets[0]);
    let factor = Factor::of_hz(u64::from(saved.tsc_khz) * 1000)?;
    // CAST: As above.
    let realtime_ns = clock.realtime as i64;
    let header = VmClockGuest {
        host_tsc,
        guest_tsc,
        kvmclock_ns: clock.clock,
        tai_ns: realtime_ns.wrapping_add(i64::from(tai_offset_s) * NSEC_PER_SEC),
        tai_offset_s,
        host_tsc_khz: saved.tsc_khz,
        precision_ns: REBUILT_RECORD_NS,
        record: ClockGuest {
            tsc_timestamp: guest_tsc,
            system_time: clock.clock,
            tsc_to_system_mul: factor.mul,
            tsc_shift: factor.shift,
            flags: if is_stable { PVCLOCK_TSC_STABLE } else { 0 },
            ..ClockGuest::default()
        },
        ..VmClockGuest::default()
    };
    let vcpus = saved
        .offsets
        .iter()
        .zip(0..)
        .map(|(&offset, vcpu_id)| ClockGuestVcpu {
            vcpu_id,
            tsc_offset: offset,
            ..ClockGuestVcpu::default()
        });
    Some(atomic::Saved(VmClock {
        header,
        vcpus: vcpus.collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvclock::counter::{GuestTsc, TscOffset};

    fn saved() -> legacy_offset::Saved {
        legacy_offset::Saved {
            clock: kvm_clock_data {
                clock: 77,
                realtime: 1_900_000_000_000_000_000,
                host_tsc: 5_000,
                flags: KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC,
                ..kvm_clock_data::default()
            },
            offsets: [3u64.wrapping_neg(), 9].map(TscOffset).to_vec(),
            tsc_khz: 2_600_000,
        }
    }

    #[test]
    fn conversions_are_inverse() {
        let there = to_atomic(&saved(), 37).unwrap();
        assert_eq!(to_legacy_offset(&there), saved());
    }

    #[test]
    fn rebuilt_record_gives_the_saved_clock() {
        let header = to_atomic(&saved(), 0).unwrap().0.header;
        assert_eq!(header.guest_tsc, GuestTsc(4_997));
        assert_eq!(header.record.kvmclock_ns(header.guest_tsc), 77);
        // One second later, to the rounding of the factor.
        let later = header.guest_tsc.wrapping_add(2_600_000_000);
        let later = header.record.kvmclock_ns(later);
        assert!(later.abs_diff(77 + 1_000_000_000) <= 1, "{later}");
        assert_eq!(header.precision_ns, REBUILT_RECORD_NS);
    }

    #[test]
    fn rebuilt_record_is_stable_if_all_tscs_are_equal() {
        let flags = |offsets: [u64; 2], flags| {
            let mut saved = saved();
            saved.offsets = offsets.map(TscOffset).to_vec();
            saved.clock.flags = flags;
            to_atomic(&saved, 0).unwrap().0.header.record.flags
        };
        let with_tsc = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
        assert_eq!(flags([7, 7], with_tsc), PVCLOCK_TSC_STABLE);
        assert_eq!(flags([7, 8], with_tsc), 0);
        assert_eq!(flags([7, 7], KVM_CLOCK_REALTIME), 0);
    }

    #[test]
    fn clocks_without_vcpus_are_refused() {
        let empty = legacy_offset::Saved {
            offsets: vec![],
            ..saved()
        };
        assert!(to_atomic(&empty, 0).is_none());
    }
}
