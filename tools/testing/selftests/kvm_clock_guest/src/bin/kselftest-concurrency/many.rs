// SPDX-License-Identifier: GPL-2.0-only

//! Whole states only, for threads of the process, for its guest; and nothing at all for another
//! process that has the descriptors.

use crate::{storm::Storm, stranger::Stranger, tally::Enough};
use anyhow::Result;
use kvm_clock_guest_selftests::ktap::{note, Case};
use kvm_ioctls::Kvm;
use std::time::Instant;

/// vCPUs to be created at least.
const CREATED: u64 = 4;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![Case::new(
        "8 threads GET and 2 SET, vCPUs run and are created, another process has the descriptors",
        all_at_once,
    )]
}

fn all_at_once(kvm: &Kvm) -> Result<()> {
    let storm = Storm::new(kvm)?;
    let (enough, start) = (Enough::new()?, Instant::now());
    let stranger = Stranger::start(storm.vm().fd(), storm.vcpu())?;
    let tally = storm.tally();
    storm.rage(|stop| {
        enough.wait(tally, stop, |least| {
            tally.busy.get() >= least
                && tally.closed.get() >= least
                && tally.created.get() >= CREATED
        })
    })?;
    let refused = stranger.end()?;
    note(&format!(
        "{tally:?} in {:.1?}; another process was refused {refused} calls with EIO",
        start.elapsed()
    ));
    storm.ensure_calm()
}
