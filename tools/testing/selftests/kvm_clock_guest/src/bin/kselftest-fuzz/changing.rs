// SPDX-License-Identifier: GPL-2.0-only

//! Calls while another thread changes their argument: the ioctls must use the values that they
//! checked, and fail with `EFAULT` once a page is inaccessible.

use crate::{
    arena::{Arena, ARRAY, HEADER, PAGE},
    expected::errno_name,
    extremes::{magnitude, one_in, pick, Rng},
    fixture::{ioctl, Fixture},
    fuzz::Fuzz,
    generate::Argument,
    guest,
    model::{ENTRY, KNOWN},
    records::record_for,
    Host,
};
use kvm_clock_guest_selftests::prelude::*;
use pvclock::abi::{
    KVM_GET_CLOCK_GUEST, KVM_GET_VM_CLOCK_GUEST, KVM_SET_CLOCK_GUEST, KVM_SET_VM_CLOCK_GUEST,
};
use rand::Rng as _;
use std::{
    hint::spin_loop,
    mem::offset_of,
    ops::Range,
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};
use zerocopy::IntoBytes;

/// Calls between two runs of the guest.
const ROUND: u64 = 1_000;
/// The time by which calls must have ended in every way.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that the other thread never changes: GET writes to this address.
const ADDRESS: Range<usize> =
    offset_of!(VmClockGuest, vcpus)..offset_of!(VmClockGuest, vcpus) + size_of::<u64>();
/// Places of the headers: in one page, and across the boundary of two.
const HEADERS: [usize; 2] = [HEADER, HEADER + PAGE - 64];
/// The pages that change.
const CHANGING: [usize; 4] = [1, 2, 4, 5];

/// Errnos of calls with an arbitrary argument.
const ANY: [i32; 6] = [
    libc::EFAULT,
    libc::EINVAL,
    libc::E2BIG,
    libc::ERANGE,
    libc::ESTALE,
    libc::ETIME,
];

/// Makes `calls`.
pub(crate) fn calls(host: &Host, calls: u64) -> Result<()> {
    let mut rng = host.rng(3);
    let fixture = Fixture::pinned(&host.kvm, &mut rng)?;
    let mut fuzz = Fuzz::new(host, rng, fixture)?;
    let round = ROUND.min(calls / 10 + 1);
    let start = Instant::now();
    while fuzz.counts.calls() < calls || !saw_all_results(&fuzz) && start.elapsed() < PATIENCE {
        one_round(&mut fuzz, round).with_context(|| host.replay(&fuzz))?;
        let fixture = Fixture::pinned(&host.kvm, &mut fuzz.rng)?;
        fuzz.take(fixture)?;
    }
    fuzz.counts.report();
    ensure!(
        saw_all_results(&fuzz),
        "no call saw the argument change: see the counts"
    );
    Ok(())
}

/// Whether calls succeeded, failed with `EFAULT`, and failed with `EINVAL`.
fn saw_all_results(fuzz: &Fuzz<'_>) -> bool {
    let names = ["KVM_GET_VM_CLOCK_GUEST", "KVM_SET_VM_CLOCK_GUEST"];
    let had = |end| names.iter().any(|name| fuzz.counts.ended(name, end) > 0);
    had(None) && had(Some(libc::EFAULT)) && had(Some(libc::EINVAL))
}

fn one_round(fuzz: &mut Fuzz<'_>, calls: u64) -> Result<()> {
    let other = fuzz.rng.clone();
    let end = fuzz.counts.calls() + calls;
    let stop = AtomicBool::new(false);
    // A failure may leave pages with a wrong protection, so each round has new ones.
    let arena = std::mem::replace(&mut fuzz.arena, Arena::new()?);
    let called = thread::scope(|scope| {
        let other = scope.spawn(|| change(&arena, other, &stop));
        let mut called = Ok(());
        while called.is_ok() && fuzz.counts.calls() < end {
            called = call(fuzz, &arena);
        }
        stop.store(true, Ordering::Relaxed);
        let changed = other.join().expect("the thread does not panic");
        called.and(changed)
    });
    called?;
    guest::ensure_reads(fuzz, false)
}

/// Changes the pages and their contents until `stop` is set.
fn change(arena: &Arena, mut rng: Rng, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        if one_in(&mut rng, 8) {
            let page = pick(&mut rng, &CHANGING);
            let prot = pick(&mut rng, &[libc::PROT_NONE, libc::PROT_READ]);
            arena.map(page, prot).context("mmap")?;
            pause(&mut rng);
            arena.restore(page).context("mmap")?;
        } else {
            // A byte of the header or the array.
            let header = pick(&mut rng, &HEADERS);
            let offset = match rng.random_range(0..8) {
                0..4 => header + rng.random_range(0..ADDRESS.start),
                4..7 => header + rng.random_range(ADDRESS.end..KNOWN),
                _ => ARRAY + rng.random_range(0..4 * ENTRY),
            };
            let byte = arena.byte(offset);
            let bit = 1 << rng.random_range(0..8);
            // Often, because each call writes the whole argument before.
            for _ in 0..magnitude(&mut rng, 16) {
                byte.fetch_xor(bit, Ordering::Relaxed);
                byte.fetch_xor(bit, Ordering::Relaxed);
            }
        }
        pause(&mut rng);
    }
    Ok(())
}

/// A pause, shorter or longer than a call.
fn pause(rng: &mut Rng) {
    (0..magnitude(rng, 14)).for_each(|_| spin_loop());
}

/// A call whose argument is valid at first.
fn call(fuzz: &mut Fuzz<'_>, arena: &Arena) -> Result<()> {
    let rng = &mut fuzz.rng;
    let is_get = one_in(rng, 2);
    if one_in(rng, 4) {
        let index = rng.random_range(0..fuzz.fixture.vcpus());
        let record = record_for(rng, &fuzz.state, index);
        arena.write(HEADER, record.as_bytes());
        let (request, name) = match is_get {
            true => (KVM_GET_CLOCK_GUEST, "KVM_GET_CLOCK_GUEST"),
            false => (KVM_SET_CLOCK_GUEST, "KVM_SET_CLOCK_GUEST"),
        };
        let fd = fuzz.fixture.fds()[index];
        return checked(fuzz, name, is_get, || {
            ioctl(fd, request, arena.address(HEADER))
        });
    }
    let mut argument = match is_get {
        true => Argument::get(rng, arena, &fuzz.state),
        false => Argument::set(rng, arena, &fuzz.state),
    };
    argument.header_at = arena.address(pick(rng, &HEADERS));
    argument.array_at = arena.address(ARRAY);
    argument.put(arena);
    let (request, name) = match is_get {
        true => (KVM_GET_VM_CLOCK_GUEST, "KVM_GET_VM_CLOCK_GUEST"),
        false => (KVM_SET_VM_CLOCK_GUEST, "KVM_SET_VM_CLOCK_GUEST"),
    };
    let fd = fuzz.fixture.vm().fd().as_raw_fd();
    checked(fuzz, name, is_get, || {
        ioctl(fd, request, argument.header_at)
    })
}

/// Fails unless the call failed and changed nothing, or succeeded and left a valid clock.
fn checked(
    fuzz: &mut Fuzz<'_>,
    name: &'static str,
    is_get: bool,
    call: impl FnOnce() -> Result<i32, i32>,
) -> Result<()> {
    let result = call();
    fuzz.count(name, result);
    match result {
        Ok(_) if !is_get => {
            // `State::of()` checks that GET and KVM_GET_CLOCK agree.
            fuzz.observe()?;
            ensure!(fuzz.state.is_pinned(), "{name}: no record is pinned");
            let record = fuzz.state.record(0);
            ensure!(
                record.tsc_to_system_mul >> 31 == 1 && (-31..=31).contains(&record.tsc_shift),
                "{name}: the record is {record:x?}"
            );
        }
        Err(errno) if !ANY.contains(&errno) => bail!("{name}: {}", errno_name(errno)),
        _ => fuzz.ensure_unchanged().context(name)?,
    }
    Ok(())
}
