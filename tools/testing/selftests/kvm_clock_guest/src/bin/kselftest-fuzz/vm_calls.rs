// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_GET_VM_CLOCK_GUEST` and `KVM_SET_VM_CLOCK_GUEST`: made, and judged.

use crate::{
    arena::Arena,
    bend::bend,
    draft::Draft,
    extremes::one_in,
    fuzz::Fuzz,
    model::{self, Given, ENTRY, KNOWN},
    outcome, plan,
    state::State,
    subject::ioctl,
};
use anyhow::{ensure, Context, Result};
use clockguest::host::rdtsc_ordered;
use pvclock::abi::{ClockGuestVcpu, VmClockGuest, KVM_GET_VM_CLOCK_GUEST, KVM_SET_VM_CLOCK_GUEST};
use std::{mem::offset_of, os::fd::AsRawFd};
use zerocopy::IntoBytes;

/// Bytes around an argument that have to stay what they are.
const MARGIN: usize = 64;

/// A piece of memory, as it was.
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

    /// Takes `bytes` at `offset` for what it was.
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        for (offset, byte) in (offset..).zip(bytes) {
            let index = offset.wrapping_sub(self.offset);
            if let Some(place) = self.bytes.get_mut(index) {
                *place = *byte;
            }
        }
    }

    /// Fails unless it still is what it was.
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
    let mut draft = Draft::get(&mut fuzz.rng, &fuzz.arena, &fuzz.state);
    if fuzz.only_failures || one_in(&mut fuzz.rng, 2) {
        bend(&mut draft, &mut fuzz.rng, &fuzz.arena, false);
    }
    made(fuzz, draft, get_as)
}

/// A SET.
pub(crate) fn set(fuzz: &mut Fuzz<'_>) -> Result<()> {
    let mut draft = Draft::set(&mut fuzz.rng, &fuzz.arena, &fuzz.state);
    if fuzz.only_failures || one_in(&mut fuzz.rng, 2) {
        bend(&mut draft, &mut fuzz.rng, &fuzz.arena, true);
    }
    made(fuzz, draft, set_as)
}

/// Makes a call with `draft`, which is told if it fails.
fn made(
    fuzz: &mut Fuzz<'_>,
    mut draft: Draft,
    call: fn(&mut Fuzz<'_>, &mut Draft) -> Result<()>,
) -> Result<()> {
    call(fuzz, &mut draft).with_context(|| {
        let base = fuzz.arena.address(0);
        format!(
            "header at {:#x}, array at {:#x} of the pages: {:x?}",
            draft.header_at.wrapping_sub(base),
            draft.array_at.wrapping_sub(base),
            Draft {
                tail: Vec::new(),
                ..draft.clone()
            }
        )
    })
}

/// GET with `draft`.
pub(crate) fn get_as(fuzz: &mut Fuzz<'_>, draft: &mut Draft) -> Result<()> {
    draft.put(&fuzz.arena);
    let arena = &fuzz.arena;
    let expected = model::get(arena, draft.header_at, &fuzz.state);
    if fuzz.only_failures && !expected.must_fail() {
        return Ok(());
    }
    let header_len = KNOWN + draft.tail.len();
    let vcpus = fuzz.state.offsets.len();
    let header = Piece::around(arena, draft.header_at, header_len);
    let array = Piece::around(
        arena,
        draft.array_at,
        draft.entries.len().max(vcpus) * ENTRY,
    );
    let fd = fuzz.subject.vm().fd().as_raw_fd();
    let before = rdtsc_ordered();
    let result = ioctl(fd, KVM_GET_VM_CLOCK_GUEST, draft.header_at);
    let host_tsc = [before, rdtsc_ordered()];
    fuzz.count("KVM_GET_VM_CLOCK_GUEST", result);
    expected.judge(result)?;
    fuzz.ensure_unchanged()?;

    let arena = &fuzz.arena;
    let overlap = overlap(draft, draft.entries.len().max(vcpus));
    match (result, header, array) {
        (Ok(_), Some(mut header), Some(mut array)) => {
            let at = header_offset(arena, draft);
            let got = arena.value::<VmClockGuest>(at).context("no header")?;
            let array_at = arena.offset(draft.array_at).context("no array")?;
            let told: Vec<_> = (0..vcpus)
                .filter_map(|index| arena.value::<ClockGuestVcpu>(array_at + index * ENTRY))
                .collect();
            let vcpus = (!overlap).then_some(&told[..]);
            outcome::ensure_got(&draft.header, &got, vcpus, &fuzz.state, host_tsc)?;
            if !overlap {
                header.put(at, got.as_bytes());
                array.put(array_at, told.as_bytes());
                header.ensure_untouched(arena, "the header's surroundings")?;
                array.ensure_untouched(arena, "the array's surroundings")?;
            }
        }
        (Err(errno), Some(mut header), array) => {
            // Whether it was E2BIG by size or by number.
            let told = arena.value::<VmClockGuest>(header_offset(arena, draft));
            let told = told.map_or(0, |told| told.nr_vcpus);
            // CAST: A few.
            if errno == libc::E2BIG && told == vcpus as u32 && draft.header.nr_vcpus < told {
                let at = header_offset(arena, draft) + offset_of!(VmClockGuest, nr_vcpus);
                header.put(at, told.as_bytes());
            }
            // With EFAULT the array may have been written before the header could not be.
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

/// SET with `draft`.
pub(crate) fn set_as(fuzz: &mut Fuzz<'_>, draft: &mut Draft) -> Result<()> {
    draft.put(&fuzz.arena);
    let arena = &fuzz.arena;
    let busy = fuzz.subject.is_any_running();
    let (expected, given) = model::set(arena, draft.header_at, &fuzz.state, busy);
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
    let header = Piece::around(arena, draft.header_at, KNOWN + draft.tail.len());
    let array = Piece::around(arena, draft.array_at, draft.entries.len() * ENTRY);
    let fd = fuzz.subject.vm().fd().as_raw_fd();
    let result = ioctl(fd, KVM_SET_VM_CLOCK_GUEST, draft.header_at);
    fuzz.count("KVM_SET_VM_CLOCK_GUEST", result);
    let was = fuzz.judge(result, expected)?;

    let arena = &fuzz.arena;
    match (result, &given, header) {
        (Ok(_), Some(given), Some(mut header)) => {
            let was = was.context("nobody looked")?;
            outcome::ensure_set(given, [&was, &fuzz.state])?;
            let back = outcome::written_back(given, &was, Some(&fuzz.state))?;
            header.put(header_offset(arena, draft), back.as_bytes());
            header.ensure_untouched(arena, "more than is told")?;
        }
        (Err(errno), given, Some(header)) => {
            ensure_told(arena, draft, errno, given.as_ref(), header, &fuzz.state)?;
        }
        _ => (),
    }
    if !overlap(draft, draft.entries.len()) {
        array.map_or(Ok(()), |array| array.ensure_untouched(arena, "the array"))?;
    }
    Ok(())
}

/// Fails if a failing SET wrote anything but `rate_diff_hz`, and where it has to.
fn ensure_told(
    arena: &Arena,
    draft: &Draft,
    errno: i32,
    given: Option<&Given>,
    mut header: Piece,
    state: &State,
) -> Result<()> {
    // With EFAULT whatever could be written may have been.
    if errno == libc::EFAULT {
        return Ok(());
    }
    let at = header_offset(arena, draft) + offset_of!(VmClockGuest, rate_diff_hz);
    let must = [libc::ERANGE, libc::ESTALE, libc::ETIME].contains(&errno);
    let diff = match given {
        Some(given) if must || errno == libc::EINVAL && state.clock.is_some() => {
            model::is_rate(&given.header)
                .then(|| outcome::written_back(given, state, None))
                .transpose()?
                .map(|back| back.rate_diff_hz)
        }
        _ => None,
    };
    let is_told = diff.is_some() && arena.value::<i64>(at) == diff;
    ensure!(!must || is_told, "rate_diff_hz is not {diff:?}");
    if let (true, Some(diff)) = (is_told, diff) {
        header.put(at, diff.as_bytes());
    }
    header.ensure_untouched(arena, "the header")
}

fn header_offset(arena: &Arena, draft: &Draft) -> usize {
    arena.offset(draft.header_at).unwrap_or(0)
}

/// Whether header and array, margins included, have a byte in common.
fn overlap(draft: &Draft, entries: usize) -> bool {
    let margin = MARGIN as u64;
    let header_end = draft
        .header_at
        .saturating_add((KNOWN + draft.tail.len()) as u64 + 2 * margin);
    let array_end = draft
        .array_at
        .saturating_add((entries * ENTRY) as u64 + 2 * margin);
    draft.array_at <= header_end && draft.header_at <= array_end
}
