// SPDX-License-Identifier: GPL-2.0-only

//! What the TSCs of two emulated hosts are, of the one counter that both come from.
//!
//! Emulated hosts on one machine count by its TSC. Who knows how (tools/vm/pair asks their emulators)
//! knows for every moment what both read, whatever their kernels believe about the time.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::Path;

/// An emulated host's TSC: `((machine TSC + ticks_offset) * ratio) >> 32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Counter {
    /// Ticks of the machine.
    ticks_offset: i64,
    /// Ticks of the host per tick of the machine, 32 fraction bits.
    ratio: u64,
}

/// Both hosts' counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Truth {
    /// The host that this program runs on.
    #[serde(rename = "a")]
    pub(super) here: Counter,
    /// The host that it talks to.
    #[serde(rename = "b")]
    pub(super) there: Counter,
}

impl Truth {
    /// Reads the file that tools/vm/pair writes.
    ///
    /// # Errors
    ///
    /// Those of the file, and if it is none.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is no truth.json of tools/vm/pair's", path.display()))
    }
}

impl Counter {
    /// A machine's own.
    pub(super) const MACHINE: Self = Self {
        ticks_offset: 0,
        ratio: 1 << 32,
    };

    /// The TSC at machine TSC `machine`, ticks mod 2^64.
    fn tsc_at(self, machine: u64) -> u64 {
        let ticks = machine.wrapping_add_signed(self.ticks_offset);
        // CAST: The emulator truncates as well.
        ((u128::from(ticks) * u128::from(self.ratio)) >> 32) as u64
    }

    /// The first machine TSC at which the TSC is `tsc` or more.
    fn machine_at(self, tsc: u64) -> u64 {
        let ticks = (u128::from(tsc) << 32).div_ceil(u128::from(self.ratio.max(1)));
        // CAST: Modular, as TSCs are.
        (ticks as u64).wrapping_add_signed(self.ticks_offset.wrapping_neg())
    }

    /// The TSC of `other` when this one's is `tsc`, ticks.
    pub(super) fn to(self, other: Self, tsc: u64) -> u64 {
        other.tsc_at(self.machine_at(tsc))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counter(ticks_offset: i64, ratio: u64) -> Counter {
        Counter {
            ticks_offset,
            ratio,
        }
    }

    proptest! {
        #[test]
        fn equal_rates_are_a_difference(
            a in -1i64 << 50..0,
            b in -1i64 << 50..0,
            machine in 1u64 << 51..1 << 55,
        ) {
            let (a, b) = (counter(a, 1 << 32), counter(b, 1 << 32));
            prop_assert_eq!(a.to(b, a.tsc_at(machine)), b.tsc_at(machine));
        }

        #[test]
        fn other_rates_are_found_to_a_tick(
            offset in -1i64 << 50..0,
            ratio in 1u64 << 31..1 << 33,
            machine in 1u64 << 51..1 << 55,
        ) {
            let (a, b) = (counter(offset, ratio), counter(0, 1 << 32));
            let found = a.to(b, a.tsc_at(machine));
            // One tick of `a` may be two of the machine.
            prop_assert!(machine - found <= 2, "{} {}", found, machine);
        }
    }
}
