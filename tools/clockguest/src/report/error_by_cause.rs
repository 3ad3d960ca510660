// SPDX-License-Identifier: GPL-2.0-only

//! Charts of the parts that the restore and the hosts' clocks add to the TSC error of a guest that
//! moves between two hosts.

use super::{
    chart::{
        plot::{Point, Series},
        Chart,
    },
    clock_error::{error_plot, table, tick_ns},
    input::{Measured, Run},
    text::decimal,
};
use crate::migration::{Move, Summary};

/// The parts of the error, and the bound of the second one.
const LABELS: [&str; 3] = ["restore", "clock sync", "sync bound"];

/// The values of [`LABELS`], ticks.
fn parts(one: &Move) -> [Option<f64>; 3] {
    [
        one.restore_error_ticks,
        one.clock_sync_error_ticks,
        one.clock_sync_bound_ticks,
    ]
}

/// A chart per run with such parts.
pub(crate) fn charts(runs: &[Run]) -> Vec<Chart> {
    let chart = |(run, number): (&Run, usize)| match &run.measured {
        Measured::Migrate(summary) => chart(summary, number),
        _ => None,
    };
    runs.iter().zip(1..).filter_map(chart).collect()
}

fn chart(summary: &Summary, number: usize) -> Option<Chart> {
    let series: Vec<_> = (0..LABELS.len())
        .map(|part| series_of(summary, part))
        .filter(|series| !series.points.is_empty())
        .collect();
    if series.is_empty() {
        return None;
    }
    let method = summary.method.name();
    let title = format!("two hosts, {method}: TSC error by cause");
    Some(Chart {
        name: format!("split-{method}-run-{number}"),
        description: description(summary),
        scene: error_plot(&title, "move", summary.tsc_khz, &series).scene(),
        table: table("move", "ticks", &series),
        title,
    })
}

fn series_of(summary: &Summary, part: usize) -> Series {
    let point = |(one, x): (&Move, u32)| {
        let ticks = parts(one)[part]?;
        let ns = ticks * tick_ns(summary.tsc_khz);
        Some(Point::new(LABELS[part], x, ns, ticks, "ticks"))
    };
    Series {
        label: LABELS[part].to_owned(),
        style: part,
        points: summary.per_move.iter().zip(1..).filter_map(point).collect(),
    }
}

fn description(summary: &Summary) -> String {
    let ticks = |value: Option<f64>| {
        value.map_or("unknown".into(), |ticks| {
            format!("{} ticks", decimal(ticks))
        })
    };
    format!(
        "Parts of the TSC error of each move with {}. Worst errors: restore {}; clock sync {}, with a bound of {}.",
        summary.method.name(),
        ticks(summary.restore_error_ticks_max),
        ticks(summary.clock_sync_error_ticks_max),
        ticks(summary.clock_sync_bound_ticks_max),
    )
}
