// SPDX-License-Identifier: GPL-2.0-only

//! The errno tables of `clock-guest.rst`, applied to the arguments in memory; [`plan`](crate::plan)
//! has the errnos that depend on the clocks.

use crate::{
    arena::{Arena, PAGE},
    expected::Expected,
    state::State,
};
use kvm_clock_guest_selftests::prelude::*;
use pvclock::abi::FLAG_FALLBACK;
use pvclock_reference::rules;
use std::mem::offset_of;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of the structure's first version, the only one.
pub(crate) const KNOWN: usize = size_of::<VmClockGuest>();
/// Bytes of an array's entry.
pub(crate) const ENTRY: usize = size_of::<ClockGuestVcpu>();

/// SET's argument.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// The header.
    pub(crate) header: VmClockGuest,
    /// The array.
    pub(crate) entries: Vec<ClockGuestVcpu>,
}

/// Reads the value at `address`, if an ioctl can.
fn load<T: FromBytes + IntoBytes>(arena: &Arena, address: u64) -> Option<T> {
    let value = arena.value(arena.offset(address)?)?;
    arena.is_readable(address, size_of::<T>()).then_some(value)
}

/// The header at `address`; its size and place may cause `EFAULT`, `EINVAL` and `E2BIG`.
fn header(expected: &mut Expected, arena: &Arena, address: u64) -> Option<VmClockGuest> {
    let Some(size) = load::<u32>(arena, address) else {
        expected.must(libc::EFAULT, true);
        return None;
    };
    let size = size as usize;
    expected.must(libc::EINVAL, size < KNOWN);
    expected.must(libc::E2BIG, size > PAGE);
    if !(KNOWN..=PAGE).contains(&size) {
        return None;
    }
    let is_readable = arena.is_readable(address, size);
    expected.must(libc::EFAULT, !is_readable);
    let tail = arena.read(arena.offset(address)? + KNOWN, size - KNOWN);
    let is_tail_set = tail.iter().any(|byte| *byte != 0);
    expected.must(libc::E2BIG, is_tail_set && is_readable);
    // The part before the fault may have been read.
    expected.may(libc::E2BIG, is_tail_set);
    load(arena, address)
}

/// `KVM_GET_VM_CLOCK_GUEST` with the argument at `address`.
pub(crate) fn get(arena: &Arena, address: u64, state: &State) -> Expected {
    let mut expected = Expected::default();
    let Some(header) = header(&mut expected, arena, address) else {
        return expected;
    };
    let vcpus = state.offsets.len();
    expected.must(libc::EINVAL, !rules::broken_by_get(&header).is_empty());
    let has_room = header.nr_vcpus as usize >= vcpus;
    expected.must(libc::E2BIG, !has_room);
    let can_write = arena.is_writable(header.vcpus, vcpus * ENTRY);
    expected.must(libc::EFAULT, has_room && !can_write);
    let nr_vcpus = address.wrapping_add(offset_of!(VmClockGuest, nr_vcpus) as u64);
    expected.must(libc::EFAULT, !has_room && !arena.is_writable(nr_vcpus, 4));
    expected.must(libc::EFAULT, has_room && !arena.is_writable(address, KNOWN));
    expected.must(
        libc::ENODATA,
        has_no_data(state, header.flags & FLAG_FALLBACK != 0),
    );
    expected
}

/// Whether GET must fail with `ENODATA`.
pub(crate) fn has_no_data(state: &State, fallback: bool) -> bool {
    // On a host with a usable TSC the precision is 0 unless the VM has no master clock.
    state
        .clock
        .as_ref()
        .is_none_or(|clock| clock.header.precision_ns != 0 && !fallback)
}

/// `KVM_SET_VM_CLOCK_GUEST` with the argument at `address`: the failures that the argument and the
/// VM cause; `busy` if a vCPU is in KVM_RUN. Also the argument, if it is readable.
pub(crate) fn set(
    arena: &Arena,
    address: u64,
    state: &State,
    busy: bool,
) -> (Expected, Option<Given>) {
    let mut expected = Expected::default();
    let Some(header) = header(&mut expected, arena, address) else {
        return (expected, None);
    };
    let vcpus = state.offsets.len();
    expected.must(libc::EINVAL, header.nr_vcpus as usize != vcpus);
    let is_readable = arena.is_readable(header.vcpus, vcpus * ENTRY);
    expected.must(libc::EFAULT, !is_readable);
    let entries = (0..vcpus as u64).map_while(|index| {
        let address = header.vcpus.wrapping_add(index * ENTRY as u64);
        load::<ClockGuestVcpu>(arena, address)
    });
    let given = Given {
        entries: entries.collect(),
        header,
    };
    let is_valid = rules::broken_by_set(&header).is_empty();
    let contradicts = is_readable && is_valid && {
        // CAST: a few.
        let ids: Vec<_> = (0..vcpus as u32).collect();
        !rules::broken_by_array(&header, &given.entries, &ids).is_empty()
    };
    expected.must(libc::EINVAL, !is_valid || contradicts);
    expected.must(libc::EBUSY, busy);
    expected.must(libc::ENODATA, state.clock.is_none());
    // SET writes back the whole header.
    expected.must(libc::EFAULT, !arena.is_writable(address, KNOWN));
    (expected, Some(given))
}

/// `KVM_GET_CLOCK_GUEST` with the argument at `address`.
pub(crate) fn get_record(arena: &Arena, address: u64, state: &State) -> Expected {
    let mut expected = Expected::default();
    let is_writable = arena.is_writable(address, size_of::<ClockGuest>());
    expected.must(libc::EFAULT, !is_writable);
    expected.must(libc::ENODATA, has_no_data(state, false));
    expected
}

/// `KVM_SET_CLOCK_GUEST` with the argument at `address`: the failures that the argument and the VM
/// cause. Also the argument, if it is readable.
pub(crate) fn set_record(
    arena: &Arena,
    address: u64,
    state: &State,
) -> (Expected, Option<ClockGuest>) {
    let mut expected = Expected::default();
    let record = load::<ClockGuest>(arena, address);
    expected.must(libc::EFAULT, record.is_none());
    let is_invalid = record.is_some_and(|record| !rules::broken_by_record(&record).is_empty());
    expected.must(libc::EINVAL, is_invalid);
    expected.must(libc::ENODATA, state.clock.is_none());
    (expected, record)
}
