// SPDX-License-Identifier: GPL-2.0-only

//! Instructions, by a TSC that counts them.

use anyhow::{ensure, Result};
use clockguest::host::rdtsc_ordered;
use std::arch::asm;

/// Ticks that pass while `work` is done, in the least of `repeat` rounds, as an interrupt only ever adds;
/// `prepare` comes before each round, and does not count.
pub(crate) fn least<T>(
    repeat: u32,
    of: &mut T,
    mut prepare: impl FnMut(&mut T) -> Result<()>,
    mut work: impl FnMut(&mut T) -> Result<()>,
) -> Result<u64> {
    let mut least = u64::MAX;
    for _ in 0..repeat {
        prepare(of)?;
        let start = rdtsc_ordered();
        let done = work(of);
        let took = rdtsc_ordered().wrapping_sub(start);
        done?;
        least = least.min(took);
    }
    Ok(least)
}

/// Does nothing, which QEMU's plugin profile.c takes for the begin or the end of a count.
pub(crate) fn mark() {
    // SAFETY: It exchanges a register with itself.
    unsafe { asm!("xchg bx, bx", options(nomem, nostack, preserves_flags)) };
}

/// Fails unless the TSC counts instructions.
pub(crate) fn ensure_tsc_counts() -> Result<()> {
    const ROUNDS: u64 = 10_000;
    // Of the fences, RDTSC, and the calls.
    const SLACK: u64 = 200;

    let took = least(
        20,
        &mut (),
        |()| Ok(()),
        |()| {
            // SAFETY: It counts a register of its own down.
            unsafe {
                asm!("2:", "dec {count}", "jnz 2b", count = inout(reg) ROUNDS => _, options(nomem, nostack));
            }
            Ok(())
        },
    )?;
    let expected = 2 * ROUNDS..2 * ROUNDS + SLACK;
    ensure!(
        expected.contains(&took),
        "{} instructions took {took} ticks: this TSC does not count instructions; `make bench` runs a host whose does",
        2 * ROUNDS
    );
    Ok(())
}
