// SPDX-License-Identifier: GPL-2.0-only

//! Charts of the clock errors of each cycle or move, with a series per run.

use super::{
    chart::{
        plot::{counting, Plot, Point, Series, XAxis, YAxis},
        Chart, Table,
    },
    input::{Measured, Run},
    text::grouped,
};
use crate::{method::Method, scenario::Scenario};

/// The errors of one cycle or move, if known.
struct Sample {
    x: u32,
    ticks: Option<i64>,
    ns: Option<i64>,
}

/// The errors of a run, and its number in the report.
struct Source {
    number: usize,
    method: Method,
    khz: u32,
    samples: Vec<Sample>,
}

/// Runs that share a chart.
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

/// A scenario's name beside migrations between two hosts.
pub(crate) fn scenario_title(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::Migrate => "migrate on one host",
        other => other.name(),
    }
}

/// All charts that have data.
pub(crate) fn charts(runs: &[Run]) -> Vec<Chart> {
    let one_host = Scenario::ALL.iter().map(|scenario| Group {
        name: scenario.name(),
        title: scenario_title(*scenario),
        x_label: "cycle",
        sources: sources(runs, Some(*scenario)),
    });
    let two_hosts = Group {
        name: "two-hosts",
        title: "two hosts",
        x_label: "move",
        sources: sources(runs, None),
    };
    let clocks = [Clock::Tsc, Clock::Kvmclock];
    one_host
        .chain([two_hosts])
        .flat_map(|group| clocks.map(|clock| chart(&group, clock)))
        .flatten()
        .collect()
}

/// The runs of `scenario`, or, with `None`, the migrations between hosts.
fn sources(runs: &[Run], scenario: Option<Scenario>) -> Vec<Source> {
    let source = |(run, number): (&Run, usize)| {
        let (method, khz, samples) = match &run.measured {
            Measured::Cycle(summary) if scenario == Some(summary.scenario) => {
                let samples = summary.per_cycle.iter().map(|cycle| Sample {
                    x: cycle.cycle,
                    ticks: Some(cycle.tsc_error_ticks),
                    ns: Some(cycle.kvmclock_error_ns),
                });
                (summary.method, summary.tsc_khz, samples.collect())
            }
            Measured::Migrate(summary) if scenario.is_none() => {
                let samples = summary.per_move.iter().zip(1..).map(|(one, x)| Sample {
                    x,
                    ticks: one.tsc_error_ticks,
                    ns: one.kvmclock_error_ns,
                });
                (summary.method, summary.tsc_khz, samples.collect())
            }
            _ => return None,
        };
        Some(Source {
            number,
            method,
            khz,
            samples,
        })
    };
    runs.iter().zip(1..).filter_map(source).collect()
}

fn chart(group: &Group<'_>, clock: Clock) -> Option<Chart> {
    let series = group.sources.iter().enumerate();
    let series: Vec<_> = series
        .map(|(place, source)| series_of(group, source, place, clock))
        .filter(|series| !series.points.is_empty())
        .collect();
    if series.is_empty() {
        return None;
    }
    let khz = group.sources.iter().map(|source| source.khz).max()?;
    let title = format!("{}: {} error", group.title, clock.name());
    Some(Chart {
        name: format!("error-{}-{}", group.name, clock.unit()),
        description: description(group.x_label, clock, &series),
        scene: error_plot(&title, group.x_label, khz, &series).scene(),
        table: table(group.x_label, clock.unit(), &series),
        title,
    })
}

/// A plot of clock errors (ns) over the number of a cycle or move; a tick of the fastest TSC is
/// 1/`khz`.
pub(crate) fn error_plot<'a>(
    title: &'a str,
    x_label: &'static str,
    khz: u32,
    series: &'a [Series],
) -> Plot<'a> {
    let points = || series.iter().flat_map(|series| &series.points);
    let last_x = points().map(|point| point.x).fold(1.0, f64::max);
    let highest = points().map(|point| point.y).fold(0.0, f64::max);
    Plot {
        title,
        x: XAxis {
            label: x_label,
            logarithmic: false,
            // CAST: It was a u32.
            ticks: counting(1, last_x as u32, 6),
            first: 1.0,
            last: last_x,
        },
        y: time_axis(tick_ns(khz), highest),
        series,
    }
}

/// Length of a TSC tick, ns.
pub(crate) fn tick_ns(khz: u32) -> f64 {
    1e6 / f64::from(khz.max(1))
}

fn series_of(group: &Group<'_>, source: &Source, place: usize, clock: Clock) -> Series {
    let name = source.method.name();
    let runs_of = |method| {
        let methods = group.sources.iter().map(|one| one.method);
        methods.filter(|&one| one == method).count()
    };
    let label = match runs_of(source.method) {
        1 => name.to_owned(),
        _ => format!("{name} (run {})", source.number),
    };
    // A method has the same style in all charts, unless a method has several runs.
    let rank = Method::ALL.iter().position(|&one| one == source.method);
    let alone = Method::ALL.iter().all(|&method| runs_of(method) <= 1);
    let style = rank.filter(|_| alone).unwrap_or(place);
    let ns_per_unit = match clock {
        Clock::Tsc => tick_ns(source.khz),
        Clock::Kvmclock => 1.0,
    };
    let point = |sample: &Sample| {
        let error = clock.error(sample)?;
        let ns = error as f64 * ns_per_unit;
        Some(Point::new(&label, sample.x, ns, error, clock.unit()))
    };
    Series {
        points: source.samples.iter().filter_map(point).collect(),
        style,
        label,
    }
}

/// From one tick to at least a second.
fn time_axis(tick_ns: f64, highest_ns: f64) -> YAxis {
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
            .map(|point| point.datum.value.parse::<i64>());
        let worst = values.flatten().map(i64::unsigned_abs).max();
        let worst = grouped(worst.unwrap_or_default());
        format!("{}: {worst} {}", series.label, clock.unit())
    };
    let each: Vec<_> = series.iter().map(worst).collect();
    format!(
        "Magnitude of the {} error of each {x_label}, on a logarithmic axis from one tick, with exact zero below \
         it. Worst error with {}.",
        clock.name(),
        each.join("; with ")
    )
}

/// The data as a table, with a row per x and a column per series.
pub(crate) fn table(x_label: &str, unit: &str, series: &[Series]) -> Table {
    let mut head = vec![x_label.to_owned()];
    head.extend(series.iter().map(|one| format!("{}, {unit}", one.label)));
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
