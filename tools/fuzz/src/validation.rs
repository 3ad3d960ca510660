// SPDX-License-Identifier: GPL-2.0-only

//! An accepted request keeps all rules of the ABI, and a refused one breaks the rule in its error.

use crate::input;
use pvclock::{
    abi::{ClockGuest, ClockGuestVcpu, VmClockGuest},
    request::{check_record, GetRequest, SetRequest},
};
use pvclock_reference::rules::{
    broken_by_array, broken_by_get, broken_by_record, broken_by_set, ensure_justified, steal_ns,
};

/// The most vCPUs of a VM here.
const MAX_VCPUS: usize = 8;

/// The target: validates a header and an array for a VM with some number and ids of vCPUs.
///
/// # Panics
///
/// If it accepts a wrong request or refuses a right one.
pub fn validation(bytes: &[u8]) {
    let (header, rest): (VmClockGuest, _) = input::take(bytes);
    let (count, rest): (u8, _) = input::take(rest);
    let (mut ids, mut rest): ([u8; MAX_VCPUS], _) = input::take(rest);
    let mut entries = Vec::new();
    while !rest.is_empty() && entries.len() <= MAX_VCPUS {
        let entry: ClockGuestVcpu;
        (entry, rest) = input::take(rest);
        entries.push(entry);
    }
    // In KVM, ids are unique.
    let ids = &mut ids[..usize::from(count) % (MAX_VCPUS + 1)];
    ids.sort_unstable();
    let mut ids: Vec<_> = ids.iter().copied().map(u32::from).collect();
    ids.dedup();

    let get = GetRequest::new(&header);
    if let Some(get) = ensure_justified(get, &broken_by_get(&header), &header) {
        assert_eq!(get.fallback, header.flags != 0);
    }
    let checked = check_record(&header.record);
    if let Some(checked) = ensure_justified(checked, &broken_by_record(&header.record), &header) {
        assert_eq!(checked, unversioned(header.record));
    }
    set(header, &ids, &entries);
}

fn unversioned(record: ClockGuest) -> ClockGuest {
    ClockGuest {
        version: 0,
        flags: record.flags & 1,
        ..record
    }
}

fn set(header: VmClockGuest, ids: &[u32], entries: &[ClockGuestVcpu]) {
    let request = SetRequest::new(header);
    let Some(request) = ensure_justified(request, &broken_by_set(&header), &header) else {
        return;
    };
    let saved = VmClockGuest {
        record: unversioned(header.record),
        ..header
    };
    assert_eq!(request.saved, saved);
    let flags = [
        request.allow_backwards,
        request.allow_rate_mismatch,
        request.fallback,
        request.reslope,
    ];
    assert_eq!(flags, [0, 1, 2, 3].map(|bit| header.flags >> bit & 1 == 1));

    let present: Vec<_> = ids
        .iter()
        .map(|&vcpu_id| ClockGuestVcpu {
            vcpu_id,
            ..Default::default()
        })
        .collect();
    let mut ordered = entries.to_vec();
    let matched = request.match_vcpus(&present, &mut ordered);
    let all = (header, entries, ids);
    let broken = broken_by_array(&header, entries, ids);
    let Some(ref_offset) = ensure_justified(matched, &broken, &all) else {
        return;
    };
    let with_id = |id| entries.iter().find(|entry| entry.vcpu_id == id);
    let offset = with_id(header.ref_vcpu_id).map(|entry| entry.tsc_offset);
    assert_eq!(Some(ref_offset), offset, "{all:x?}");
    let expected = ids.iter().map(|&id| {
        let entry = with_id(id)?;
        Some(ClockGuestVcpu {
            steal_ns: steal_ns(&header, entry)?,
            ..*entry
        })
    });
    assert!(ordered.into_iter().map(Some).eq(expected), "{all:x?}");
}
