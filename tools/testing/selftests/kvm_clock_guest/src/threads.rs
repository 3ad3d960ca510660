// SPDX-License-Identifier: GPL-2.0-only

//! Threads that run beside a case.

use anyhow::{anyhow, Result};
use std::thread::ScopedJoinHandle;

/// Waits for all `threads`, which are about to end. Returns the first error of a thread, or else
/// that of `meanwhile`, which may only have waited in vain for a thread.
pub fn join<'scope>(
    threads: impl IntoIterator<Item = ScopedJoinHandle<'scope, Result<()>>>,
    meanwhile: Result<()>,
) -> Result<()> {
    threads
        .into_iter()
        .map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
        })
        .fold(Ok(()), Result::and)
        .and(meanwhile)
}
