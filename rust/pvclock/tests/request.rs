// SPDX-License-Identifier: GPL-2.0-only

//! Every malformed request is refused, each for its own reason.

mod common;

use common::saved;
use proptest::prelude::*;
use pvclock::{
    abi::{
        self,
        ClockGuestVcpu,
        VmClockGuest, //
    },
    request::{
        GetRequest,
        Invalid,
        SetRequest,
        Vcpu, //
    },
    tsc::Scale,
};
use zerocopy::{
    FromBytes,
    IntoBytes, //
};

fn vm(ids: &[u32]) -> Vec<Vcpu> {
    ids.iter().map(|&id| Vcpu { id, saved: None }).collect()
}

fn set(header: VmClockGuest, entries: &[ClockGuestVcpu]) -> Result<u64, Invalid> {
    SetRequest::new(header)?.match_vcpus(&mut vm(&[3, 7]), entries)
}

#[test]
fn what_get_says_is_what_set_takes() {
    for mode in [abi::MODE_EXACT, abi::MODE_ADVANCE, abi::MODE_FREEZE] {
        let (header, vcpus) = saved(mode, Scale::IDENTITY);
        assert_eq!(set(header, &vcpus), Ok(vcpus[0].tsc_offset));
    }
}

#[test]
fn headers_are_refused_by_reason() {
    type Bend = fn(&mut VmClockGuest);
    let cases: &[(Invalid, Bend)] = &[
        (Invalid::UnknownMode, |h| h.mode = 0),
        (Invalid::UnknownMode, |h| h.mode = 4),
        (Invalid::UnknownFlag, |h| h.flags = 1 << 3),
        (Invalid::UnknownFlag, |h| h.status = 1 << 2),
        (Invalid::Padding, |h| h.record.pad0 = 1),
        (Invalid::Padding, |h| h.record.pad = [0, 1]),
        (Invalid::ZeroMul, |h| h.record.tsc_to_system_mul = 0),
        (Invalid::ShiftRange, |h| h.record.tsc_shift = 32),
        (Invalid::ShiftRange, |h| h.record.tsc_shift = -32),
        (Invalid::NoRate, |h| h.host_tsc_khz = 0),
        (Invalid::NoRate, |h| h.tsc_ratio = 1),
        (Invalid::NoRate, |h| h.tsc_frac_bits = 48),
        (Invalid::NoRate, |h| {
            (h.tsc_ratio, h.tsc_frac_bits) = (1, 64)
        }),
        (Invalid::Inconsistent, |h| h.guest_tsc += 1),
        (Invalid::Inconsistent, |h| h.kvmclock_ns -= 1),
        (Invalid::Inconsistent, |h| h.host_tsc += 1),
        (Invalid::RecordAhead, |h| {
            h.record.tsc_timestamp = h.guest_tsc + 1;
            h.kvmclock_ns = h.record.kvmclock_ns(h.guest_tsc);
        }),
        (Invalid::UnknownVcpu, |h| h.ref_vcpu_id = 4),
    ];
    for (reason, bend) in cases {
        let (mut header, vcpus) = saved(abi::MODE_EXACT, Scale::IDENTITY);
        bend(&mut header);
        assert_eq!(set(header, &vcpus), Err(*reason));
    }
}

#[test]
fn arrays_are_refused_by_reason() {
    let (header, good) = saved(abi::MODE_EXACT, Scale::IDENTITY);
    let bend = |bend: fn(&mut Vec<ClockGuestVcpu>)| {
        let mut vcpus = good.clone();
        bend(&mut vcpus);
        set(header, &vcpus)
    };
    assert_eq!(bend(|v| v[1].vcpu_id = 7), Err(Invalid::DuplicateVcpu));
    assert_eq!(bend(|v| v[1].vcpu_id = 4), Err(Invalid::UnknownVcpu));
    assert_eq!(bend(|v| v.truncate(1)), Err(Invalid::MissingVcpu));
    assert_eq!(bend(|v| v.push(v[0])), Err(Invalid::DuplicateVcpu));
    assert_eq!(bend(|v| v[1].pad = 1), Err(Invalid::Padding));
    assert_eq!(bend(|v| v.swap(0, 1)), Ok(good[0].tsc_offset));
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
        // Let some of them get past the first checks.
        (header.mode, header.flags, header.status) = (mode, 0, 0);
        (header.record.pad0, header.record.pad) = (0, [0; 2]);
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(vcpu_id, tsc_offset)| ClockGuestVcpu { vcpu_id: vcpu_id % 8, tsc_offset, ..Default::default() })
            .collect();
        let _ = set(header, &entries);
    }
}
