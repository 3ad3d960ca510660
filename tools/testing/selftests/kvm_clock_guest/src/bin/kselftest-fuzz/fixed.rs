// SPDX-License-Identifier: GPL-2.0-only

//! Fixed arguments: those that once led to a failure, and those most likely to break arithmetic and
//! copies. They are checked as all others are.

use crate::{
    arena::{Arena, PAGE},
    fixture::Fixture,
    fuzz::Fuzz,
    generate::Argument,
    guest,
    model::{ENTRY, KNOWN},
    vm_calls, Host,
};
use kvm_clock_guest_selftests::prelude::*;
use pvclock::abi::{FLAGS_KNOWN, FLAG_RESLOPE};
use std::mem::offset_of;

/// Changes GET's result into SET's argument.
type Edit = fn(&mut Argument, &Arena);

const SETS: &[(&str, Edit)] = &[
    // The record is ahead of the TSC at the time of the call, but not at its anchor.
    (
        "record nearly half the ring old, anchor older still",
        |d, _| {
            d.header.host_tsc = d.header.host_tsc.wrapping_sub(1 << 56);
            d.make_consistent(Some((1 << 63) - 3));
        },
    ),
    ("record exactly half the ring old", |d, _| {
        d.make_consistent(Some(1 << 63))
    }),
    ("advance, mul 2^31 and shift 31, an hour back", |d, _| {
        back(d, 3_600_000_000_000);
        (d.header.record.tsc_to_system_mul, d.header.record.tsc_shift) = (1 << 31, 31);
        d.make_consistent(Some(1));
    }),
    ("advance, odd mul and shift -31, an hour back", |d, _| {
        back(d, 3_600_000_000_000);
        (d.header.record.tsc_to_system_mul, d.header.record.tsc_shift) = (u32::MAX, -31);
        d.make_consistent(Some(1));
    }),
    ("advance, mul 2^31 and shift 1, 10 years back", |d, _| {
        back(d, 315_576_000_000_000_000);
        (d.header.record.tsc_to_system_mul, d.header.record.tsc_shift) = (1 << 31, 1);
        d.make_consistent(Some(0));
    }),
    ("advance, KVM's own factor, an hour back", |d, _| {
        back(d, 3_600_000_000_000);
        d.header.flags &= !FLAG_RESLOPE;
        d.make_consistent(Some(1));
    }),
    ("mul 2^31 - 1", |d, _| {
        d.header.record.tsc_to_system_mul = (1 << 31) - 1;
        d.make_consistent(Some(1));
    }),
    ("advance, lowest TAI", |d, _| {
        any_rate(d, MODE_ADVANCE, i64::MIN)
    }),
    ("advance, highest TAI", |d, _| {
        any_rate(d, MODE_ADVANCE, i64::MAX)
    }),
    ("advance, lowest TAI - UTC", |d, _| {
        any_rate(d, MODE_ADVANCE, i64::MIN);
        d.header.tai_offset_s = i32::MIN;
    }),
    ("advance, highest TAI - UTC", |d, _| {
        any_rate(d, MODE_ADVANCE, i64::MAX);
        d.header.tai_offset_s = i32::MAX;
    }),
    ("advance, fastest rate", |d, _| {
        any_rate(d, MODE_ADVANCE, d.header.tai_ns);
        (d.header.host_tsc_khz, d.header.tsc_ratio) = (u32::MAX, u64::MAX);
        d.header.tsc_frac_bits = 1;
        d.make_consistent(Some(0));
    }),
    ("freeze, slowest rate", |d, _| {
        any_rate(d, MODE_FREEZE, 0);
        (d.header.host_tsc_khz, d.header.tsc_ratio) = (1, 1);
        d.header.tsc_frac_bits = 9;
        d.make_consistent(Some(0));
    }),
    ("exact, fastest rate", |d, _| {
        any_rate(d, MODE_EXACT, 0);
        (d.header.host_tsc_khz, d.header.tsc_ratio) = (u32::MAX, u64::MAX);
        d.header.tsc_frac_bits = 1;
        d.make_consistent(Some(0));
    }),
    ("highest number of vCPUs", |d, _| {
        d.header.nr_vcpus = u32::MAX
    }),
    ("array in the header", |d, _| d.array_at = d.header_at),
    ("array at the header's end", |d, _| {
        d.array_at = d.header_at + (KNOWN - ENTRY) as u64;
    }),
    ("header at the last bytes of the address space", |d, _| {
        d.header_at = 0u64.wrapping_sub(KNOWN as u64);
    }),
    ("header around the end of the address space", |d, _| {
        d.header_at = 0u64.wrapping_sub(KNOWN as u64 / 2);
    }),
    ("array around the end of the address space", |d, _| {
        d.array_at = 0u64.wrapping_sub(ENTRY as u64 / 2);
    }),
    ("read-only from status on", |d, arena| {
        d.header_at = arena.address(10 * PAGE - offset_of!(pvclock::abi::VmClockGuest, status));
    }),
    ("read-only from the precision on", |d, arena| {
        d.header_at =
            arena.address(10 * PAGE - offset_of!(pvclock::abi::VmClockGuest, precision_ns));
    }),
    ("all ones", |d, _| fill(d, u8::MAX)),
    ("all zeros", |d, _| fill(d, 0)),
];

/// ADVANCE to an earlier time.
fn back(argument: &mut Argument, ns: i64) {
    let header = &mut argument.header;
    (header.mode, header.flags) = (MODE_ADVANCE, FLAGS_KNOWN);
    header.tai_ns += ns;
}

/// With all flags set.
fn any_rate(argument: &mut Argument, mode: u32, tai_ns: i64) {
    let header = &mut argument.header;
    (header.mode, header.flags, header.tai_ns) = (mode, FLAGS_KNOWN, tai_ns);
}

/// Sets all bytes of the header except size and number of vCPUs.
fn fill(argument: &mut Argument, byte: u8) {
    let (size, nr_vcpus) = (argument.header.size, argument.header.nr_vcpus);
    argument.header = zerocopy::transmute!([byte; KNOWN]);
    (argument.header.size, argument.header.nr_vcpus) = (size, nr_vcpus);
}

pub(crate) fn cases() -> Vec<Case<Host>> {
    let name = format!("{} fixed arguments of SET and GET", SETS.len());
    vec![Case::new(name, all)]
}

fn all(host: &Host) -> Result<()> {
    let mut rng = host.rng(0);
    let fixture = Fixture::pinned(&host.kvm, &mut rng)?;
    let mut fuzz = Fuzz::new(host, rng, fixture)?;
    for &(name, edit) in SETS {
        one(&mut fuzz, edit).context(name)?;
    }
    fuzz.counts.report();
    Ok(())
}

fn one(fuzz: &mut Fuzz<'_>, edit: Edit) -> Result<()> {
    let mut argument = Argument::of(&fuzz.arena, &fuzz.state);
    edit(&mut argument, &fuzz.arena);
    vm_calls::set_as(fuzz, &mut argument)
        .with_context(|| format!("KVM_SET_VM_CLOCK_GUEST {argument:x?}"))?;
    guest::ensure_reads(fuzz, false)?;
    // GET requires these to be 0.
    (argument.header.flags, argument.header.mode) = (0, 0);
    vm_calls::get_as(fuzz, &mut argument)
        .with_context(|| format!("KVM_GET_VM_CLOCK_GUEST {argument:x?}"))
}
