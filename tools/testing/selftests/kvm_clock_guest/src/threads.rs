// SPDX-License-Identifier: GPL-2.0-only

//! Threads that do something beside a case.

use anyhow::{anyhow, Result};
use std::thread::ScopedJoinHandle;

/// Waits for all `threads`, which have been told to end, after what the case did meanwhile.
///
/// # Errors
///
/// The first one of the threads, in their order; a panic is one. If there is none, that of
/// `meanwhile`: one who waited in vain for what a thread should do does not know why.
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
