// SPDX-License-Identifier: GPL-2.0-only

//! Calls while no vCPU runs: on VMs in all states, amid whatever else a VMM does to a guest's
//! clocks.

use crate::{
    extremes::one_in,
    fuzz::{Fuzz, Tally},
    guest,
    meddle::meddle,
    subject::Subject,
    Host,
};
use anyhow::{anyhow, Context, Result};
use kvm_clock_guest_selftests::{clocks::versions, ktap::note};
use std::{
    thread::{self, sleep},
    time::Duration,
};

/// Calls between two runs of the guest.
const ROUND: u64 = 1_000;
/// Rounds that a VM lasts.
const ROUNDS: u64 = 4;
/// Once in so many calls the VMM does something else.
const MEDDLE: u32 = 50;

/// Makes `calls` on two VMs at once.
pub(crate) fn calls(host: &Host, calls: u64) -> Result<()> {
    let (mut tally, other) = thread::scope(|scope| {
        let other = scope.spawn(|| on_one(host, calls / 2, 11));
        let tally = on_one(host, calls - calls / 2, 10);
        (tally, other.join().expect("the thread does not panic"))
    });
    // What one says is not to be lost with what the other says.
    if let (Err(_), Err(other)) = (&tally, &other) {
        note(&format!("{other:#}"));
    }
    let tally = tally.as_mut().map_err(|error| anyhow!("{error:#}"))?;
    tally.add(&other?);
    tally.tell();
    ensure_all_seen(tally)
}

fn on_one(host: &Host, calls: u64, sequence: u64) -> Result<Tally> {
    let mut rng = host.rng(sequence);
    let subject = Subject::new(&host.kvm, &mut rng)?;
    let mut fuzz = Fuzz::new(host, rng, subject)?;
    // Of all kinds, also in a short run.
    let round = ROUND.min(calls / 10 + 1);
    for number in 0.. {
        if fuzz.tally.calls() >= calls {
            break;
        }
        if number > 0 && number % ROUNDS == 0 {
            let subject = Subject::new(&host.kvm, &mut fuzz.rng)?;
            fuzz.take(subject)?;
        }
        // What is pending is done with before a round that must leave nothing pending.
        fuzz.only_failures = one_in(&mut fuzz.rng, 6);
        if fuzz.only_failures {
            settle(&mut fuzz)?;
        }
        one_round(&mut fuzz, round).with_context(|| host.replay(&fuzz))?;
    }
    Ok(fuzz.tally)
}

/// Lets the guest run until no clock update is pending.
fn settle(fuzz: &mut Fuzz<'_>) -> Result<()> {
    /// KVM has all records updated 0.1 s after a guest enabled kvmclock.
    const LATE: Duration = Duration::from_millis(200);
    const TRIES: u32 = 10;

    guest::ensure_reads(fuzz, false)?;
    for _ in 0..TRIES {
        sleep(LATE);
        let version = versions(fuzz.subject.vm());
        guest::ensure_reads(fuzz, false)?;
        if versions(fuzz.subject.vm()) == version {
            return Ok(());
        }
    }
    // Where each vCPU is handed a clock of its own, that never ends.
    Ok(())
}

fn one_round(fuzz: &mut Fuzz<'_>, calls: u64) -> Result<()> {
    let end = fuzz.tally.calls() + calls;
    while fuzz.tally.calls() < end {
        if !fuzz.only_failures && one_in(&mut fuzz.rng, MEDDLE) {
            meddle(fuzz)?;
        }
        fuzz.call(false)?;
    }
    let only_failures = fuzz.only_failures;
    guest::ensure_reads(fuzz, only_failures)
}

/// Every errno that these calls can have was had, and enough of them got through to what is hard.
fn ensure_all_seen(tally: &Tally) -> Result<()> {
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
        tally.ensure_share(name, None, success)?;
        for &errno in errnos {
            tally.ensure_share(name, Some(errno), 0)?;
        }
    }
    Ok(())
}
