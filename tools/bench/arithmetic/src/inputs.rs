// SPDX-License-Identifier: GPL-2.0-only

//! Inputs of the conversions: guests of 0.5 to 5 GHz, saved and restored within a day.

use crate::pvclock::{
    abi::{self, ClockGuest, VmClockGuest},
    counter::{GuestTsc, HostTsc, TscOffset},
    plan::ClockSnapshot,
    rate::{Factor, GuestRate},
    request::SetRequest,
    tsc::{Scale, TscTransform},
};

/// The number of inputs to measure: few enough to stay in a first-level cache.
pub const MEASURED: u64 = 32;

/// Fraction bits of an SVM ratio, as in `c/conversions.c`.
const FRAC_BITS: u32 = 32;

/// The input of both languages: `struct shared` of `c/conversions.c`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// kvmclock's record.
    pub record: ClockGuest,
    /// A guest TSC at or after the record's.
    pub guest_tsc: GuestTsc,
    /// A host TSC.
    pub host_tsc: HostTsc,
    /// TSC offset.
    pub offset: TscOffset,
    /// Scaling ratio of a guest with the rate of its host.
    pub ratio_identity: u64,
    /// Scaling ratio of a guest with another rate.
    pub ratio_scaled: u64,
    /// The host's TSC rate, Hz.
    pub hz: u64,
    /// Time elapsed, ns.
    pub ns: u64,
}

/// Arguments of each conversion.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// The part that C reads.
    pub shared: Shared,
    /// The TSC of `shared` with `ratio_identity`.
    pub identity: TscTransform,
    /// The TSC of `shared` with `ratio_scaled`.
    pub scaled: TscTransform,
    /// `shared.hz`, unscaled.
    pub rate: GuestRate,
    /// The same, scaled.
    pub rate_scaled: GuestRate,
    /// A SET on the same host.
    pub exact: SetRequest,
    /// A SET on another host.
    pub advance: SetRequest,
    /// The same, with a scaled TSC.
    pub advance_scaled: SetRequest,
    /// The same, with [`abi::FLAG_RESLOPE`] and a record of another slope.
    pub advance_resloped: SetRequest,
    /// The time of these SETs.
    pub now: ClockSnapshot,
}

/// splitmix64: any seed gives independent numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

impl Input {
    /// The input of `seed`, always the same.
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed << 32);
        let host_khz = 500_000 + random.below(4_500_000) as u32;
        let ratio_identity = 1u64 << FRAC_BITS;
        // Half to twice the host's rate.
        let ratio_scaled = ratio_identity / 2 + random.below(ratio_identity / 2 * 3);
        let scale = |ratio| Scale::new(ratio, FRAC_BITS).expect("a ratio is not 0");
        let offset = TscOffset(random.next());
        let host_tsc = HostTsc(random.next() >> 8);
        let identity = TscTransform {
            scale: scale(ratio_identity),
            offset,
        };
        let scaled = TscTransform {
            scale: scale(ratio_scaled),
            offset,
        };
        // Up to a day.
        let ns = random.below(86_400_000_000_000);
        let guest_tsc = identity.guest_tsc(host_tsc);
        let factor = Factor::of_hz(u64::from(host_khz) * 1000).expect("a rate is not 0");
        let tsc_timestamp = guest_tsc.wrapping_sub(random.next() >> 16);
        let system_time = random.next() >> 8;
        let with_factor = |factor: Factor| ClockGuest {
            tsc_timestamp,
            system_time,
            tsc_to_system_mul: factor.mul,
            tsc_shift: factor.shift,
            ..Default::default()
        };
        let record = with_factor(factor);
        let header = VmClockGuest {
            size: size_of::<VmClockGuest>() as u32,
            host_tsc,
            guest_tsc,
            kvmclock_ns: record.kvmclock_ns(guest_tsc),
            tai_ns: 1_795_000_000_000_000_000,
            tai_offset_s: 37,
            host_tsc_khz: host_khz,
            record,
            ..Default::default()
        };
        let request = |mode, scale: Scale, flags, record| {
            SetRequest::new(VmClockGuest {
                mode,
                flags,
                record,
                tsc_ratio: scale.ratio(),
                tsc_frac_bits: scale.frac_bits(),
                ..header
            })
            .expect("a request as GET would return it")
        };
        let rate = |scale| GuestRate { host_khz, scale };
        let rate_scaled = rate(scaled.scale);
        let record_scaled = with_factor(rate_scaled.factor().expect("a rate has a factor"));
        Self {
            shared: Shared {
                record,
                guest_tsc,
                host_tsc,
                offset,
                ratio_identity,
                ratio_scaled,
                hz: u64::from(host_khz) * 1000,
                ns,
            },
            identity,
            scaled,
            rate: rate(Scale::IDENTITY),
            rate_scaled,
            exact: request(abi::MODE_EXACT, Scale::IDENTITY, 0, record),
            advance: request(abi::MODE_ADVANCE, Scale::IDENTITY, 0, record),
            advance_scaled: request(abi::MODE_ADVANCE, scaled.scale, 0, record_scaled),
            advance_resloped: request(abi::MODE_ADVANCE, scaled.scale, abi::FLAG_RESLOPE, record),
            now: ClockSnapshot {
                // Later than the anchor, as exact demands.
                host_tsc: host_tsc.wrapping_add(ns),
                tai_ns: header.tai_ns + ns as i64,
                tai_offset_s: header.tai_offset_s,
                ..Default::default()
            },
        }
    }

    /// The inputs to measure.
    pub fn measured() -> Vec<Self> {
        (0..MEASURED).map(Self::new).collect()
    }
}
