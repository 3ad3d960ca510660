// SPDX-License-Identifier: GPL-2.0-only

//! Arguments of the VM ioctls: valid ones, with values as extreme as possible.

use crate::{
    arena::{Arena, ARRAY, HEADER, PAGE},
    extremes::{any32, any64, magnitude, one_in, pick, Rng},
    model::{ENTRY, KNOWN},
    records::{near_factor, record},
    state::State,
};
use kvm_clock_guest_selftests::prelude::*;
use pvclock::{
    abi::{FLAGS_KNOWN, FLAG_ALLOW_RATE_MISMATCH, FLAG_FALLBACK, FLAG_RESLOPE, STATUS_KNOWN},
    tsc::Scale,
};
use pvclock_reference::arithmetic::{guest_tsc, kvmclock_ns};
use rand::{seq::SliceRandom, Rng as _};
use zerocopy::IntoBytes;

/// An argument, before it is written to memory.
#[derive(Clone, Debug)]
pub(crate) struct Argument {
    /// The header; [`Argument::put`] sets `vcpus`.
    pub(crate) header: VmClockGuest,
    /// The bytes after the header.
    pub(crate) tail: Vec<u8>,
    /// The array.
    pub(crate) entries: Vec<ClockGuestVcpu>,
    /// The address of the header.
    pub(crate) header_at: u64,
    /// The address of the array.
    pub(crate) array_at: u64,
}

impl Argument {
    /// A GET that should succeed.
    pub(crate) fn get(rng: &mut Rng, arena: &Arena, state: &State) -> Self {
        let more = if one_in(rng, 4) { magnitude(rng, 5) } else { 0 };
        let vcpus = state.offsets.len() + more as usize;
        let mut entry = || ClockGuestVcpu {
            vcpu_id: any32(rng),
            pad: any32(rng),
            tsc_offset: TscOffset(any64(rng)),
            steal_ns: any64(rng),
        };
        let entries = (0..vcpus).map(|_| entry()).collect();
        let header = VmClockGuest {
            flags: FLAG_FALLBACK * rng.random_range(0..=1),
            mode: 0,
            ..any_header(rng)
        };
        Self::new(rng, arena, header, entries)
    }

    /// A SET that should succeed, if no vCPU runs.
    pub(crate) fn set(rng: &mut Rng, arena: &Arena, state: &State) -> Self {
        let present = state.clock.clone().unwrap_or_default();
        let here = present.header;
        let mut header = VmClockGuest {
            flags: any32(rng) & FLAGS_KNOWN,
            mode: pick(rng, &[MODE_EXACT, MODE_ADVANCE, MODE_FREEZE]),
            // CAST: A few.
            ref_vcpu_id: rng.random_range(0..state.offsets.len() as u32),
            paused_ns: steal_ns(rng),
            ..any_header(rng)
        };
        choose_rate(rng, &mut header, &here);
        header.host_tsc = match header.mode {
            MODE_EXACT => here.host_tsc.wrapping_sub(magnitude(rng, 62)),
            _ => HostTsc(any64(rng)),
        };
        header.tai_offset_s = pick(
            rng,
            &[here.tai_offset_s, here.tai_offset_s, 0, 9, 10, 37, -1],
        );
        // Less than 2^61 ticks at any rate that is chosen here.
        let elapsed_ns = magnitude(rng, 56) as i64;
        let is_back = header.flags & FLAG_ALLOW_BACKWARDS != 0 && one_in(rng, 2);
        if header.mode == MODE_ADVANCE {
            let elapsed_ns = if is_back { -elapsed_ns } else { elapsed_ns };
            let utc_diff_s = match (header.tai_offset_s < 10, here.tai_offset_s < 10) {
                (saved, now) if saved == now => 0,
                _ => i64::from(header.tai_offset_s) - i64::from(here.tai_offset_s),
            };
            header.tai_ns = here.tai_ns - elapsed_ns + utc_diff_s * 1_000_000_000;
        }
        let entries = entries(rng, state);
        header.record = record(rng, header.mode == MODE_ADVANCE && is_back);
        if header.flags & FLAG_RESLOPE == 0 || one_in(rng, 2) {
            let factor = near_factor(rng, &here);
            header.record.tsc_to_system_mul = factor.mul;
            header.record.tsc_shift = factor.shift;
        }
        let mut argument = Self::new(rng, arena, header, entries);
        let age = magnitude(rng, 62);
        argument.make_consistent(Some(age));
        argument
    }

    /// A SET of GET's unchanged result.
    pub(crate) fn of(arena: &Arena, state: &State) -> Self {
        let present = state.clock.clone().unwrap_or_default();
        Self {
            header: VmClockGuest {
                mode: MODE_EXACT,
                // CAST: Some hundred bytes, and a few vCPUs.
                size: KNOWN as u32,
                nr_vcpus: present.vcpus.len() as u32,
                ..present.header
            },
            header_at: arena.address(HEADER),
            array_at: arena.address(ARRAY),
            tail: Vec::new(),
            entries: present.vcpus,
        }
    }

    fn new(
        rng: &mut Rng,
        arena: &Arena,
        header: VmClockGuest,
        entries: Vec<ClockGuestVcpu>,
    ) -> Self {
        let tail = match rng.random_range(0..64) {
            0 => PAGE - KNOWN,
            1..8 => magnitude(rng, 11) as usize,
            _ => 0,
        };
        // CAST: A page at most.
        let size = (KNOWN + tail) as u32;
        Self {
            header: VmClockGuest {
                size,
                // CAST: A few.
                nr_vcpus: entries.len() as u32,
                ..header
            },
            header_at: arena.place(rng, HEADER, size as usize),
            array_at: arena.place(rng, ARRAY, entries.len() * ENTRY),
            tail: vec![0; tail],
            entries,
        }
    }

    /// Computes `guest_tsc` and `kvmclock_ns` from the rest; with `age`, the record is so many
    /// ticks old at the anchor.
    pub(crate) fn make_consistent(&mut self, age: Option<u64>) {
        let header = &mut self.header;
        let reference = self
            .entries
            .iter()
            .find(|entry| entry.vcpu_id == header.ref_vcpu_id);
        let offset = reference.map_or(TscOffset(0), |entry| entry.tsc_offset);
        // SET refuses a ratio that is none.
        let scale = Scale::new(header.tsc_ratio, header.tsc_frac_bits).unwrap_or(Scale::IDENTITY);
        header.guest_tsc = guest_tsc(scale, offset, header.host_tsc);
        if let Some(age) = age {
            header.record.tsc_timestamp = header.guest_tsc.wrapping_sub(age);
        }
        header.kvmclock_ns = kvmclock_ns(&header.record, header.guest_tsc);
    }

    /// Writes the argument to memory.
    pub(crate) fn put(&mut self, arena: &Arena) {
        self.header.vcpus = self.array_at;
        // The header last: it may overlap the array.
        if let Some(offset) = arena.offset(self.array_at) {
            arena.write(offset, self.entries.as_bytes());
        }
        if let Some(offset) = arena.offset(self.header_at) {
            arena.write(offset + KNOWN, &self.tail);
            arena.write(offset, self.header.as_bytes());
        }
    }
}

/// A header whose fields are those that the ioctl ignores, and are random.
fn any_header(rng: &mut Rng) -> VmClockGuest {
    VmClockGuest {
        status: any32(rng) & STATUS_KNOWN,
        ref_vcpu_id: any32(rng),
        host_tsc: HostTsc(any64(rng)),
        guest_tsc: GuestTsc(any64(rng)),
        kvmclock_ns: any64(rng),
        // CAST: any bits.
        tai_ns: any64(rng) as i64,
        monotonic_raw_ns: any64(rng) as i64,
        tai_offset_s: any32(rng) as i32,
        host_tsc_khz: any32(rng),
        tsc_ratio: any64(rng),
        tsc_frac_bits: any32(rng),
        precision_ns: any32(rng),
        rate_diff_hz: any64(rng) as i64,
        paused_ns: any64(rng),
        record: ClockGuest {
            version: any32(rng),
            tsc_timestamp: GuestTsc(any64(rng)),
            // CAST: any bits.
            flags: any32(rng) as u8,
            ..ClockGuest::default()
        },
        ..VmClockGuest::default()
    }
}

/// Chooses a rate that SET accepts on this host.
fn choose_rate(rng: &mut Rng, header: &mut VmClockGuest, here: &VmClockGuest) {
    (header.tsc_ratio, header.tsc_frac_bits) = (here.tsc_ratio, here.tsc_frac_bits);
    let scale = Scale::new(here.tsc_ratio, here.tsc_frac_bits);
    let is_identity = scale.is_some_and(Scale::is_identity);
    let identity = rng.random_range(1..63);
    if is_identity && one_in(rng, 4) {
        (header.tsc_ratio, header.tsc_frac_bits) = (1 << identity, identity);
    }
    let near = i64::from(here.host_tsc_khz / 5_000);
    header.host_tsc_khz = match header.mode {
        MODE_EXACT => any32(rng).max(1),
        _ if header.flags & FLAG_ALLOW_RATE_MISMATCH != 0 && one_in(rng, 2) => {
            rng.random_range(1..10_000_000)
        }
        _ => here
            .host_tsc_khz
            .saturating_add_signed(rng.random_range(-near..=near) as i32),
    };
}

/// A steal time (ns) that SET accepts, also as one of two summands.
fn steal_ns(rng: &mut Rng) -> u64 {
    match rng.random_range(0..4) {
        0 => 0,
        1 => (1 << 62) - 1,
        _ => magnitude(rng, 62),
    }
}

/// Every vCPU once, in any order.
fn entries(rng: &mut Rng, state: &State) -> Vec<ClockGuestVcpu> {
    let (by, which) = (any64(rng), rng.random_range(0..4));
    let steals = one_in(rng, 2);
    let entry = |(vcpu_id, &present): (u32, &TscOffset)| ClockGuestVcpu {
        vcpu_id,
        pad: 0,
        tsc_offset: match which {
            0 => present,
            1 => present.wrapping_add(by),
            2 => TscOffset(by),
            _ => TscOffset(any64(rng)),
        },
        steal_ns: if steals { steal_ns(rng) } else { 0 },
    };
    let mut entries: Vec<_> = (0..).zip(&state.offsets).map(entry).collect();
    if one_in(rng, 3) {
        entries.shuffle(rng);
    }
    entries
}
