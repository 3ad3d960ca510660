// SPDX-License-Identifier: GPL-2.0-only

//! Charts of the cost of saving and restoring against the number of vCPUs.

use super::{
    chart::{
        plot::{Plot, Point, Series, XAxis, YAxis},
        Chart, Table,
    },
    input::{Bench, Cost, Measured, Run},
    text::{decimal, grouped},
};

/// Which count of a result.
#[derive(Clone, Copy, PartialEq)]
enum Count {
    All,
    /// With vCPUs locked.
    Locked,
}

impl Count {
    /// The prefix of the chart's name.
    fn name(self) -> &'static str {
        match self {
            Self::All => "cost",
            Self::Locked => "locked",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::All => "instructions",
            Self::Locked => "instructions with vCPUs locked",
        }
    }

    fn of(self, cost: &Cost) -> Option<u64> {
        match self {
            Self::All => Some(cost.instructions),
            Self::Locked => cost.locked,
        }
    }
}

/// A chart per operation, case and count of each run.
pub(crate) fn charts(runs: &[Run]) -> Vec<Chart> {
    let mut charts = Vec::new();
    for (run, number) in runs.iter().zip(1..) {
        if let Measured::Bench(bench) = &run.measured {
            for (operation, case) in cases(bench) {
                let of = |count| chart(bench, number, operation, case, count);
                charts.extend([Count::All, Count::Locked].into_iter().filter_map(of));
            }
        }
    }
    charts
}

/// The operations and cases, in the order of their first results.
fn cases(bench: &Bench) -> Vec<(&str, &str)> {
    distinct(
        bench
            .results
            .iter()
            .map(|cost| (cost.operation.as_str(), cost.case.as_str())),
    )
}

fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for one in all {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

fn chart(bench: &Bench, number: usize, operation: &str, case: &str, count: Count) -> Option<Chart> {
    let chosen: Vec<_> = bench
        .results
        .iter()
        .filter(|cost| cost.operation == operation && cost.case == case)
        .collect();
    let methods = distinct(chosen.iter().map(|cost| cost.method.as_str()));
    let series: Vec<_> = methods
        .iter()
        .enumerate()
        .map(|(style, method)| series_of(style, method, &chosen, count))
        .filter(|series| !series.points.is_empty())
        .collect();
    let values = || {
        series
            .iter()
            .flat_map(|series| &series.points)
            .map(|point| point.y)
    };
    let lowest = values().filter(|&y| y > 0.0).fold(f64::INFINITY, f64::min);
    if !lowest.is_finite() {
        return None;
    }
    let title = format!("{operation}, {case}: {}", count.title());
    let mut vcpus = distinct(chosen.iter().map(|cost| cost.vcpus));
    vcpus.sort_unstable();
    let plot = Plot {
        title: &title,
        x: XAxis {
            label: "vCPUs",
            logarithmic: true,
            first: f64::from(*vcpus.first()?),
            last: f64::from(*vcpus.last()?),
            ticks: vcpus
                .iter()
                .map(|&n| (f64::from(n), n.to_string()))
                .collect(),
        },
        y: count_axis(
            lowest,
            values().fold(0.0, f64::max),
            values().any(|y| y == 0.0),
        ),
        series: &series,
    };
    Some(Chart {
        name: format!("{}-{operation}-{case}-run-{number}", count.name()),
        description: description(bench, operation, case, count, &series),
        scene: plot.scene(),
        table: table(&chosen),
        title,
    })
}

fn series_of(style: usize, method: &str, chosen: &[&Cost], count: Count) -> Series {
    let point = |cost: &&Cost| {
        let value = count.of(cost).filter(|_| cost.method == method)?;
        let (vcpus, y) = (cost.vcpus, value as f64);
        Some(Point::new(method, vcpus, y, value, "instructions"))
    };
    let mut points: Vec<_> = chosen.iter().filter_map(point).collect();
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    Series {
        label: method.to_owned(),
        style,
        points,
    }
}

/// Whole decades from `lowest` to `highest`.
fn count_axis(lowest: f64, highest: f64, zero: bool) -> YAxis {
    let first = lowest.log10().floor();
    let last = highest.log10().ceil().max(first + 1.0);
    // CAST: Exponents of 64-bit numbers.
    let ticks = (first as i32..=last as i32).map(|exponent| {
        let value = 10f64.powi(exponent);
        // CAST: A power of ten.
        (value, grouped(value as u64))
    });
    YAxis {
        label: "instructions",
        zero,
        ticks: ticks.collect(),
        first: 10f64.powf(first),
        last: 10f64.powf(last),
    }
}

fn description(
    bench: &Bench,
    operation: &str,
    case: &str,
    count: Count,
    series: &[Series],
) -> String {
    let slope_of = |series: &Series| {
        let slope = bench.slopes.iter().find(|slope| {
            slope.method == series.label && slope.operation == operation && slope.case == case
        })?;
        let each = decimal(slope.instructions_per_vcpu);
        Some(format!(" Each vCPU adds {each} with {}.", series.label))
    };
    // The slopes are those of all instructions.
    let slopes: String = match count {
        Count::All => series.iter().filter_map(slope_of).collect(),
        Count::Locked => String::new(),
    };
    format!(
        "{} of one {operation} ({case}) against vCPUs, on logarithmic axes.{slopes}",
        count.title().replacen('i', "I", 1),
    )
}

fn table(chosen: &[&Cost]) -> Table {
    let head = [
        "method",
        "vCPUs",
        "instructions",
        "with vCPUs locked",
        "system calls",
    ];
    let row = |cost: &&Cost| {
        vec![
            cost.method.clone(),
            cost.vcpus.to_string(),
            cost.instructions.to_string(),
            cost.locked.map_or("–".into(), |locked| locked.to_string()),
            cost.syscalls.to_string(),
        ]
    };
    Table {
        head: head.map(str::to_owned).to_vec(),
        rows: chosen.iter().map(row).collect(),
    }
}
