// SPDX-License-Identifier: GPL-2.0-only

//! The tables, with a row per run of its worst errors, or per slope of a benchmark.

use super::{
    input::{Bench, Measured, Run},
    text::{decimal, grouped},
};
use crate::{migration, summary};

/// A cell, and its number for programs.
pub(crate) struct Cell {
    pub(crate) text: String,
    pub(crate) value: Option<String>,
}

/// A row of a table.
pub(crate) struct Row {
    /// Number of the run, from 1.
    pub(crate) number: usize,
    /// The cells of [`ERRORS`] or [`SLOPES`].
    pub(crate) cells: Vec<Cell>,
    /// Whether the run failed.
    pub(crate) failed: bool,
}

/// Columns of the table of clock errors; first the run's number.
pub(crate) const ERRORS: [(&str, &str); 9] = [
    ("run", "Run"),
    ("what", "Run of"),
    ("method", "Method"),
    ("cycles", "Cycles"),
    ("tsc", "TSC error, ticks"),
    ("kvmclock", "kvmclock error, ns"),
    ("skew", "Skew, ns"),
    ("steps", "Steps back"),
    ("verdict", "First error"),
];

/// Columns of the table of slopes.
pub(crate) const SLOPES: [(&str, &str); 5] = [
    ("run", "Run"),
    ("operation", "Operation"),
    ("case", "Case"),
    ("method", "Method"),
    ("slope", "Instructions per vCPU"),
];

pub(crate) fn errors(runs: &[Run]) -> Vec<Row> {
    let row = |(run, number): (&Run, usize)| {
        let (cells, first_error) = match &run.measured {
            Measured::Cycle(summary) => (of_cycles(summary), &summary.first_error),
            Measured::Migrate(summary) => (of_moves(summary), &summary.first_error),
            Measured::Bench(_) => return None,
        };
        let mut cells: Vec<_> = [count(number as u64)].into_iter().chain(cells).collect();
        cells.push(word(first_error.as_deref().unwrap_or("none")));
        Some(Row {
            number,
            cells,
            failed: first_error.is_some(),
        })
    };
    runs.iter().zip(1..).filter_map(row).collect()
}

fn of_cycles(summary: &summary::Summary) -> Vec<Cell> {
    // Without cycles, the worst error is unknown.
    let measured = !summary.per_cycle.is_empty();
    vec![
        word(&format!(
            "{}, {} vCPUs",
            summary.scenario.name(),
            summary.vcpus
        )),
        word(summary.method.name()),
        count(summary.cycles_done.into()),
        known(measured.then_some(summary.tsc_error_ticks_max)),
        known(measured.then_some(summary.kvmclock_error_ns_max)),
        known(measured.then_some(summary.tsc_kvmclock_skew_ns_max)),
        count(summary.backwards_steps),
    ]
}

fn of_moves(summary: &migration::Summary) -> Vec<Cell> {
    let measured = !summary.per_move.is_empty();
    vec![
        word(&format!("two hosts, {} vCPUs", summary.vcpus)),
        word(summary.method.name()),
        count(summary.moves_done.into()),
        known(summary.tsc_error_ticks_max),
        known(summary.kvmclock_error_ns_max),
        known(measured.then_some(summary.tsc_kvmclock_skew_ns_max)),
        count(summary.backwards_steps),
    ]
}

fn known(value: Option<u64>) -> Cell {
    value.map_or_else(|| word("unknown"), count)
}

pub(crate) fn slopes(runs: &[Run]) -> Vec<Row> {
    let of_run = |(run, number): (&Run, usize)| match &run.measured {
        Measured::Bench(bench) => of_bench(bench, number),
        _ => Vec::new(),
    };
    runs.iter().zip(1..).flat_map(of_run).collect()
}

fn of_bench(bench: &Bench, number: usize) -> Vec<Row> {
    let row = |slope: &super::input::Slope| Row {
        number,
        cells: vec![
            count(number as u64),
            word(&slope.operation),
            word(&slope.case),
            word(&slope.method),
            Cell {
                text: decimal(slope.instructions_per_vcpu),
                value: Some(slope.instructions_per_vcpu.to_string()),
            },
        ],
        failed: false,
    };
    bench.slopes.iter().map(row).collect()
}

/// The result of all exact runs of cycles, as a sentence.
pub(crate) fn verdict(runs: &[Run]) -> Option<String> {
    let exact: Vec<_> = runs
        .iter()
        .filter_map(|run| match &run.measured {
            Measured::Cycle(summary) if summary.method.is_exact() => Some(summary),
            _ => None,
        })
        .collect();
    if exact.is_empty() {
        return None;
    }
    let cycles: u64 = exact.iter().map(|run| u64::from(run.cycles_done)).sum();
    let failed = exact.iter().find_map(|run| run.first_error.as_ref());
    Some(match failed {
        Some(why) => format!("Method atomic FAILED: {why}"),
        None => match exact.iter().max_by_key(|run| run.precision_ns_max) {
            Some(run) if run.precision_ns_max != 0 => {
                format!("Method atomic: {}.", run.precision_note())
            }
            _ => format!(
                "On one host, method atomic loses nothing: in all {} cycles, TSC offsets and pvclock records come \
                 back bit for bit.",
                grouped(cycles)
            ),
        },
    })
}

fn word(text: &str) -> Cell {
    Cell {
        text: text.to_owned(),
        value: None,
    }
}

fn count(value: u64) -> Cell {
    Cell {
        text: grouped(value),
        value: Some(value.to_string()),
    }
}
