// SPDX-License-Identifier: GPL-2.0-only

//! The relation between the TSCs of two emulated hosts.
//!
//! Emulators derive the TSCs of their hosts from the machine's TSC. `tools/vm/host pair` asks them
//! for the parameters, which give both hosts' TSCs at any moment, independent of their kernels'
//! clocks.

use anyhow::{Context, Result};
use pvclock::counter::HostTsc;
use serde::Deserialize;
use std::path::Path;

/// An emulated host's TSC: `((machine TSC + ticks_offset) * ratio) >> 32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct EmulatedTsc {
    /// Ticks of the machine.
    ticks_offset: i64,
    /// Ticks of the host per tick of the machine, 32 fraction bits.
    ratio: u64,
}

/// The TSCs of both hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct GroundTruth {
    /// The host that this program runs on.
    #[serde(rename = "a")]
    pub(super) here: EmulatedTsc,
    /// The other host.
    #[serde(rename = "b")]
    pub(super) there: EmulatedTsc,
}

impl GroundTruth {
    /// Reads the file `truth.json` of tools/vm/host pair.
    ///
    /// # Errors
    ///
    /// Those of reading and parsing the file.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is not a truth.json of tools/vm/host pair",
                path.display()
            )
        })
    }
}

impl EmulatedTsc {
    /// The machine's own TSC.
    pub(super) const IDENTITY: Self = Self {
        ticks_offset: 0,
        ratio: 1 << 32,
    };

    /// The TSC at machine TSC `machine`.
    fn tsc_at(self, machine: u64) -> HostTsc {
        let ticks = machine.wrapping_add_signed(self.ticks_offset);
        // CAST: The emulator truncates as well.
        HostTsc(((u128::from(ticks) * u128::from(self.ratio)) >> 32) as u64)
    }

    /// The first machine TSC at which the TSC is `tsc` or more.
    fn machine_at(self, tsc: HostTsc) -> u64 {
        let ticks = (u128::from(tsc.0) << 32).div_ceil(u128::from(self.ratio.max(1)));
        // CAST: Modular, as TSCs are.
        (ticks as u64).wrapping_add_signed(self.ticks_offset.wrapping_neg())
    }

    /// The TSC of `other` when this one's is `tsc`.
    pub(super) fn to(self, other: Self, tsc: HostTsc) -> HostTsc {
        other.tsc_at(self.machine_at(tsc))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn emulated_tsc(ticks_offset: i64, ratio: u64) -> EmulatedTsc {
        EmulatedTsc {
            ticks_offset,
            ratio,
        }
    }

    proptest! {
        #[test]
        fn equal_rates_differ_by_an_offset(
            a in -1i64 << 50..0,
            b in -1i64 << 50..0,
            machine in 1u64 << 51..1 << 55,
        ) {
            let (a, b) = (emulated_tsc(a, 1 << 32), emulated_tsc(b, 1 << 32));
            prop_assert_eq!(a.to(b, a.tsc_at(machine)), b.tsc_at(machine));
        }

        #[test]
        fn different_rates_convert_to_a_tick(
            offset in -1i64 << 50..0,
            ratio in 1u64 << 31..1 << 33,
            machine in 1u64 << 51..1 << 55,
        ) {
            let (a, b) = (emulated_tsc(offset, ratio), emulated_tsc(0, 1 << 32));
            let HostTsc(found) = a.to(b, a.tsc_at(machine));
            // One tick of `a` may be two of the machine.
            prop_assert!(machine - found <= 2, "{} {}", found, machine);
        }
    }
}
