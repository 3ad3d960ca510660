// SPDX-License-Identifier: GPL-2.0-only

//! Polls until a condition holds.

use anyhow::{ensure, Result};
use clockguest::vmm::Vm;
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// Sleep between two checks of a condition.
pub const POLL: Duration = Duration::from_millis(1);
/// The same for conditions that a guest makes true.
const GUEST_POLL: Duration = Duration::from_micros(100);

/// Returns when `done` is true, and fails with `what` if that takes longer than `patience`.
pub fn wait_until(
    what: &str,
    patience: Duration,
    done: impl FnMut() -> Result<bool>,
) -> Result<()> {
    poll(what, patience, POLL, done)
}

fn poll(
    what: &str,
    patience: Duration,
    every: Duration,
    mut done: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        ensure!(
            start.elapsed() < patience,
            "{what}: not within {patience:?}"
        );
        sleep(every);
    }
    Ok(())
}

/// Returns when the guest of the running `vm` made `done` true.
pub fn wait_for_guest(
    vm: &Vm,
    what: &str,
    patience: Duration,
    done: impl Fn() -> bool,
) -> Result<()> {
    poll(what, patience, GUEST_POLL, || {
        vm.check()?;
        Ok(done())
    })
}
