// SPDX-License-Identifier: GPL-2.0-only

//! What each method loses in each operation, for readers who have half a minute.

use super::{
    clock_error::scenario_title,
    input::{Measured, Run},
    text::{duration, grouped},
};
use crate::{measure::ticks_to_ns, method::Method};

/// A table with a row per method and a column per operation.
pub(crate) struct Glance {
    pub(crate) operations: Vec<&'static str>,
    pub(crate) methods: Vec<Line>,
}

/// A row.
pub(crate) struct Line {
    pub(crate) method: Method,
    /// The worst of all runs of each operation; `None` if there is no run.
    pub(crate) losses: Vec<Option<Loss>>,
}

/// The worst errors of the guest's clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loss {
    /// How far TSC or kvmclock was from its right value; `None` if that is not known.
    pub(crate) wrong_ns: Option<u64>,
    /// How far kvmclock moved against the TSC.
    apart_ns: u64,
    /// How often a clock stepped back.
    steps: u64,
    /// Whether nothing was measured.
    nothing_measured: bool,
}

impl Loss {
    /// Of a run with a guest TSC of `khz`.
    fn new(khz: u32, tsc_ticks: Option<u64>, kvmclock_ns: Option<u64>, run: Loss) -> Self {
        // A part of a ns is not nothing.
        let ns = |ticks| ticks_to_ns(ticks, khz).max(ticks.min(1));
        Self {
            wrong_ns: tsc_ticks.map(ns).max(kvmclock_ns),
            ..run
        }
    }

    fn of(run: &Run) -> Option<(&'static str, Method, Self)> {
        Some(match &run.measured {
            Measured::Cycle(one) => {
                let more = Self {
                    apart_ns: one.tsc_kvmclock_skew_ns_max,
                    steps: one.backwards_steps,
                    nothing_measured: one.per_cycle.is_empty(),
                    ..Self::default()
                };
                let (tsc, kvmclock) = (one.tsc_error_ticks_max, one.kvmclock_error_ns_max);
                let loss = Self::new(one.tsc_khz, Some(tsc), Some(kvmclock), more);
                (scenario_title(one.scenario), one.method, loss)
            }
            Measured::Migrate(one) => {
                let more = Self {
                    apart_ns: one.tsc_kvmclock_skew_ns_max,
                    steps: one.backwards_steps,
                    nothing_measured: one.per_move.is_empty(),
                    ..Self::default()
                };
                let (tsc, kvmclock) = (one.tsc_error_ticks_max, one.kvmclock_error_ns_max);
                let loss = Self::new(one.tsc_khz, tsc, kvmclock, more);
                ("two hosts", one.method, loss)
            }
            Measured::Bench(_) => return None,
        })
    }

    fn worse(self, other: Self) -> Self {
        Self {
            // Unknown is worse than any number.
            wrong_ns: self
                .wrong_ns
                .zip(other.wrong_ns)
                .map(|(one, two)| one.max(two)),
            apart_ns: self.apart_ns.max(other.apart_ns),
            steps: self.steps.max(other.steps),
            nothing_measured: self.nothing_measured || other.nothing_measured,
        }
    }

    /// Whether the guest's clocks are as if nothing had happened.
    pub(crate) fn is_nothing(&self) -> bool {
        *self
            == Self {
                wrong_ns: Some(0),
                ..Self::default()
            }
    }

    /// The parts of a cell, a line each.
    pub(crate) fn words(&self) -> Vec<String> {
        if self.nothing_measured {
            return vec!["not measured".into()];
        }
        if self.is_nothing() {
            return vec!["nothing".into()];
        }
        let mut words = vec![
            match self.wrong_ns {
                Some(wrong) => format!("wrong by {}", duration(wrong)),
                None => "wrong, unknown how far".into(),
            },
            match self.apart_ns {
                0 => "not apart".into(),
                apart => format!("apart by {}", duration(apart)),
            },
        ];
        if self.steps != 0 {
            words.push(format!("steps back: {}", grouped(self.steps)));
        }
        words
    }
}

impl Glance {
    /// How far a clock is wrong at worst, with the methods that are not exact.
    pub(crate) fn others_wrong_ns(&self) -> Option<u64> {
        self.methods
            .iter()
            .filter(|line| !line.method.is_exact())
            .flat_map(|line| line.losses.iter().flatten())
            .filter_map(|loss| loss.wrong_ns)
            .max()
    }
}

/// What a method is, in plain words.
pub(crate) fn words(method: Method) -> &'static str {
    match method {
        Method::Atomic => "the ioctls of this project",
        Method::LegacyOffset => "the procedure that the kernel documents",
        Method::LegacyMsr => "what QEMU does",
        Method::LuoMsr => "what patches for live updates do",
    }
}

/// The table of all runs; `None` if none of them is about clock errors.
pub(crate) fn glance(runs: &[Run]) -> Option<Glance> {
    let found: Vec<_> = runs.iter().filter_map(Loss::of).collect();
    let (mut operations, mut methods) = (Vec::new(), Vec::new());
    for (operation, method, _) in &found {
        if !operations.contains(operation) {
            operations.push(operation);
        }
        if !methods.contains(method) {
            methods.push(*method);
        }
    }
    let line = |method| {
        let of = |operation: &&str| {
            found
                .iter()
                .filter(|one| (one.0, one.1) == (*operation, method))
                .map(|one| one.2)
                .reduce(Loss::worse)
        };
        Line {
            method,
            losses: operations.iter().map(of).collect(),
        }
    };
    let methods = methods.into_iter().map(line).collect();
    (!found.is_empty()).then_some(Glance {
        operations,
        methods,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(ticks: u64, ns: u64, apart_ns: u64, steps: u64) -> Loss {
        let more = Loss {
            apart_ns,
            steps,
            ..Loss::default()
        };
        Loss::new(2_000_000, Some(ticks), Some(ns), more)
    }

    #[test]
    fn nothing_is_said_of_zeros_only() {
        assert_eq!(loss(0, 0, 0, 0).words(), ["nothing"]);
        assert_eq!(loss(1, 0, 0, 0).words(), ["wrong by 1 ns", "not apart"]);
        assert_eq!(loss(0, 1, 1, 0).words(), ["wrong by 1 ns", "apart by 1 ns"]);
        assert_eq!(
            loss(0, 0, 0, 2).words(),
            ["wrong by 0 ns", "not apart", "steps back: 2"]
        );
    }

    #[test]
    fn the_worse_clock_counts() {
        let worst = loss(4_000_000, 3, 5_000, 0).worse(loss(2, 7, 0, 1));
        assert_eq!(
            worst.words(),
            ["wrong by 2.00 ms", "apart by 5.00 µs", "steps back: 1"]
        );
        let unknown = Loss::new(1, None, None, Loss::default());
        assert_eq!(worst.worse(unknown).words()[0], "wrong, unknown how far");
    }
}
