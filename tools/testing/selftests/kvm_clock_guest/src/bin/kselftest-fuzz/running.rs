// SPDX-License-Identifier: GPL-2.0-only

//! Calls while vCPUs run: a SET of the VM must be refused, and the guest must not notice any of it,
//! unless its record was SET through a vCPU.

use crate::{extremes::one_in, fuzz::Fuzz, guest, subject::Subject, Host};
use anyhow::{ensure, Context, Result};
use clockguest::guest::{Backwards, Step};

/// Calls until the vCPUs are stopped.
const ROUND: u64 = 500;
/// Rounds that a VM lasts.
const ROUNDS: u64 = 8;

/// Makes `calls`.
pub(crate) fn calls(host: &Host, calls: u64) -> Result<()> {
    let mut rng = host.rng(2);
    let subject = Subject::pinned(&host.kvm, &mut rng)?;
    let mut fuzz = Fuzz::new(host, rng, subject)?;
    let round = ROUND.min(calls / 10 + 1);
    for number in 0.. {
        if fuzz.tally.calls() >= calls {
            break;
        }
        if number > 0 && number % ROUNDS == 0 {
            let subject = Subject::pinned(&host.kvm, &mut fuzz.rng)?;
            fuzz.take(subject)?;
        }
        one_round(&mut fuzz, round).with_context(|| host.replay(&fuzz))?;
    }
    fuzz.tally.tell();
    let tally = &fuzz.tally;
    tally.ensure_share("KVM_GET_VM_CLOCK_GUEST", None, 30)?;
    tally.ensure_share("KVM_SET_VM_CLOCK_GUEST", Some(libc::EBUSY), 30)?;
    tally.ensure_share("KVM_GET_CLOCK_GUEST", None, 30)?;
    tally.ensure_share("KVM_SET_CLOCK_GUEST", None, 10)
}

fn one_round(fuzz: &mut Fuzz<'_>, calls: u64) -> Result<()> {
    // The function that kvmclock is, in every other round.
    let keep = one_in(&mut fuzz.rng, 2);
    fuzz.subject.run_some(&mut fuzz.rng)?;
    fuzz.look_again()?;
    let (was, seen) = (fuzz.state.pinned_function(), backwards(&fuzz.subject));
    let end = fuzz.tally.calls() + calls;
    let mut called = Ok(());
    while called.is_ok() && fuzz.tally.calls() < end {
        called = fuzz.call(keep);
    }
    fuzz.subject.stop()?;
    called?;
    fuzz.look_again()?;
    let mut seen = backwards(&fuzz.subject) - seen;
    if !keep {
        // The guest was told another time.
        (seen.own_kvmclock, seen.cross_kvmclock) = (0, 0);
    }
    let is = fuzz.state.pinned_function();
    ensure!(
        seen == Backwards::default(),
        "the guest saw steps back: {seen:?}, the last {:x?}\nof the record {was:x?}, now {is:x?}",
        last_steps(&fuzz.subject)
    );
    ensure!(!keep || was == is, "the record was {was:x?}, is {is:x?}");
    guest::ensure_reads(fuzz, false)
}

/// The last step back of each vCPU.
// TODO[STEP]: Find the cause of the one that was seen.
fn last_steps(subject: &Subject) -> Vec<Option<Step>> {
    let vcpus = subject.vm().vcpus().iter();
    vcpus
        .map(|vcpu| subject.vm().view(vcpu.index()).last_step())
        .collect()
}

/// Steps back that any vCPU saw so far.
fn backwards(subject: &Subject) -> Backwards {
    let vcpus = subject.vm().vcpus().iter();
    let each = vcpus.map(|vcpu| subject.vm().view(vcpu.index()).backwards());
    each.fold(Backwards::default(), |sum, next| sum + next)
}
