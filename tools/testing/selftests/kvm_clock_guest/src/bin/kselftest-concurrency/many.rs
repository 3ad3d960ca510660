// SPDX-License-Identifier: GPL-2.0-only

//! Threads of the process and its guest only see complete states, and another process that has the
//! descriptors sees nothing.

use crate::{counts::Enough, other_process::OtherProcess, stress::Stress};
use kvm_clock_guest_selftests::prelude::*;

/// How many vCPUs must be created.
const CREATED: u64 = 4;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![Case::new(
        "8 threads GET and 2 SET, vCPUs run and are created, another process has the descriptors",
        all_at_once,
    )]
}

fn all_at_once(kvm: &Kvm) -> Result<()> {
    let stress = Stress::new(kvm)?;
    let (enough, start) = (Enough::new()?, Instant::now());
    let other_process = OtherProcess::start(stress.vm().fd(), stress.vcpu())?;
    let counts = stress.counts();
    stress.run(|stop| {
        enough.wait(counts, stop, |least| {
            counts.busy.get() >= least
                && counts.closed.get() >= least
                && counts.created.get() >= CREATED
        })
    })?;
    let refused = other_process.end()?;
    note!(
        "{counts:?} in {:.1?}; another process was refused {refused} calls with EIO",
        start.elapsed()
    );
    stress.ensure_consistent()
}
