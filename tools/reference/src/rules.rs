// SPDX-License-Identifier: GPL-2.0-only

//! The rules of `Documentation/virt/kvm/clock-guest.rst` for the arguments of GET and SET: each
//! rule by itself, in no order.

use crate::arithmetic;
use pvclock::{
    abi::{ClockGuest, ClockGuestVcpu, VmClockGuest},
    rate::GuestRate,
    request::Invalid,
    tsc::Scale,
};

/// Whether `word` has bits above the lowest `bits`.
fn beyond(word: u32, bits: u32) -> bool {
    word >> bits != 0
}

/// Whether a number of ns is negative if taken as signed.
fn is_negative(ns: u64) -> bool {
    ns >> 63 == 1
}

/// The rules that a record breaks.
pub fn broken_by_record(record: &ClockGuest) -> Vec<Invalid> {
    let shift = i32::from(record.tsc_shift);
    let rules = [
        (
            Invalid::Padding,
            record.pad0 != 0 || record.pad.iter().any(|&byte| byte != 0),
        ),
        (Invalid::NotNormalised, record.tsc_to_system_mul >> 31 == 0),
        (Invalid::ShiftRange, shift.abs() > 31),
    ];
    broken(&rules)
}

/// The rules that the header of a GET breaks.
pub fn broken_by_get(header: &VmClockGuest) -> Vec<Invalid> {
    let rules = [
        // GET has one flag, KVM_CLOCK_GUEST_FALLBACK, bit 2.
        (Invalid::UnknownFlag, header.flags != 0 && header.flags != 4),
        (Invalid::UnknownMode, header.mode != 0),
    ];
    broken(&rules)
}

/// The guest's TSC rate in a header; `None` if the ratio is none or the rate is below 1 Hz.
pub fn rate(header: &VmClockGuest) -> Option<GuestRate> {
    let scale = match (header.tsc_ratio, header.tsc_frac_bits) {
        (0, 0) => Scale::IDENTITY,
        (ratio, bits @ 1..=63) if ratio != 0 => Scale::new(ratio, bits)?,
        _ => return None,
    };
    let rate = GuestRate {
        host_khz: header.host_tsc_khz,
        scale,
    };
    (arithmetic::hz(rate) != 0).then_some(rate)
}

/// The rules that the header of a SET breaks.
pub fn broken_by_set(header: &VmClockGuest) -> Vec<Invalid> {
    let rules = [
        (Invalid::UnknownMode, !(1..=3).contains(&header.mode)),
        (
            Invalid::UnknownFlag,
            beyond(header.flags, 4) || beyond(header.status, 2),
        ),
        (Invalid::Steal, is_negative(header.paused_ns)),
        (Invalid::NoRate, rate(header).is_none()),
    ];
    let mut found = broken(&rules);
    found.extend(broken_by_record(&header.record));
    found
}

/// The steal time of a vCPU after a SET, ns; `None` if it is too large.
pub fn steal_ns(header: &VmClockGuest, entry: &ClockGuestVcpu) -> Option<u64> {
    // KVM_CLOCK_GUEST_FREEZE is 3.
    let paused_ns = if header.mode == 3 {
        0
    } else {
        header.paused_ns
    };
    let sum = u128::from(entry.steal_ns) + u128::from(paused_ns);
    u64::try_from(sum).ok().filter(|&ns| !is_negative(ns))
}

/// The rules that the array of a SET breaks whose header is valid, for a VM with the vCPUs `ids`.
pub fn broken_by_array(
    header: &VmClockGuest,
    entries: &[ClockGuestVcpu],
    ids: &[u32],
) -> Vec<Invalid> {
    let times = |id: u32| entries.iter().filter(|entry| entry.vcpu_id == id).count();
    let reference = header.ref_vcpu_id;
    let mut rules = vec![
        (Invalid::Padding, entries.iter().any(|entry| entry.pad != 0)),
        (
            Invalid::Vcpus,
            times(reference) == 0
                || ids.iter().any(|&id| times(id) != 1)
                || entries.iter().any(|entry| !ids.contains(&entry.vcpu_id)),
        ),
        (
            Invalid::Steal,
            entries
                .iter()
                .any(|entry| steal_ns(header, entry).is_none()),
        ),
    ];
    let found = entries.iter().find(|entry| entry.vcpu_id == reference);
    if let (Some(entry), Some(rate)) = (found, rate(header)) {
        let guest_tsc = arithmetic::guest_tsc(rate.scale, entry.tsc_offset, header.host_tsc);
        let kvmclock_ns = arithmetic::kvmclock_ns(&header.record, header.guest_tsc);
        let ahead = header.record.tsc_timestamp.since(header.guest_tsc);
        rules.extend([
            (
                Invalid::Inconsistent,
                guest_tsc != header.guest_tsc || kvmclock_ns != header.kvmclock_ns,
            ),
            (Invalid::RecordAhead, arithmetic::is_ahead(ahead)),
        ]);
    }
    broken(&rules)
}

fn broken(rules: &[(Invalid, bool)]) -> Vec<Invalid> {
    let broken = rules.iter().filter(|(_, is_broken)| *is_broken);
    broken.map(|(reason, _)| *reason).collect()
}

/// The value of `result`.
///
/// # Panics
///
/// If `result` is `Ok` although rules are `broken`, or an error that is none of them.
pub fn ensure_justified<T>(
    result: Result<T, Invalid>,
    broken: &[Invalid],
    of: &dyn std::fmt::Debug,
) -> Option<T> {
    match result {
        Ok(value) => {
            assert!(broken.is_empty(), "accepted, but {broken:?}: {of:x?}");
            Some(value)
        }
        Err(reason) => {
            assert!(
                broken.contains(&reason),
                "refused for {reason:?}, broken are {broken:?}: {of:x?}"
            );
            None
        }
    }
}
