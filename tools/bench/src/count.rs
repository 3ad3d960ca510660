// SPDX-License-Identifier: GPL-2.0-only

//! Counts instructions, with a TSC that counts them.

use anyhow::{ensure, Result};
use clockguest::host::rdtsc_ordered;
use std::arch::asm;

/// The ticks that `work` takes: the minimum of `repeat` rounds, as interrupts only add to it.
/// `prepare` precedes each round, and is not counted.
pub(crate) fn minimum<T>(
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
        let took = rdtsc_ordered().since(start);
        done?;
        least = least.min(took);
    }
    Ok(least)
}

/// A no-op that QEMU's plugin profile.c recognises as the start or end of a count.
pub(crate) fn mark() {
    // SAFETY: The instruction exchanges a register with itself.
    unsafe { asm!("xchg bx, bx", options(nomem, nostack, preserves_flags)) };
}

/// Fails unless the TSC counts instructions.
pub(crate) fn ensure_tsc_counts() -> Result<()> {
    const ROUNDS: u64 = 10_000;
    // For the fences, RDTSC, and calls.
    const SLACK: u64 = 200;

    let took = minimum(
        20,
        &mut (),
        |()| Ok(()),
        |()| {
            // SAFETY: The loop changes only its own register.
            unsafe {
                asm!("2:", "dec {count}", "jnz 2b", count = inout(reg) ROUNDS => _, options(nomem, nostack));
            }
            Ok(())
        },
    )?;
    let expected = 2 * ROUNDS..2 * ROUNDS + SLACK;
    ensure!(
        expected.contains(&took),
        "{} instructions took {took} ticks: this TSC does not count instructions; run `make bench`",
        2 * ROUNDS
    );
    Ok(())
}
