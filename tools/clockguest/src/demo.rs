// SPDX-License-Identifier: GPL-2.0-only

//! Every scenario with every method, in one table.

use anyhow::Result;
use clockguest::{
    host::Unavailable,
    method::Method,
    origin::{Origin, WithOrigin},
    progress::Progress,
    report::text::grouped,
    scenario::{self, Config, Scenario},
    summary::Summary,
};
use std::time::Duration;

/// A row per scenario, a cell per method; `None` if the host does not support the method.
type Grid = Vec<Vec<Option<Summary>>>;

/// The results of all runs.
pub(crate) struct Demo {
    grid: Grid,
    missing: Option<Unavailable>,
}

impl Demo {
    /// Runs every scenario with every method that this host supports.
    pub(crate) fn run(vcpus: u32, cycles: u32, downtime: Duration, any_kvm: bool) -> Result<Self> {
        let mut missing = None;
        let mut grid = Grid::new();
        for scenario in Scenario::ALL {
            let mut row = Vec::new();
            for method in Method::ALL {
                let config = Config {
                    scenario,
                    method,
                    vcpus,
                    cycles,
                    downtime,
                    any_kvm,
                };
                row.push(match run_one(&config) {
                    Ok(summary) => Some(summary),
                    Err(error) => match error.downcast()? {
                        lacking @ Unavailable::NoClockGuest(_) => {
                            missing = Some(lacking);
                            None
                        }
                        lacking => return Err(lacking.into()),
                    },
                });
            }
            grid.push(row);
        }
        Ok(Self { grid, missing })
    }

    /// The feature that this host lacks, if any.
    pub(crate) fn missing(&mut self) -> Option<Unavailable> {
        self.missing.take()
    }

    pub(crate) fn summaries(&self) -> impl Iterator<Item = &Summary> {
        self.grid.iter().flatten().flatten()
    }

    /// Whether no run failed.
    pub(crate) fn passed(&self) -> bool {
        self.failed().is_none()
    }

    /// The first failed run. Without a stable host TSC, a legacy method may fail: it has no host
    /// TSC to relate to.
    fn failed(&self) -> Option<&Summary> {
        let precise = self.summaries().all(|s| s.precision_ns_max == 0);
        self.summaries()
            .find(|s| s.first_error.is_some() && (precise || s.method.is_exact()))
    }

    /// A JSON array with an object per run.
    pub(crate) fn to_json(&self) -> Result<String> {
        let origin = Origin::of_this();
        let runs: Vec<_> = self
            .summaries()
            .map(|summary| WithOrigin::new("cycle", &origin, summary))
            .collect();
        Ok(serde_json::to_string(&runs)?)
    }

    /// The table and a verdict.
    pub(crate) fn to_text(&self) -> String {
        let mut rows = vec![vec![String::new()]];
        rows[0].extend(Method::ALL.iter().map(|method| method.name().to_owned()));
        for (scenario, cells) in Scenario::ALL.iter().zip(&self.grid) {
            for (line, title) in LINES.iter().enumerate() {
                let mut row = vec![match line {
                    0 => format!("{:9}{title}", scenario.name()),
                    _ => format!("{:9}{title}", ""),
                }];
                row.extend(cells.iter().map(|cell| text_of(cell.as_ref(), line)));
                rows.push(row);
            }
        }
        let columns = rows[0].len();
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (index, row) in rows.iter().enumerate() {
            text += &format!("{:1$}", row[0], widths[0]);
            for (cell, width) in row[1..].iter().zip(&widths[1..]) {
                text += &format!("   {cell:>width$}");
            }
            text = text.trim_end().to_owned() + "\n";
            if index % LINES.len() == 0 && index + 1 < rows.len() {
                text.push('\n');
            }
        }
        self.title() + &text + "\n" + &self.verdict() + "\n"
    }

    fn title(&self) -> String {
        self.summaries().next().map_or(String::new(), |any| {
            format!(
                "Worst error of a cycle in {} cycles, {} vCPUs, downtime {} ms or more\n\n",
                any.cycles,
                any.vcpus,
                any.downtime_ns as f64 / 1e6
            )
        })
    }

    fn verdict(&self) -> String {
        if let Some(failed) = self.failed() {
            return format!(
                "FAILED: {} with {}: {}",
                failed.scenario.name(),
                failed.method.name(),
                failed.first_error.as_deref().unwrap_or_default()
            );
        }
        let exact: Vec<_> = self.summaries().filter(|s| s.method.is_exact()).collect();
        match exact.first() {
            None => "atomic was not measured: kvm_clock_guest is not loaded".into(),
            _ if exact.iter().any(|s| s.precision_ns_max != 0) => {
                let worst = exact.iter().max_by_key(|s| s.precision_ns_max);
                let note = worst.map_or(String::new(), |s| s.precision_note());
                format!("atomic: {note}")
            }
            Some(one) => format!(
                "atomic: TSC offsets and pvclock records bit-identical, 0 ticks, 0 ns, 0 steps back \
                 in {} cycles of {} vCPUs",
                exact.iter().map(|s| s.cycles_done).sum::<u32>(),
                one.vcpus
            ),
        }
    }
}

/// Lines of a cell.
const LINES: [&str; 5] = [
    "longest down",
    "TSC error",
    "kvmclock error",
    "skew",
    "steps back",
];

fn text_of(cell: Option<&Summary>, line: usize) -> String {
    let Some(summary) = cell else {
        return "no module".into();
    };
    if summary.cycles_done == 0 {
        return "failed".into();
    }
    match line {
        0 => format!("{} ms", grouped(summary.downtime_ns_max / 1_000_000)),
        1 => format!("{} ticks", grouped(summary.tsc_error_ticks_max)),
        2 => format!("{} ns", grouped(summary.kvmclock_error_ns_max)),
        3 => format!("{} ns", grouped(summary.tsc_kvmclock_skew_ns_max)),
        _ => grouped(summary.backwards_steps),
    }
}

fn run_one(config: &Config) -> Result<Summary> {
    let what = format!("{} with {}", config.scenario.name(), config.method.name());
    let mut progress = Progress::new(what, config.cycles);
    let summary = scenario::run(config, &mut progress)?;
    progress.finish(summary.cycles_done);
    Ok(summary)
}
