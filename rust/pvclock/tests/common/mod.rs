// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR BSD-3-Clause

//! A valid request, for the tests to change.

use pvclock::{
    abi::{self, ClockGuest, ClockGuestVcpu, VmClockGuest},
    counter::{HostTsc, TscOffset},
    rate::GuestRate,
    tsc::{Scale, TscTransform},
};

/// kHz of the saved guest's host.
pub(crate) const HOST_KHZ: u32 = 2_596_100;

/// A possible result of GET for a VM of two vCPUs, 7 and 3, of which 7 is the reference.
pub(crate) fn saved(mode: u32, scale: Scale) -> (VmClockGuest, Vec<ClockGuestVcpu>) {
    let transform = TscTransform {
        scale,
        offset: TscOffset(1_000_000_007u64.wrapping_neg()),
    };
    let host_tsc = HostTsc(77_000_000_000_123);
    let guest_tsc = transform.guest_tsc(host_tsc);
    let rate = GuestRate {
        host_khz: HOST_KHZ,
        scale,
    };
    let factor = rate.factor().unwrap();
    let record = ClockGuest {
        tsc_timestamp: guest_tsc.wrapping_sub(5_000_000_000),
        system_time: 12_345_678_901,
        tsc_to_system_mul: factor.mul,
        tsc_shift: factor.shift,
        flags: abi::PVCLOCK_TSC_STABLE,
        ..Default::default()
    };
    let header = VmClockGuest {
        size: size_of::<VmClockGuest>() as u32,
        mode,
        nr_vcpus: 2,
        ref_vcpu_id: 7,
        host_tsc,
        guest_tsc,
        kvmclock_ns: record.kvmclock_ns(guest_tsc),
        tai_ns: 1_795_000_000_000_000_000,
        tai_offset_s: 37,
        monotonic_raw_ns: 29_660_000_000_000,
        host_tsc_khz: HOST_KHZ,
        tsc_ratio: scale.ratio(),
        tsc_frac_bits: scale.frac_bits(),
        record,
        ..Default::default()
    };
    let vcpu = |vcpu_id, tsc_offset| ClockGuestVcpu {
        vcpu_id,
        tsc_offset,
        ..Default::default()
    };
    let vcpus = vec![
        vcpu(7, transform.offset),
        vcpu(3, transform.offset.wrapping_add(42)),
    ];
    (header, vcpus)
}
