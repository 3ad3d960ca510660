// SPDX-License-Identifier: GPL-2.0-only

//! Charts of what the hosts' clocks and what the operation itself contribute to the TSC error of a
//! guest that moves between two hosts.

use super::{
    chart::{
        plot::{counting, Plot, Point, Series, XAxis},
        scene::Datum,
        Chart,
    },
    clock_error::{table, time_axis},
    input::{Measured, Run},
    text::decimal,
};
use crate::migration::{Move, Summary};

/// A part of the error, ticks.
type Part = fn(&Move) -> Option<f64>;

const PARTS: [(&str, Part); 3] = [
    ("operation", |one| one.own_error_ticks),
    ("clock sync", |one| one.clocks_error_ticks),
    ("sync's bound", |one| one.clocks_bound_ticks),
];

/// One for each run whose error was split.
pub(crate) fn charts(runs: &[Run]) -> Vec<Chart> {
    let chart = |(run, number): (&Run, usize)| match &run.measured {
        Measured::Migrate(summary) => chart(summary, number),
        _ => None,
    };
    runs.iter().zip(1..).filter_map(chart).collect()
}

fn chart(summary: &Summary, number: usize) -> Option<Chart> {
    let tick_ns = 1e6 / f64::from(summary.tsc_khz.max(1));
    let series: Vec<_> = PARTS
        .iter()
        .enumerate()
        .map(|(style, (label, part))| Series {
            label: (*label).to_owned(),
            style,
            points: points(label, *part, tick_ns, &summary.per_move),
        })
        .filter(|series| !series.points.is_empty())
        .collect();
    if series.is_empty() {
        return None;
    }
    let highest = series
        .iter()
        .flat_map(|series| &series.points)
        .map(|point| point.y)
        .fold(0.0, f64::max);
    let title = format!("two hosts, {}: TSC error by cause", summary.method.name());
    // CAST: Those asked for fit.
    let moves = summary.per_move.len() as u32;
    let plot = Plot {
        title: &title,
        x: XAxis {
            label: "move",
            logarithmic: false,
            ticks: counting(1, moves, 6),
            first: 1.0,
            last: f64::from(moves),
        },
        y: time_axis(tick_ns, highest),
        series: &series,
    };
    Some(Chart {
        name: format!("split-{}-run-{number}", summary.method.name()),
        description: description(summary),
        scene: plot.scene(),
        table: table("move", "ticks", &series),
        title,
    })
}

fn points(label: &str, part: Part, tick_ns: f64, moves: &[Move]) -> Vec<Point> {
    let point = |(one, x): (&Move, u32)| {
        let ticks = part(one)?;
        Some(Point {
            x: f64::from(x),
            y: ticks.abs() * tick_ns,
            negative: ticks < 0.0,
            datum: Datum {
                series: label.to_owned(),
                x: x.to_string(),
                value: ticks.to_string(),
                unit: "ticks",
            },
        })
    };
    moves.iter().zip(1..).filter_map(point).collect()
}

fn description(summary: &Summary) -> String {
    let ticks = |value: Option<f64>| {
        value.map_or("not known".into(), |ticks| {
            format!("{} ticks", decimal(ticks))
        })
    };
    format!(
        "What contributes to the TSC error of each move by {}. Worst: the operation {}; the hosts' clocks {}, \
         known to {}.",
        summary.method.name(),
        ticks(summary.own_error_ticks_max),
        ticks(summary.clocks_error_ticks_max),
        ticks(summary.clocks_bound_ticks_max),
    )
}
