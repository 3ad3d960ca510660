// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR BSD-3-Clause

//! Every malformed request is refused, each for its own reason.

mod common;

use common::saved;
use proptest::prelude::*;
use pvclock::{
    abi::{self, ClockGuest, ClockGuestVcpu, VmClockGuest},
    counter::TscOffset,
    request::{check_record, GetRequest, Invalid, SetRequest},
    tsc::Scale,
};
use zerocopy::{FromBytes, IntoBytes};

/// The vCPUs of a VM, in its order.
fn vm(ids: &[u32]) -> Vec<ClockGuestVcpu> {
    let vcpu = |&vcpu_id| ClockGuestVcpu {
        vcpu_id,
        // Only the ids matter.
        pad: 1,
        tsc_offset: TscOffset(0xdead),
        steal_ns: u64::MAX,
    };
    ids.iter().map(vcpu).collect()
}

fn set(header: VmClockGuest, entries: &[ClockGuestVcpu]) -> Result<TscOffset, Invalid> {
    SetRequest::new(header)?.match_vcpus(&vm(&[3, 7]), &mut entries.to_vec())
}

#[test]
fn what_get_returns_is_what_set_takes() {
    for mode in [abi::MODE_EXACT, abi::MODE_ADVANCE, abi::MODE_FREEZE] {
        let (header, vcpus) = saved(mode, Scale::IDENTITY);
        assert_eq!(set(header, &vcpus), Ok(vcpus[0].tsc_offset));
    }
}

#[test]
fn headers_are_refused_by_reason() {
    type Change = fn(&mut VmClockGuest);
    let cases: &[(Invalid, Change)] = &[
        (Invalid::UnknownMode, |h| h.mode = 0),
        (Invalid::UnknownMode, |h| h.mode = 4),
        (Invalid::UnknownFlag, |h| h.flags = 1 << 4),
        (Invalid::UnknownFlag, |h| h.status = 1 << 2),
        (Invalid::Padding, |h| h.record.pad0 = 1),
        (Invalid::Padding, |h| h.record.pad = [0, 1]),
        (Invalid::NotNormalised, |h| h.record.tsc_to_system_mul = 0),
        (Invalid::NotNormalised, |h| {
            h.record.tsc_to_system_mul = (1 << 31) - 1;
        }),
        (Invalid::ShiftRange, |h| h.record.tsc_shift = 32),
        (Invalid::ShiftRange, |h| h.record.tsc_shift = -32),
        (Invalid::NoRate, |h| h.host_tsc_khz = 0),
        (Invalid::NoRate, |h| h.tsc_ratio = 1),
        (Invalid::NoRate, |h| h.tsc_frac_bits = 48),
        (Invalid::NoRate, |h| {
            (h.tsc_ratio, h.tsc_frac_bits) = (1, 64)
        }),
        (Invalid::Inconsistent, |h| h.guest_tsc.0 += 1),
        (Invalid::Inconsistent, |h| h.kvmclock_ns -= 1),
        (Invalid::Inconsistent, |h| h.host_tsc.0 += 1),
        (Invalid::RecordAhead, |h| {
            h.record.tsc_timestamp = h.guest_tsc.wrapping_add(1);
            h.kvmclock_ns = h.record.kvmclock_ns(h.guest_tsc);
        }),
        (Invalid::Vcpus, |h| h.ref_vcpu_id = 4),
        (Invalid::Steal, |h| h.paused_ns = 1 << 63),
    ];
    for (reason, change) in cases {
        let (mut header, vcpus) = saved(abi::MODE_EXACT, Scale::IDENTITY);
        change(&mut header);
        assert_eq!(set(header, &vcpus), Err(*reason));
    }
}

#[test]
fn arrays_are_refused_by_reason() {
    let (header, good) = saved(abi::MODE_EXACT, Scale::IDENTITY);
    let changed = |change: fn(&mut Vec<ClockGuestVcpu>)| {
        let mut vcpus = good.clone();
        change(&mut vcpus);
        set(header, &vcpus)
    };
    assert_eq!(changed(|v| v[1].vcpu_id = 7), Err(Invalid::Vcpus));
    assert_eq!(changed(|v| v[1].vcpu_id = 4), Err(Invalid::Vcpus));
    assert_eq!(changed(|v| v.truncate(1)), Err(Invalid::Vcpus));
    assert_eq!(changed(|v| v.push(v[0])), Err(Invalid::Vcpus));
    assert_eq!(changed(|v| v[1].pad = 1), Err(Invalid::Padding));
    assert_eq!(changed(|v| v[1].steal_ns = 1 << 63), Err(Invalid::Steal));
    assert_eq!(changed(|v| v.swap(0, 1)), Ok(good[0].tsc_offset));
}

#[test]
fn entries_come_into_the_order_of_the_vm() {
    let (mut header, vcpus) = saved(abi::MODE_EXACT, Scale::IDENTITY);
    header.nr_vcpus = 4;
    let entry = |vcpu_id: u32| ClockGuestVcpu {
        vcpu_id,
        tsc_offset: vcpus[0]
            .tsc_offset
            .wrapping_add(u64::from(vcpu_id))
            .wrapping_sub(7),
        steal_ns: u64::from(vcpu_id),
        ..Default::default()
    };
    let request = SetRequest::new(header).unwrap();
    let order = [9, 7, 3, 1];
    for given in [[9, 7, 3, 1], [1, 3, 7, 9], [7, 9, 1, 3], [3, 9, 7, 1]] {
        let mut entries = given.map(entry);
        let offset = request.match_vcpus(&vm(&order), &mut entries);
        assert_eq!(offset, Ok(vcpus[0].tsc_offset));
        assert_eq!(entries, order.map(entry), "{given:?}");
    }
}

#[test]
fn a_pause_is_steal_time_of_every_vcpu() {
    const MOST: u64 = i64::MAX as u64;
    let steal = |mode, paused_ns, steal_ns: [u64; 2]| {
        let (mut header, mut entries) = saved(mode, Scale::IDENTITY);
        header.paused_ns = paused_ns;
        for (entry, steal_ns) in entries.iter_mut().zip(steal_ns) {
            entry.steal_ns = steal_ns;
        }
        let ids: Vec<_> = entries.iter().map(|entry| entry.vcpu_id).collect();
        SetRequest::new(header)?.match_vcpus(&vm(&ids), &mut entries)?;
        Ok([entries[0].steal_ns, entries[1].steal_ns])
    };
    for mode in [abi::MODE_EXACT, abi::MODE_ADVANCE] {
        assert_eq!(steal(mode, 0, [5, 0]), Ok([5, 0]));
        assert_eq!(steal(mode, 1_000, [5, 0]), Ok([1_005, 1_000]));
        assert_eq!(steal(mode, MOST, [0, 0]), Ok([MOST, MOST]));
        assert_eq!(steal(mode, MOST - 5, [5, 0]), Ok([MOST, MOST - 5]));
        assert_eq!(steal(mode, MOST - 5, [0, 6]), Err(Invalid::Steal));
        assert_eq!(steal(mode, MOST, [MOST, 0]), Err(Invalid::Steal));
    }
    // The guest's clocks did not go on, so no time was stolen.
    assert_eq!(steal(abi::MODE_FREEZE, 1_000, [5, 0]), Ok([5, 0]));
    assert_eq!(steal(abi::MODE_FREEZE, MOST, [MOST, 0]), Ok([MOST, 0]));
    for mode in [abi::MODE_EXACT, abi::MODE_ADVANCE, abi::MODE_FREEZE] {
        assert_eq!(steal(mode, MOST + 1, [0, 0]), Err(Invalid::Steal));
        assert_eq!(steal(mode, 0, [0, MOST + 1]), Err(Invalid::Steal));
        assert_eq!(steal(mode, 0, [u64::MAX, 0]), Err(Invalid::Steal));
    }
}

#[test]
fn a_record_keeps_its_stable_bit() {
    let (header, _) = saved(abi::MODE_EXACT, Scale::IDENTITY);
    for flags in 0..=u8::MAX {
        let record = ClockGuest {
            version: 5,
            flags,
            ..header.record
        };
        let expected = ClockGuest {
            version: 0,
            flags: flags & 1,
            ..record
        };
        assert_eq!(check_record(&record), Ok(expected));
        let request = SetRequest::new(VmClockGuest { record, ..header });
        assert_eq!(request.unwrap().saved.record, expected);
    }
}

#[test]
fn each_flag_is_one() {
    for bit in 0..4 {
        let (mut header, _) = saved(abi::MODE_EXACT, Scale::IDENTITY);
        header.flags = 1 << bit;
        let request = SetRequest::new(header).unwrap();
        let flags = [
            request.allow_backwards,
            request.allow_rate_mismatch,
            request.fallback,
            request.reslope,
        ];
        assert_eq!(flags, [0, 1, 2, 3].map(|flag| flag == bit));
    }
}

#[test]
fn get_has_one_flag_and_no_mode() {
    let get = |flags, mode| {
        let header = VmClockGuest {
            flags,
            mode,
            ..Default::default()
        };
        GetRequest::new(&header).map(|request| request.fallback)
    };
    assert_eq!(get(0, 0), Ok(false));
    assert_eq!(get(abi::FLAG_FALLBACK, 0), Ok(true));
    for flag in [0, 1, 3, 31].map(|bit| 1 << bit) {
        assert_eq!(get(flag, 0), Err(Invalid::UnknownFlag));
    }
    assert_eq!(get(0, abi::MODE_EXACT), Err(Invalid::UnknownMode));
}

proptest! {
    /// No bit pattern makes validation panic.
    #[test]
    fn any_bytes_are_answered(
        header in proptest::collection::vec(any::<u8>(), size_of::<VmClockGuest>()),
        entries in proptest::collection::vec((any::<u32>(), any::<u64>()), 0..4),
        mode in 0u32..5,
    ) {
        let mut header = VmClockGuest::read_from_bytes(header.as_bytes()).unwrap();
        // Lets some of them pass the first checks.
        (header.mode, header.flags, header.status) = (mode, 0, 0);
        (header.record.pad0, header.record.pad) = (0, [0; 2]);
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(vcpu_id, tsc_offset)| ClockGuestVcpu { vcpu_id: vcpu_id % 8, tsc_offset: TscOffset(tsc_offset), ..Default::default() })
            .collect();
        let _ = set(header, &entries);
    }
}
