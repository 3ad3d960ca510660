// SPDX-License-Identifier: GPL-2.0-only

//! Charts of the clock error of each cycle, or move to another host, by each method.

use super::{
    chart::{
        plot::{counting, Plot, Point, Series, XAxis, YAxis},
        scene::Datum,
        Chart, Table,
    },
    input::{Measured, Run},
    text::grouped,
};
use crate::{method::Method, scenario::Scenario};

/// The errors of one cycle or move, where they are known.
struct Sample {
    x: u32,
    ticks: Option<i64>,
    ns: Option<i64>,
}

/// A run that has such errors, and its number in the report.
struct Source {
    number: usize,
    method: Method,
    khz: u32,
    samples: Vec<Sample>,
}

/// What happened to the guests whose runs one chart compares.
struct Group<'a> {
    name: &'a str,
    title: &'a str,
    x_label: &'static str,
    sources: Vec<Source>,
}

#[derive(Clone, Copy)]
enum Clock {
    Tsc,
    Kvmclock,
}

impl Clock {
    fn name(self) -> &'static str {
        match self {
            Self::Tsc => "TSC",
            Self::Kvmclock => "kvmclock",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Tsc => "ticks",
            Self::Kvmclock => "ns",
        }
    }

    fn error(self, sample: &Sample) -> Option<i64> {
        match self {
            Self::Tsc => sample.ticks,
            Self::Kvmclock => sample.ns,
        }
    }
}

/// All charts that there is anything for.
pub(crate) fn charts(runs: &[Run]) -> Vec<Chart> {
    let on_one_host = Scenario::ALL.iter().map(|scenario| Group {
        name: scenario.name(),
        title: match scenario {
            Scenario::Migrate => "migrate on one host",
            other => other.name(),
        },
        x_label: "cycle",
        sources: of_cycles(runs, *scenario),
    });
    let between_two = Group {
        name: "two-hosts",
        title: "two hosts",
        x_label: "move",
        sources: of_moves(runs),
    };
    let mut charts = Vec::new();
    for group in on_one_host.chain([between_two]) {
        for clock in [Clock::Tsc, Clock::Kvmclock] {
            charts.extend(chart(&group, clock));
        }
    }
    charts
}

fn of_cycles(runs: &[Run], scenario: Scenario) -> Vec<Source> {
    let source = |(run, number): (&'_ Run, usize)| match &run.measured {
        Measured::Cycle(summary) if summary.scenario == scenario => Some(Source {
            number,
            method: summary.method,
            khz: summary.tsc_khz,
            samples: summary
                .per_cycle
                .iter()
                .map(|cycle| Sample {
                    x: cycle.cycle,
                    ticks: Some(cycle.tsc_error_ticks),
                    ns: Some(cycle.kvmclock_error_ns),
                })
                .collect(),
        }),
        _ => None,
    };
    runs.iter().zip(1..).filter_map(source).collect()
}

fn of_moves(runs: &[Run]) -> Vec<Source> {
    let source = |(run, number): (&'_ Run, usize)| match &run.measured {
        Measured::Migrate(summary) => Some(Source {
            number,
            method: summary.method,
            khz: summary.tsc_khz,
            samples: summary
                .per_move
                .iter()
                .zip(1..)
                .map(|(one, x)| Sample {
                    x,
                    ticks: one.tsc_error_ticks,
                    ns: one.kvmclock_error_ns,
                })
                .collect(),
        }),
        _ => None,
    };
    runs.iter().zip(1..).filter_map(source).collect()
}

fn chart(group: &Group<'_>, clock: Clock) -> Option<Chart> {
    let series: Vec<_> = group
        .sources
        .iter()
        .enumerate()
        .map(|(place, source)| series_of(group, source, place, clock))
        .filter(|series| !series.points.is_empty())
        .collect();
    let points = || series.iter().flat_map(|series| &series.points);
    let last_x = points().map(|point| point.x).fold(1.0, f64::max);
    let highest = points().map(|point| point.y).fold(0.0, f64::max);
    let khz = group.sources.iter().map(|source| source.khz).max()?;
    if series.is_empty() {
        return None;
    }
    let title = format!("{}: {} error", group.title, clock.name());
    let plot = Plot {
        title: &title,
        x: XAxis {
            label: group.x_label,
            logarithmic: false,
            // CAST: It was a u32.
            ticks: counting(1, last_x as u32, 6),
            first: 1.0,
            last: last_x,
        },
        y: time_axis(1e6 / f64::from(khz.max(1)), highest),
        series: &series,
    };
    Some(Chart {
        name: format!("error-{}-{}", group.name, clock.unit()),
        description: description(group.x_label, clock, &series),
        scene: plot.scene(),
        table: table(group.x_label, clock.unit(), &series),
        title,
    })
}

fn series_of(group: &Group<'_>, source: &Source, place: usize, clock: Clock) -> Series {
    let name = source.method.name();
    let runs_of = |method| {
        group
            .sources
            .iter()
            .filter(|one| one.method == method)
            .count()
    };
    let label = match runs_of(source.method) {
        1 => name.to_owned(),
        _ => format!("{name} (run {})", source.number),
    };
    // Methods look the same in all charts, unless there are several runs of one.
    let rank = Method::ALL
        .iter()
        .position(|&method| method == source.method);
    let alone = Method::ALL.iter().all(|&method| runs_of(method) <= 1);
    let style = rank.filter(|_| alone).unwrap_or(place);
    let ns_per_unit = match clock {
        Clock::Tsc => 1e6 / f64::from(source.khz.max(1)),
        Clock::Kvmclock => 1.0,
    };
    let point = |sample: &Sample| {
        let error = clock.error(sample)?;
        Some(Point {
            x: f64::from(sample.x),
            y: error.unsigned_abs() as f64 * ns_per_unit,
            negative: error < 0,
            datum: Datum {
                series: label.clone(),
                x: sample.x.to_string(),
                value: error.to_string(),
                unit: clock.unit(),
            },
        })
    };
    Series {
        points: source.samples.iter().filter_map(point).collect(),
        style,
        label,
    }
}

/// From a tick of `tick_ns` to seconds, at least one.
pub(crate) fn time_axis(tick_ns: f64, highest_ns: f64) -> YAxis {
    const DECADES: [&str; 13] = [
        "1 ns", "10 ns", "100 ns", "1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s",
        "10 s", "100 s", "1000 s",
    ];
    let mut ticks = vec![(tick_ns, "1 tick".to_owned())];
    let mut ns = 1.0;
    for text in DECADES {
        if ns > tick_ns {
            ticks.push((ns, text.to_owned()));
        }
        if ns >= highest_ns.max(1e9) {
            break;
        }
        ns *= 10.0;
    }
    YAxis {
        label: "magnitude; hollow: behind, filled: ahead",
        zero: true,
        ticks,
        first: tick_ns,
        last: ns.max(highest_ns),
    }
}

fn description(x_label: &str, clock: Clock, series: &[Series]) -> String {
    let worst = |series: &Series| {
        let values = series
            .points
            .iter()
            .filter_map(|point| point.datum.value.parse::<i64>().ok());
        let worst = values.map(i64::unsigned_abs).max().unwrap_or_default();
        format!("{}: {} {}", series.label, grouped(worst), clock.unit())
    };
    let each: Vec<_> = series.iter().map(worst).collect();
    format!(
        "Magnitude of the {} error of each {x_label}, on a logarithmic axis from one tick, exact zero below it. \
         Worst by {}.",
        clock.name(),
        each.join("; by ")
    )
}

/// A row for each x, a column for each series.
pub(crate) fn table(x_label: &str, unit: &str, series: &[Series]) -> Table {
    let mut head = vec![x_label.to_owned()];
    head.extend(
        series
            .iter()
            .map(|series| format!("{}, {unit}", series.label)),
    );
    let mut points: Vec<_> = series.iter().flat_map(|series| &series.points).collect();
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    points.dedup_by(|a, b| a.x == b.x);
    let row = |at: &&Point| {
        let cell = |series: &Series| {
            let point = series.points.iter().find(|point| point.x == at.x);
            point.map_or("–".into(), |point| point.datum.value.clone())
        };
        let mut row = vec![at.datum.x.clone()];
        row.extend(series.iter().map(cell));
        row
    };
    Table {
        rows: points.iter().map(row).collect(),
        head,
    }
}
