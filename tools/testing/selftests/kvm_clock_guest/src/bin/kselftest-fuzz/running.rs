// SPDX-License-Identifier: GPL-2.0-only

//! Calls while vCPUs run: SET of the VM must fail, and the guest must only notice SETs of its
//! record through a vCPU.

use crate::{extremes::one_in, fixture::Fixture, fuzz::Fuzz, guest, Host};
use clockguest::guest::{Backwards, Step};
use kvm_clock_guest_selftests::prelude::*;

/// Calls until the vCPUs are stopped.
const ROUND: u64 = 500;
/// Rounds with one VM.
const ROUNDS: u64 = 8;

/// Makes `calls`.
pub(crate) fn calls(host: &Host, calls: u64) -> Result<()> {
    let mut rng = host.rng(2);
    let fixture = Fixture::pinned(&host.kvm, &mut rng)?;
    let mut fuzz = Fuzz::new(host, rng, fixture)?;
    let round = ROUND.min(calls / 10 + 1);
    for number in 0.. {
        if fuzz.counts.calls() >= calls {
            break;
        }
        if number > 0 && number % ROUNDS == 0 {
            let fixture = Fixture::pinned(&host.kvm, &mut fuzz.rng)?;
            fuzz.take(fixture)?;
        }
        one_round(&mut fuzz, round).with_context(|| host.replay(&fuzz))?;
    }
    fuzz.counts.report();
    let counts = &fuzz.counts;
    counts.ensure_share("KVM_GET_VM_CLOCK_GUEST", None, 30)?;
    counts.ensure_share("KVM_SET_VM_CLOCK_GUEST", Some(libc::EBUSY), 30)?;
    counts.ensure_share("KVM_GET_CLOCK_GUEST", None, 30)?;
    counts.ensure_share("KVM_SET_CLOCK_GUEST", None, 10)
}

fn one_round(fuzz: &mut Fuzz<'_>, calls: u64) -> Result<()> {
    // In every other round kvmclock must stay the same function.
    let keep = one_in(&mut fuzz.rng, 2);
    fuzz.fixture.run_some(&mut fuzz.rng)?;
    fuzz.refresh()?;
    let (was, seen) = (fuzz.state.pinned_function(), backwards(&fuzz.fixture));
    let end = fuzz.counts.calls() + calls;
    let mut called = Ok(());
    while called.is_ok() && fuzz.counts.calls() < end {
        called = fuzz.call(keep);
    }
    fuzz.fixture.stop()?;
    called?;
    fuzz.refresh()?;
    let mut seen = backwards(&fuzz.fixture) - seen;
    if !keep {
        // kvmclock was SET to other values.
        (seen.own_kvmclock, seen.cross_kvmclock) = (0, 0);
    }
    let is = fuzz.state.pinned_function();
    ensure!(
        seen == Backwards::default(),
        "the guest saw steps back: {seen:?}, the last {:x?}\nof the record {was:x?}, now {is:x?}",
        last_steps(&fuzz.fixture)
    );
    ensure!(!keep || was == is, "the record was {was:x?}, is {is:x?}");
    guest::ensure_reads(fuzz, false)
}

/// The last step back of each vCPU.
// TODO[STEP]: Find the cause of the one that was seen.
fn last_steps(fixture: &Fixture) -> Vec<Option<Step>> {
    let vcpus = fixture.vm().vcpus().iter();
    vcpus
        .map(|vcpu| fixture.vm().view(vcpu.index()).last_step())
        .collect()
}

/// Steps back of all vCPUs so far.
fn backwards(fixture: &Fixture) -> Backwards {
    let vcpus = fixture.vm().vcpus().iter();
    let each = vcpus.map(|vcpu| fixture.vm().view(vcpu.index()).backwards());
    each.fold(Backwards::default(), |sum, next| sum + next)
}
