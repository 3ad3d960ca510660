// SPDX-License-Identifier: GPL-2.0-only

//! Clock errors, computed from the guest's own readings.
//!
//! Before a cycle, a vCPU has a TSC transform, which is the offset and scaling ratio that KVM
//! reports, and the pvclock record that the guest read last. After the cycle, the guest reads TSC
//! `g` and kvmclock `k`. With `G(h)` the guest TSC at host TSC `h`, and `K(g)` the record's
//! kvmclock at `g`:
//!
//! - the host TSC of the reading is the `h` with `G_after(h) = g`,
//! - TSC error = `g - G_before(h)`, in ticks,
//! - kvmclock error = `k - K_before(G_before(h))`, in ns,
//! - skew = `k - K_before(g)`, in ns: the shift of kvmclock against the TSC.
//!
//! All three are 0 if nothing touches the clocks. Between hosts, the `h` of `G_before(h)` is the
//! TSC of the source at the same moment, see [`compare_across`]. `G_after` is verified: the host
//! reads its own TSC before and after the guest's reading, and `g` must lie between the values of
//! `G_after` for both. So is `k`: it must be the kvmclock of the record that the guest read, at
//! `g`.

use crate::guest::{Backwards, Sample};
use pvclock::{
    abi::ClockGuest,
    counter::{GuestTsc, HostTsc, TscOffset},
    tsc::{Scale, TscTransform},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A vCPU's TSC offset and scaling ratio, as KVM reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawTransform {
    /// TSC offset.
    pub offset: TscOffset,
    /// Scaling ratio; 0 = no scaling.
    pub ratio: u64,
    /// Fraction bits of `ratio`; 0 = no scaling.
    pub frac_bits: u32,
}

impl RawTransform {
    pub(crate) fn transform(self) -> Result<TscTransform, Inconsistent> {
        let scale = Scale::new(self.ratio, self.frac_bits)
            .ok_or(Inconsistent::Ratio(self.ratio, self.frac_bits))?;
        Ok(TscTransform {
            scale,
            offset: self.offset,
        })
    }
}

/// A guest's reading with the host TSC before and after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bracketed {
    /// The reading.
    pub sample: Sample,
    /// Host TSC before it.
    pub host_before: HostTsc,
    /// Host TSC after it.
    pub host_after: HostTsc,
}

/// The readings of a vCPU between a start and a stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuReading {
    /// The TSC transform, read after the stop.
    pub tsc: RawTransform,
    /// The record that the guest read last.
    #[serde(with = "kvm_clock::bits")]
    pub record: ClockGuest,
    /// Its readings.
    pub samples: Vec<Bracketed>,
    /// The steps back since the guest started.
    pub backwards: Backwards,
}

/// The readings of a whole VM between a start and a stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// The vCPUs, in order of index.
    pub vcpus: Vec<VcpuReading>,
    /// Guest TSC rate, kHz.
    pub tsc_khz: u32,
    /// Host TSC right before the first vCPU started.
    pub host_run: HostTsc,
    /// Host TSC right after the last vCPU stopped.
    pub host_stop: HostTsc,
    /// The precision that the kernel reports for the clocks saved at the stop, ns; 0 if exact or
    /// unknown.
    #[serde(default)]
    pub precision_ns: u32,
}

impl Reading {
    /// Whether the host's hardware scales the guest's TSC.
    pub fn is_scaled(&self) -> bool {
        let scale = |vcpu: &VcpuReading| vcpu.tsc.transform().map(|transform| transform.scale);
        self.vcpus
            .iter()
            .any(|vcpu| scale(vcpu).is_ok_and(|scale| !scale.is_identity()))
    }

    /// The guest's steps back since it started.
    pub fn backwards(&self) -> Backwards {
        let each = self.vcpus.iter().map(|vcpu| vcpu.backwards);
        each.fold(Backwards::default(), |sum, next| sum + next)
    }
}

/// A signed clock error: positive if the guest's clock is ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockError {
    /// TSC error, ticks.
    pub tsc_ticks: i64,
    /// kvmclock error, ns.
    pub kvmclock_ns: i64,
    /// kvmclock error of the record at the same guest TSC, ns.
    pub skew_ns: i64,
}

impl ClockError {
    /// The larger magnitude of each error.
    pub fn worst(self, other: Self) -> Self {
        let worst = |a: i64, b: i64| {
            if b.unsigned_abs() > a.unsigned_abs() {
                b
            } else {
                a
            }
        };
        Self {
            tsc_ticks: worst(self.tsc_ticks, other.tsc_ticks),
            kvmclock_ns: worst(self.kvmclock_ns, other.kvmclock_ns),
            skew_ns: worst(self.skew_ns, other.skew_ns),
        }
    }
}

/// The effect of a cycle on the clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Worst error over vCPUs and readings.
    pub error: ClockError,
    /// Whether every TSC offset is the same.
    pub offsets_identical: bool,
    /// Whether every record that the guest read is the same, except for `version`.
    pub records_identical: bool,
}

/// Readings that contradict each other, so no error can be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Inconsistent {
    /// The guest's TSC does not match the TSC offset.
    #[error(
        "vCPU {vcpu}: the guest read TSC {tsc}, but TSC offset {offset:#x} gives {low} to {high}"
    )]
    Tsc {
        /// Index of the vCPU.
        vcpu: usize,
        /// The guest's reading.
        tsc: GuestTsc,
        /// The offset that KVM reports.
        offset: TscOffset,
        /// Guest TSC at the host TSC before the reading.
        low: GuestTsc,
        /// Guest TSC at the host TSC after the reading.
        high: GuestTsc,
    },
    /// The guest's kvmclock does not match its record.
    #[error(
        "vCPU {vcpu}: the guest computed kvmclock {read} ns, but its record gives {expected} ns"
    )]
    Kvmclock {
        /// Index of the vCPU.
        vcpu: usize,
        /// The guest's result.
        read: u64,
        /// The record's kvmclock.
        expected: u64,
    },
    /// The guest does not use kvmclock, or KVM has not written the record.
    #[error("vCPU {0}: the guest's pvclock record has multiplier 0: KVM has not written it")]
    NoRecord(usize),
    /// An invalid scaling ratio.
    #[error("TSC ratio {0:#x} with {1} fraction bits is not a scaling ratio")]
    Ratio(u64, u32),
    /// Different numbers of vCPUs.
    #[error("{0} vCPUs before, {1} after")]
    VcpuCount(usize, usize),
    /// A vCPU without readings.
    #[error("vCPU {0}: no reading after the cycle")]
    NoSamples(usize),
}

/// Compares the readings after a cycle on one host with the clocks before it.
///
/// # Errors
///
/// [`Inconsistent`].
///
/// # Example
///
/// The TSC of a vCPU is set ahead by 1,000 ticks, its kvmclock (2 ticks per ns) is not:
///
/// ```
/// use clockguest::{guest, measure};
/// use kvm_clock::{abi::ClockGuest, counter::{GuestTsc, HostTsc, TscOffset}};
///
/// let reading = |offset: u64, record: ClockGuest, host_tsc: u64| {
///     let (tsc, host_tsc) = (GuestTsc(host_tsc + offset), HostTsc(host_tsc));
///     let sample = guest::Sample { number: 0, tsc, kvmclock_ns: record.kvmclock_ns(tsc), record };
///     let (host_before, host_after) = (host_tsc.wrapping_sub(9), host_tsc.wrapping_add(9));
///     let vcpu = measure::VcpuReading {
///         tsc: measure::RawTransform { offset: TscOffset(offset), ..Default::default() },
///         record,
///         samples: vec![measure::Bracketed { sample, host_before, host_after }],
///         backwards: Default::default(),
///     };
///     let (host_run, host_stop) = (host_before, host_after);
///     let (vcpus, tsc_khz, precision_ns) = (vec![vcpu], 2_000_000, 0);
///     measure::Reading { vcpus, tsc_khz, host_run, host_stop, precision_ns }
/// };
/// let record = ClockGuest { tsc_to_system_mul: 1 << 31, ..Default::default() };
/// let moved = ClockGuest { tsc_timestamp: GuestTsc(1_000), ..record };
///
/// let before = reading(50_000, record, 1_000_000);
/// let compared = measure::compare(&before, &reading(51_000, moved, 2_000_000))?;
/// assert_eq!(compared.error.tsc_ticks, 1_000);
/// assert_eq!(compared.error.kvmclock_ns, 0);
/// // kvmclock has shifted against the TSC.
/// assert_eq!(compared.error.skew_ns, -500);
/// assert!(!compared.offsets_identical && !compared.records_identical);
/// # Ok::<(), measure::Inconsistent>(())
/// ```
pub fn compare(before: &Reading, after: &Reading) -> Result<Comparison, Inconsistent> {
    compare_across(before, after, |host_tsc| host_tsc)
}

/// As [`compare`], between two hosts: `source_tsc` converts a TSC value of the destination to the
/// source's TSC at the same moment.
///
/// # Errors
///
/// As [`compare`].
pub fn compare_across(
    before: &Reading,
    after: &Reading,
    source_tsc: impl Fn(HostTsc) -> HostTsc,
) -> Result<Comparison, Inconsistent> {
    if before.vcpus.len() != after.vcpus.len() {
        return Err(Inconsistent::VcpuCount(
            before.vcpus.len(),
            after.vcpus.len(),
        ));
    }
    let mut result = Comparison {
        error: ClockError::default(),
        offsets_identical: true,
        records_identical: true,
    };
    for (index, (before_vcpu, after_vcpu)) in before.vcpus.iter().zip(&after.vcpus).enumerate() {
        result.offsets_identical &= before_vcpu.tsc.offset == after_vcpu.tsc.offset;
        if after_vcpu.samples.is_empty() {
            return Err(Inconsistent::NoSamples(index));
        }
        for bracketed in &after_vcpu.samples {
            let error = error_of(index, before_vcpu, after_vcpu, bracketed, &source_tsc)?;
            result.error = result.error.worst(error);
            result.records_identical &= same_bits(&before_vcpu.record, &bracketed.sample.record);
        }
    }
    Ok(result)
}

/// The error of one reading.
fn error_of(
    vcpu: usize,
    before: &VcpuReading,
    after: &VcpuReading,
    bracketed: &Bracketed,
    source_tsc: impl Fn(HostTsc) -> HostTsc,
) -> Result<ClockError, Inconsistent> {
    let Sample {
        tsc,
        kvmclock_ns,
        record,
        ..
    } = bracketed.sample;
    let now = after.tsc.transform()?;
    let was = before.tsc.transform()?;

    let low = now.guest_tsc(bracketed.host_before);
    let high = now.guest_tsc(bracketed.host_after);
    if !tsc.is_between(low, high) {
        return Err(Inconsistent::Tsc {
            vcpu,
            tsc,
            offset: now.offset,
            low,
            high,
        });
    }
    if record.tsc_to_system_mul == 0 || before.record.tsc_to_system_mul == 0 {
        return Err(Inconsistent::NoRecord(vcpu));
    }
    let expected = record.kvmclock_ns(tsc);
    if kvmclock_ns != expected {
        return Err(Inconsistent::Kvmclock {
            vcpu,
            read: kvmclock_ns,
            expected,
        });
    }

    let host_tsc = host_tsc_of(now, tsc, bracketed.host_before);
    let tsc_before = was.guest_tsc(source_tsc(host_tsc));
    // CAST: the signed difference of values mod 2^64.
    let ns_ahead_of = |before_ns: u64| kvmclock_ns.wrapping_sub(before_ns) as i64;
    Ok(ClockError {
        // CAST: As above.
        tsc_ticks: tsc.since(tsc_before) as i64,
        kvmclock_ns: ns_ahead_of(before.record.kvmclock_ns(tsc_before)),
        skew_ns: ns_ahead_of(before.record.kvmclock_ns(tsc)),
    })
}

/// The host TSC at which the guest TSC becomes `guest_tsc`, at or after `host_before`.
fn host_tsc_of(transform: TscTransform, guest_tsc: GuestTsc, host_before: HostTsc) -> HostTsc {
    if transform.scale.is_identity() {
        return HostTsc(guest_tsc.0.wrapping_sub(transform.offset.0));
    }
    let guest_ticks = guest_tsc.since(transform.guest_tsc(host_before));
    let host_ticks = (u128::from(guest_ticks) << transform.scale.frac_bits())
        / u128::from(transform.scale.ratio());
    // CAST: a bracket is far shorter than 2^64 ticks.
    let mut host_tsc = host_before.wrapping_add(host_ticks as u64);
    // `scale()` rounds down for both values, so the quotient is at most one tick early.
    while guest_tsc.is_ahead_of(transform.guest_tsc(host_tsc)) {
        host_tsc = host_tsc.wrapping_add(1);
    }
    host_tsc
}

/// `ticks` of a TSC of `khz` kHz, in ns, saturating.
pub(crate) fn ticks_to_ns(ticks: u64, khz: u32) -> u64 {
    let ns = u128::from(ticks) * 1_000_000 / u128::from(khz.max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// Whether two records are equal, except for `version`, which counts KVM's updates.
fn same_bits(a: &ClockGuest, b: &ClockGuest) -> bool {
    ClockGuest { version: 0, ..*a } == ClockGuest { version: 0, ..*b }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use pvclock::rate::Factor;

    pub(crate) const KHZ: u32 = 2_100_000;
    /// Host TSC of the first reading.
    pub(crate) const START: HostTsc = HostTsc(1 << 40);

    /// The TSC of an unscaled guest.
    pub(crate) fn guest_tsc(offset: TscOffset, host_tsc: HostTsc) -> GuestTsc {
        unscaled(offset).transform().unwrap().guest_tsc(host_tsc)
    }

    pub(crate) fn record(tsc_timestamp: GuestTsc, system_time: u64) -> ClockGuest {
        let factor = Factor::of_hz(u64::from(KHZ) * 1000).unwrap();
        ClockGuest {
            tsc_timestamp,
            system_time,
            tsc_to_system_mul: factor.mul,
            tsc_shift: factor.shift,
            flags: 1,
            ..ClockGuest::default()
        }
    }

    /// One reading of a VM with one vCPU, at host TSC `host_tsc`.
    pub(crate) fn reading(tsc: RawTransform, record: ClockGuest, host_tsc: HostTsc) -> Reading {
        let guest_tsc = tsc.transform().unwrap().guest_tsc(host_tsc);
        let sample = Sample {
            number: 0,
            tsc: guest_tsc,
            kvmclock_ns: record.kvmclock_ns(guest_tsc),
            record,
        };
        Reading {
            vcpus: vec![VcpuReading {
                tsc,
                record,
                samples: vec![Bracketed {
                    sample,
                    host_before: host_tsc.wrapping_sub(1000),
                    host_after: host_tsc.wrapping_add(1000),
                }],
                backwards: Backwards::default(),
            }],
            tsc_khz: KHZ,
            host_run: HostTsc(0),
            host_stop: HostTsc(0),
            precision_ns: 0,
        }
    }

    pub(crate) fn unscaled(offset: TscOffset) -> RawTransform {
        RawTransform {
            offset,
            ..RawTransform::default()
        }
    }

    /// A reading of clocks that count from 0.
    pub(crate) fn at_rest(host_tsc: u64) -> Reading {
        let (offset, record) = (TscOffset(0), record(GuestTsc(0), 0));
        reading(unscaled(offset), record, HostTsc(host_tsc))
    }

    proptest! {
        #[test]
        fn untouched_clocks_have_no_error(
            offset: u64,
            first: u64,
            later in 0u64..1 << 60,
            ratio in 1u64 << 30..1 << 34,
        ) {
            let offset = TscOffset(offset);
            for tsc in [unscaled(offset), RawTransform { offset, ratio, frac_bits: 32 }] {
                let first = HostTsc(first >> 3);
                let record = record(tsc.transform().unwrap().guest_tsc(first), 5);
                let before = reading(tsc, record, first);
                let after = reading(tsc, record, first.wrapping_add(later));
                let found = compare(&before, &after).unwrap();
                prop_assert_eq!(found.error, ClockError::default());
                prop_assert!(found.offsets_identical && found.records_identical);
            }
        }

        #[test]
        fn a_shifted_tsc_is_found(offset: u64, shift in -1i64 << 40..1 << 40, host: u64) {
            let (offset, host) = (TscOffset(offset), HostTsc(host));
            let timestamp = guest_tsc(offset, host).wrapping_sub(1 << 41);
            let before = reading(unscaled(offset), record(timestamp, 1 << 40), host);
            // CAST: Ticks mod 2^64.
            let shifted = unscaled(offset.wrapping_add(shift as u64));
            let after = reading(shifted, record(timestamp, 1 << 40), host.wrapping_add(12_345));
            let found = compare(&before, &after).unwrap();
            prop_assert_eq!(found.error.tsc_ticks, shift);
            // The record is the same, so kvmclock still matches the TSC.
            prop_assert_eq!(found.error.skew_ns, 0);
            prop_assert_eq!(found.offsets_identical, shift == 0);
            prop_assert!(found.records_identical);
        }

        #[test]
        fn a_shifted_kvmclock_is_found(offset: u64, shift in -1i64 << 40..1 << 40, host: u64) {
            let (offset, host) = (TscOffset(offset), HostTsc(host));
            let timestamp = guest_tsc(offset, host);
            let before = reading(unscaled(offset), record(timestamp, 1 << 50), host);
            let system_time = (1u64 << 50).wrapping_add_signed(shift);
            let after = reading(unscaled(offset), record(timestamp, system_time), host.wrapping_add(7));
            let found = compare(&before, &after).unwrap();
            prop_assert_eq!(
                found.error,
                ClockError { tsc_ticks: 0, kvmclock_ns: shift, skew_ns: shift }
            );
            prop_assert_eq!(found.records_identical, shift == 0);
        }

        #[test]
        fn source_tsc_is_converted_between_hosts(offset: u64, ahead: u64, host: u64, shift in -1i64 << 40..1 << 40) {
            let (offset, host) = (TscOffset(offset), HostTsc(host));
            let timestamp = guest_tsc(offset, host).wrapping_sub(1 << 41);
            let before = reading(unscaled(offset), record(timestamp, 1 << 40), host);
            let there = host.wrapping_add(ahead);
            // CAST: Ticks mod 2^64.
            let tsc = unscaled(offset.wrapping_sub(ahead).wrapping_add(shift as u64));
            let after = reading(tsc, record(timestamp, 1 << 40), there.wrapping_add(12_345));
            let found = compare_across(&before, &after, |tsc| tsc.wrapping_sub(ahead)).unwrap();
            prop_assert_eq!(found.error.tsc_ticks, shift);
            prop_assert_eq!(found.error.skew_ns, 0);
            prop_assert!(found.records_identical);
        }

        #[test]
        fn host_tsc_is_found_again(
            ratio in 1u64 << 30..1 << 34,
            offset: u64,
            before in 0u64..1 << 62,
            ticks in 0u64..1 << 40,
        ) {
            let (offset, before) = (TscOffset(offset), HostTsc(before));
            let transform = RawTransform { offset, ratio, frac_bits: 32 }.transform().unwrap();
            let guest_tsc = transform.guest_tsc(before.wrapping_add(ticks));
            let found = host_tsc_of(transform, guest_tsc, before);
            prop_assert_eq!(transform.guest_tsc(found), guest_tsc);
            prop_assert!(!before.is_ahead_of(found));
        }
    }

    #[test]
    fn a_reading_outside_its_bracket_is_refused() {
        let before = at_rest(1 << 20);
        let mut after = at_rest(1 << 21);
        after.vcpus[0].tsc.offset = TscOffset(5_000);
        assert!(matches!(
            compare(&before, &after),
            Err(Inconsistent::Tsc { vcpu: 0, .. })
        ));
    }

    #[test]
    fn a_kvmclock_that_differs_from_its_record_is_refused() {
        let before = at_rest(1 << 20);
        let mut after = at_rest(1 << 21);
        after.vcpus[0].samples[0].sample.kvmclock_ns += 1;
        assert!(matches!(
            compare(&before, &after),
            Err(Inconsistent::Kvmclock { vcpu: 0, .. })
        ));
    }

    #[test]
    fn flags_are_compared_and_versions_are_not() {
        let before = at_rest(1 << 20);
        let mut after = before.clone();
        after.vcpus[0].samples[0].sample.record.version = 8;
        assert!(compare(&before, &after).unwrap().records_identical);
        after.vcpus[0].samples[0].sample.record.flags |= 2;
        assert!(!compare(&before, &after).unwrap().records_identical);
    }
}
