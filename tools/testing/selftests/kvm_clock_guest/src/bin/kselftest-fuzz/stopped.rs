// SPDX-License-Identifier: GPL-2.0-only

//! Calls while no vCPU runs: on VMs in all states, mixed with other changes that a VMM makes to a
//! guest's clocks.

use crate::{
    extremes::one_in,
    fixture::Fixture,
    fuzz::{Counts, Fuzz},
    guest,
    interfere::interfere,
    Host,
};
use anyhow::anyhow;
use kvm_clock_guest_selftests::prelude::*;
use std::thread;

/// Calls between two runs of the guest.
const ROUND: u64 = 1_000;
/// Rounds with one VM.
const ROUNDS: u64 = 4;
/// The VMM makes another change before one in so many calls.
const INTERFERE: u32 = 50;

/// Makes `calls` on two VMs at the same time.
pub(crate) fn calls(host: &Host, calls: u64) -> Result<()> {
    let (mut counts, other) = thread::scope(|scope| {
        let other = scope.spawn(|| on_one(host, calls / 2, 11));
        let counts = on_one(host, calls - calls / 2, 10);
        (counts, other.join().expect("the thread does not panic"))
    });
    // Only one error is returned, so report the other one.
    if let (Err(_), Err(other)) = (&counts, &other) {
        note!("{other:#}");
    }
    let counts = counts.as_mut().map_err(|error| anyhow!("{error:#}"))?;
    counts.add(&other?);
    counts.report();
    ensure_all_seen(counts)
}

fn on_one(host: &Host, calls: u64, sequence: u64) -> Result<Counts> {
    let mut rng = host.rng(sequence);
    let fixture = Fixture::new(&host.kvm, &mut rng)?;
    let mut fuzz = Fuzz::new(host, rng, fixture)?;
    // A short run has all kinds of rounds, too.
    let round = ROUND.min(calls / 10 + 1);
    for number in 0.. {
        if fuzz.counts.calls() >= calls {
            break;
        }
        if number > 0 && number % ROUNDS == 0 {
            let fixture = Fixture::new(&host.kvm, &mut fuzz.rng)?;
            fuzz.take(fixture)?;
        }
        // A round that must change nothing starts without pending clock updates.
        fuzz.only_failures = one_in(&mut fuzz.rng, 6);
        if fuzz.only_failures {
            settle(&mut fuzz)?;
        }
        one_round(&mut fuzz, round).with_context(|| host.replay(&fuzz))?;
    }
    Ok(fuzz.counts)
}

/// Runs the guest until no clock update is pending.
fn settle(fuzz: &mut Fuzz<'_>) -> Result<()> {
    /// KVM updates all records 0.1 s after a guest enabled kvmclock.
    const LATE: Duration = Duration::from_millis(200);
    const TRIES: u32 = 10;

    guest::ensure_reads(fuzz, false)?;
    for _ in 0..TRIES {
        sleep(LATE);
        let version = versions(fuzz.fixture.vm());
        guest::ensure_reads(fuzz, false)?;
        if versions(fuzz.fixture.vm()) == version {
            return Ok(());
        }
    }
    // Without a master clock each vCPU gets new records forever.
    Ok(())
}

fn one_round(fuzz: &mut Fuzz<'_>, calls: u64) -> Result<()> {
    let end = fuzz.counts.calls() + calls;
    while fuzz.counts.calls() < end {
        if !fuzz.only_failures && one_in(&mut fuzz.rng, INTERFERE) {
            interfere(fuzz)?;
        }
        fuzz.call(false)?;
    }
    let only_failures = fuzz.only_failures;
    guest::ensure_reads(fuzz, only_failures)
}

/// Fails unless every possible errno occurred, and enough calls succeeded.
fn ensure_all_seen(counts: &Counts) -> Result<()> {
    const OF_GET: [i32; 4] = [libc::EINVAL, libc::E2BIG, libc::EFAULT, libc::ENODATA];
    const OF_SET: [i32; 6] = [
        libc::EINVAL,
        libc::E2BIG,
        libc::EFAULT,
        libc::ERANGE,
        libc::ESTALE,
        libc::ETIME,
    ];
    const OF_SET_RECORD: [i32; 3] = [libc::EINVAL, libc::EFAULT, libc::ERANGE];

    for (name, errnos, success) in [
        ("KVM_GET_VM_CLOCK_GUEST", &OF_GET[..], 30),
        ("KVM_SET_VM_CLOCK_GUEST", &OF_SET, 30),
        ("KVM_GET_CLOCK_GUEST", &[libc::EFAULT, libc::ENODATA], 30),
        ("KVM_SET_CLOCK_GUEST", &OF_SET_RECORD, 20),
    ] {
        counts.ensure_share(name, None, success)?;
        for &errno in errnos {
            counts.ensure_share(name, Some(errno), 0)?;
        }
    }
    Ok(())
}
