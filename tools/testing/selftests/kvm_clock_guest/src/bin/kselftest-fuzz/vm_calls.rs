// SPDX-License-Identifier: GPL-2.0-only

//! Calls of `KVM_GET_VM_CLOCK_GUEST` and `KVM_SET_VM_CLOCK_GUEST`, and checks of their results.

use crate::{
    arena::Arena,
    extremes::one_in,
    fixture::ioctl,
    fuzz::Fuzz,
    generate::Argument,
    model::{self, Given, ENTRY, KNOWN},
    mutate::mutate,
    outcome, plan,
    state::State,
};
use kvm_clock_guest_selftests::prelude::*;
use pvclock::abi::{KVM_GET_VM_CLOCK_GUEST, KVM_SET_VM_CLOCK_GUEST};
use pvclock_reference::rules;
use std::{mem::offset_of, os::fd::AsRawFd};
use zerocopy::IntoBytes;

/// Bytes around an argument that must not change.
const MARGIN: usize = 64;

/// The former contents of a piece of memory.
struct Piece {
    offset: usize,
    bytes: Vec<u8>,
}

impl Piece {
    /// The `len` bytes at `address` and their surroundings, if they are ours.
    fn around(arena: &Arena, address: u64, len: usize) -> Option<Self> {
        let offset = arena.offset(address)?.saturating_sub(MARGIN);
        Some(Self {
            offset,
            bytes: arena.read(offset, len + 2 * MARGIN),
        })
    }

    /// Expects `bytes` at `offset`.
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        for (offset, byte) in (offset..).zip(bytes) {
            let index = offset.wrapping_sub(self.offset);
            if let Some(place) = self.bytes.get_mut(index) {
                *place = *byte;
            }
        }
    }

    /// Fails unless the memory has the expected contents.
    fn ensure_untouched(&self, arena: &Arena, what: &str) -> Result<()> {
        let now = arena.read(self.offset, self.bytes.len());
        ensure!(
            now == self.bytes,
            "{what} was written to: bytes at {:#x} were {:x?}\nand are {now:x?}",
            self.offset,
            self.bytes
        );
        Ok(())
    }
}

/// A GET.
pub(crate) fn get(fuzz: &mut Fuzz<'_>) -> Result<()> {
    let mut argument = Argument::get(&mut fuzz.rng, &fuzz.arena, &fuzz.state);
    if fuzz.only_failures || one_in(&mut fuzz.rng, 2) {
        mutate(&mut argument, &mut fuzz.rng, &fuzz.arena, false);
    }
    call(fuzz, argument, get_as)
}

/// A SET.
pub(crate) fn set(fuzz: &mut Fuzz<'_>) -> Result<()> {
    let mut argument = Argument::set(&mut fuzz.rng, &fuzz.arena, &fuzz.state);
    if fuzz.only_failures || one_in(&mut fuzz.rng, 2) {
        mutate(&mut argument, &mut fuzz.rng, &fuzz.arena, true);
    }
    call(fuzz, argument, set_as)
}

/// Makes a call; an error reports `argument`.
fn call(
    fuzz: &mut Fuzz<'_>,
    mut argument: Argument,
    call_with: fn(&mut Fuzz<'_>, &mut Argument) -> Result<()>,
) -> Result<()> {
    call_with(fuzz, &mut argument).with_context(|| {
        let base = fuzz.arena.address(0);
        format!(
            "header at {:#x}, array at {:#x} of the pages: {:x?}",
            argument.header_at.wrapping_sub(base),
            argument.array_at.wrapping_sub(base),
            Argument {
                tail: Vec::new(),
                ..argument.clone()
            }
        )
    })
}

/// GET with `argument`.
pub(crate) fn get_as(fuzz: &mut Fuzz<'_>, argument: &mut Argument) -> Result<()> {
    argument.put(&fuzz.arena);
    let arena = &fuzz.arena;
    let expected = model::get(arena, argument.header_at, &fuzz.state);
    if fuzz.only_failures && !expected.must_fail() {
        return Ok(());
    }
    let header_len = KNOWN + argument.tail.len();
    let vcpus = fuzz.state.offsets.len();
    let header = Piece::around(arena, argument.header_at, header_len);
    let array = Piece::around(
        arena,
        argument.array_at,
        argument.entries.len().max(vcpus) * ENTRY,
    );
    let fd = fuzz.fixture.vm().fd().as_raw_fd();
    let before = rdtsc_ordered();
    let result = ioctl(fd, KVM_GET_VM_CLOCK_GUEST, argument.header_at);
    let host_tsc = [before, rdtsc_ordered()];
    fuzz.count("KVM_GET_VM_CLOCK_GUEST", result);
    expected.check(result)?;
    fuzz.ensure_unchanged()?;

    let arena = &fuzz.arena;
    let overlap = overlap(argument, argument.entries.len().max(vcpus));
    match (result, header, array) {
        (Ok(_), Some(mut header), Some(mut array)) => {
            let at = header_offset(arena, argument);
            let got = arena.value::<VmClockGuest>(at).context("no header")?;
            let array_at = arena.offset(argument.array_at).context("no array")?;
            let reported: Vec<_> = (0..vcpus)
                .filter_map(|index| arena.value::<ClockGuestVcpu>(array_at + index * ENTRY))
                .collect();
            let vcpus = (!overlap).then_some(&reported[..]);
            outcome::ensure_got(&argument.header, &got, vcpus, &fuzz.state, host_tsc)?;
            if !overlap {
                header.put(at, got.as_bytes());
                array.put(array_at, reported.as_bytes());
                header.ensure_untouched(arena, "the header's surroundings")?;
                array.ensure_untouched(arena, "the array's surroundings")?;
            }
        }
        (Err(errno), Some(mut header), array) => {
            // E2BIG may be due to the size or to the number of vCPUs.
            let reported = arena.value::<VmClockGuest>(header_offset(arena, argument));
            let reported = reported.map_or(0, |reported| reported.nr_vcpus);
            // CAST: A few.
            if errno == libc::E2BIG
                && reported == vcpus as u32
                && argument.header.nr_vcpus < reported
            {
                let at = header_offset(arena, argument) + offset_of!(VmClockGuest, nr_vcpus);
                header.put(at, reported.as_bytes());
            }
            // After EFAULT, the array may have been written before the header failed.
            if errno != libc::EFAULT {
                header.ensure_untouched(arena, "the header")?;
                let untouched = |array: Piece| array.ensure_untouched(arena, "the array");
                if !overlap {
                    array.map_or(Ok(()), untouched)?;
                }
            }
        }
        _ => (),
    }
    Ok(())
}

/// SET with `argument`.
pub(crate) fn set_as(fuzz: &mut Fuzz<'_>, argument: &mut Argument) -> Result<()> {
    argument.put(&fuzz.arena);
    let arena = &fuzz.arena;
    let busy = fuzz.fixture.is_any_running();
    let (expected, given) = model::set(arena, argument.header_at, &fuzz.state, busy);
    let expected = |states: [&State; 2]| {
        let mut expected = expected.clone();
        if let Some(given) = &given {
            plan::plan(&mut expected, &given.header, states);
        }
        expected
    };
    if fuzz.only_failures && !expected([&fuzz.state; 2]).must_fail() {
        return Ok(());
    }
    let header = Piece::around(arena, argument.header_at, KNOWN + argument.tail.len());
    let array = Piece::around(arena, argument.array_at, argument.entries.len() * ENTRY);
    let fd = fuzz.fixture.vm().fd().as_raw_fd();
    let result = ioctl(fd, KVM_SET_VM_CLOCK_GUEST, argument.header_at);
    fuzz.count("KVM_SET_VM_CLOCK_GUEST", result);
    let was = fuzz.check(result, expected)?;

    let arena = &fuzz.arena;
    match (result, &given, header) {
        (Ok(_), Some(given), Some(mut header)) => {
            let was = was.context("no state before SET")?;
            outcome::ensure_set(given, [&was, &fuzz.state])?;
            let back = outcome::written_back(given, &was, Some(&fuzz.state))?;
            header.put(header_offset(arena, argument), back.as_bytes());
            header.ensure_untouched(arena, "more than is reported")?;
        }
        (Err(errno), given, Some(header)) => {
            ensure_reported(arena, argument, errno, given.as_ref(), header, &fuzz.state)?;
        }
        _ => (),
    }
    if !overlap(argument, argument.entries.len()) {
        array.map_or(Ok(()), |array| array.ensure_untouched(arena, "the array"))?;
    }
    Ok(())
}

/// Fails if a failed SET wrote anything but `rate_diff_hz`, or did not write that where it must.
fn ensure_reported(
    arena: &Arena,
    argument: &Argument,
    errno: i32,
    given: Option<&Given>,
    mut header: Piece,
    state: &State,
) -> Result<()> {
    // After EFAULT, any writable part may have been written.
    if errno == libc::EFAULT {
        return Ok(());
    }
    let at = header_offset(arena, argument) + offset_of!(VmClockGuest, rate_diff_hz);
    let must = [libc::ERANGE, libc::ESTALE, libc::ETIME].contains(&errno);
    let diff = match given {
        Some(given) if must || errno == libc::EINVAL && state.clock.is_some() => {
            rules::rate(&given.header)
                .map(|_| outcome::written_back(given, state, None))
                .transpose()?
                .map(|back| back.rate_diff_hz)
        }
        _ => None,
    };
    let is_reported = diff.is_some() && arena.value::<i64>(at) == diff;
    ensure!(!must || is_reported, "rate_diff_hz is not {diff:?}");
    if let (true, Some(diff)) = (is_reported, diff) {
        header.put(at, diff.as_bytes());
    }
    header.ensure_untouched(arena, "the header")
}

fn header_offset(arena: &Arena, argument: &Argument) -> usize {
    arena.offset(argument.header_at).unwrap_or(0)
}

/// Whether header and array overlap, including their margins.
fn overlap(argument: &Argument, entries: usize) -> bool {
    let margin = MARGIN as u64;
    let header_end = argument
        .header_at
        .saturating_add((KNOWN + argument.tail.len()) as u64 + 2 * margin);
    let array_end = argument
        .array_at
        .saturating_add((entries * ENTRY) as u64 + 2 * margin);
    argument.array_at <= header_end && argument.header_at <= array_end
}
