// SPDX-License-Identifier: GPL-2.0-only

//! Mutations of a VM ioctl's argument. A mutated SET may still be just within the limits: `model`
//! decides.

use crate::{
    arena::Arena,
    extremes::{any32, any64, magnitude, one_in, pick, Rng},
    generate::Argument,
    model::{ENTRY, KNOWN},
};
use kvm_clock_guest_selftests::prelude::*;
use pvclock::abi::{FLAG_ALLOW_RATE_MISMATCH, FLAG_RESLOPE};
use rand::Rng as _;
use zerocopy::{FromBytes, IntoBytes};

type Mutation = fn(&mut Argument, &mut Rng, &Arena);

/// Of the header or the array of both ioctls.
const BOTH: &[Mutation] = &[
    |d, rng, _| d.header.flags ^= 1 << rng.random_range(0..32),
    |d, rng, _| d.header.mode = any32(rng),
    |d, rng, _| d.header.size = any32(rng),
    |d, rng, _| d.header.size = pick(rng, &[0, 4, KNOWN as u32 - 1, 4096, 4097, u32::MAX]),
    |d, rng, _| set_tail(d, rng),
    |d, rng, _| d.header.nr_vcpus = any32(rng),
    |d, rng, _| d.header.nr_vcpus = d.header.nr_vcpus.wrapping_add(pick(rng, &[1, u32::MAX])),
    |d, rng, _| flip(d, rng),
    // Addresses, most of them invalid.
    |d, rng, arena| d.header_at = arena.wrong_place(rng, KNOWN + d.tail.len()),
    |d, rng, arena| d.header_at = arena.wrong_place(rng, KNOWN),
    |d, rng, arena| d.array_at = arena.wrong_place(rng, d.entries.len() * ENTRY),
    |d, rng, arena| d.array_at = arena.wrong_place(rng, ENTRY),
    // The two overlap.
    |d, rng, _| d.array_at = d.header_at.wrapping_add(rng.random_range(0..KNOWN as u64)),
    |d, rng, _| d.array_at = d.header_at.wrapping_sub(rng.random_range(0..ENTRY as u64)),
];

/// Of SET alone; some of its values are made consistent afterwards.
const SET: &[Mutation] = &[
    |d, rng, _| d.header.status ^= 1 << rng.random_range(0..32),
    |d, rng, _| d.header.record.pad0 = any32(rng),
    |d, rng, _| d.header.record.pad[rng.random_range(0..2)] = rng.random(),
    |d, rng, _| {
        d.header.record.tsc_to_system_mul = pick(rng, &[0, 1, (1 << 31) - 1, 1 << 31, u32::MAX])
    },
    |d, rng, _| {
        // Around the tolerance.
        let (mul, ppm) = (
            d.header.record.tsc_to_system_mul,
            rng.random_range(-600..=600),
        );
        let mul = i64::from(mul) + i64::from(mul) * ppm / 1_000_000;
        d.header.record.tsc_to_system_mul = mul as u32;
        d.header.flags &= !FLAG_RESLOPE;
    },
    |d, rng, _| d.header.flags ^= FLAG_RESLOPE * rng.random_range(0..=1),
    |d, rng, _| d.header.paused_ns = any64(rng) | 1 << 63,
    |d, rng, _| {
        // The sum is the highest valid one, or one more.
        d.header.paused_ns = magnitude(rng, 62);
        let steal_ns = (1 << 63) - rng.random_range(0..=1) - d.header.paused_ns;
        on_entry(d, rng, |entry, _| entry.steal_ns = steal_ns);
    },
    |d, rng, _| d.header.record.tsc_shift = rng.random(),
    |d, rng, _| d.header.record.tsc_shift = pick(rng, &[-128, -32, -31, 31, 32, 64, 127]),
    |d, rng, _| d.header.record.tsc_timestamp = GuestTsc(any64(rng)),
    |d, rng, _| d.header.record.system_time = any64(rng),
    |d, rng, _| d.header.host_tsc_khz = any32(rng),
    |d, rng, _| {
        // Around the tolerance.
        let ppm = rng.random_range(-300..=300);
        let khz = i64::from(d.header.host_tsc_khz);
        d.header.host_tsc_khz = (khz + khz * ppm / 1_000_000) as u32;
        d.header.flags &= !FLAG_ALLOW_RATE_MISMATCH;
    },
    |d, rng, _| {
        // An hour and more ahead.
        let ticks = u64::from(d.header.host_tsc_khz) * 3_600_000;
        d.header.host_tsc = d
            .header
            .host_tsc
            .wrapping_add(ticks << rng.random_range(0..8));
        d.header.mode = MODE_EXACT;
    },
    |d, rng, _| {
        // In the future, if it was not long ago.
        let hour_ns = 3_600_000_000_000 << rng.random_range(0..12);
        d.header.tai_ns = d.header.tai_ns.wrapping_add(hour_ns);
        d.header.mode = MODE_ADVANCE;
        d.header.flags &= !FLAG_ALLOW_BACKWARDS;
    },
    |d, rng, _| d.header.tsc_ratio = any64(rng),
    |d, rng, _| d.header.tsc_frac_bits = pick(rng, &[0, 1, 32, 48, 63, 64, 128, u32::MAX]),
    |d, rng, _| d.header.tsc_frac_bits = any32(rng),
    |d, rng, _| {
        d.header.tsc_ratio = any64(rng).max(1);
        d.header.tsc_frac_bits = rng.random_range(1..64);
    },
    |d, rng, _| d.header.ref_vcpu_id = any32(rng),
    |d, rng, _| d.header.host_tsc = HostTsc(any64(rng)),
    |d, rng, _| d.header.tai_ns = any64(rng) as i64,
    |d, rng, _| d.header.tai_ns = d.header.tai_ns.wrapping_add(any64(rng) as i64),
    |d, rng, _| d.header.tai_offset_s = any32(rng) as i32,
    |d, rng, _| on_entry(d, rng, |entry, rng| entry.pad = any32(rng)),
    |d, rng, _| on_entry(d, rng, |entry, rng| entry.steal_ns = any64(rng) | 1 << 63),
    |d, rng, _| on_entry(d, rng, |entry, rng| entry.vcpu_id = any32(rng)),
    |d, rng, _| on_entry(d, rng, |entry, rng| entry.vcpu_id ^= rng.random_range(0..4)),
    |d, rng, _| {
        on_entry(d, rng, |entry, rng| {
            entry.tsc_offset = TscOffset(any64(rng))
        })
    },
    |d, rng, _| {
        let entry = d.entries[0];
        on_entry(d, rng, |other, _| *other = entry);
    },
    |d, rng, _| d.entries.truncate(rng.random_range(0..=d.entries.len())),
    |d, rng, _| {
        let entry = d.entries[0];
        d.entries.push(ClockGuestVcpu {
            vcpu_id: any32(rng),
            ..entry
        });
    },
];

/// Contradictions within the header.
const CONTRADICTION: &[Mutation] = &[
    |d, rng, _| d.header.guest_tsc.0 ^= 1 << rng.random_range(0..64),
    |d, rng, _| d.header.kvmclock_ns ^= 1 << rng.random_range(0..64),
    |d, rng, _| d.header.kvmclock_ns = any64(rng),
    |d, rng, _| {
        // The record lies ahead of the TSC, or nearly so.
        let age = any64(rng);
        d.make_consistent(Some(age));
    },
];

/// Applies one or several mutations to `argument`, of a GET or a SET.
pub(crate) fn mutate(argument: &mut Argument, rng: &mut Rng, arena: &Arena, is_set: bool) {
    let ways = pick(rng, &[1, 1, 1, 1, 2, 3]);
    for _ in 0..ways {
        let table = match rng.random_range(0..8) {
            0 if is_set => CONTRADICTION,
            1..5 if is_set => SET,
            _ => BOTH,
        };
        // An earlier mutation may have removed all entries.
        if !argument.entries.is_empty() {
            pick(rng, table)(argument, rng, arena);
        }
        if std::ptr::eq(table, SET) {
            // CAST: A few.
            argument.header.nr_vcpus = argument.entries.len() as u32;
            argument.make_consistent(None);
        }
    }
}

fn set_tail(argument: &mut Argument, rng: &mut Rng) {
    let len = 1 + magnitude(rng, 11) as usize;
    argument.tail = vec![0; len];
    argument.tail[rng.random_range(0..len)] = rng.random();
    argument.header.size = (KNOWN + len) as u32;
    // The byte that is set may also lie beyond the size.
    if one_in(rng, 4) {
        argument.header.size = rng.random_range(KNOWN as u32..=argument.header.size);
    }
}

/// Flips a few bits, except in the array's address, to which GET writes.
fn flip(argument: &mut Argument, rng: &mut Rng) {
    let mut bytes = [0; KNOWN];
    bytes.copy_from_slice(argument.header.as_bytes());
    for _ in 0..rng.random_range(1..4) {
        let index = rng.random_range(0..KNOWN);
        bytes[index] ^= 1 << rng.random_range(0..8);
    }
    let vcpus = argument.header.vcpus;
    argument.header = VmClockGuest::read_from_bytes(&bytes).expect("a header's bytes are a header");
    argument.header.vcpus = vcpus;
}

fn on_entry(
    argument: &mut Argument,
    rng: &mut Rng,
    edit: impl FnOnce(&mut ClockGuestVcpu, &mut Rng),
) {
    let index = rng.random_range(0..argument.entries.len());
    edit(&mut argument.entries[index], rng);
}
