// SPDX-License-Identifier: GPL-2.0-only

//! `clockguest watch`: the current errors of a running guest's clocks.

use crate::{cli, stop, FAILED};
use anyhow::{Context, Result};
use clockguest::{
    method::Method,
    scenario::{
        watch::{watch, Watcher},
        Config, Scenario,
    },
    summary::{Cycle, Summary},
};
use serde::Serialize;
use std::io::{self, stdout, IsTerminal, Write};

/// The output format of a cycle.
enum Style {
    /// A line that is rewritten.
    Live,
    /// A new line.
    Lines,
    /// A JSON object.
    Json,
}

struct View {
    style: Style,
    /// The error of stdout, if any.
    failed: Option<io::Error>,
}

/// The JSON object of a cycle.
#[derive(Serialize)]
struct Line<'a> {
    kind: &'static str,
    method: Method,
    vcpus: u32,
    tsc_khz: u32,
    #[serde(flatten)]
    cycle: &'a Cycle,
    tsc_error_ticks_total: i64,
    kvmclock_error_ns_total: i64,
    tsc_kvmclock_skew_ns_total: i64,
    backwards_steps: u64,
    first_error: Option<&'a str>,
}

pub(crate) fn run(args: &cli::Watch, any_kvm: bool) -> Result<u8> {
    let config = Config {
        scenario: Scenario::Pause,
        method: args.method,
        vcpus: args.vcpus,
        cycles: args.cycles.unwrap_or(u32::MAX),
        downtime: args.downtime,
        any_kvm,
    };
    let mut view = View {
        style: match (args.json, stdout().is_terminal()) {
            (true, _) => Style::Json,
            (false, true) => Style::Live,
            (false, false) => Style::Lines,
        },
        failed: None,
    };
    stop::catch_signals()?;
    let mut summary = watch(&config, args.interval, &mut view)?;
    // Without --cycles, any number is complete.
    if args.cycles.is_none() {
        summary.cycles = summary.cycles_done;
    }
    view.finish(&summary)?;
    Ok(summary.first_error.map_or(0, |_| FAILED))
}

impl Watcher for View {
    fn is_done(&self) -> bool {
        self.failed.is_some() || stop::is_requested()
    }

    fn update(&mut self, summary: &Summary) {
        self.failed = self.show(summary).err();
    }
}

impl View {
    fn show(&self, summary: &Summary) -> io::Result<()> {
        // A cycle with inconsistent readings has no entry; the final summary has its error.
        let last = summary.per_cycle.last();
        let Some(cycle) = last.filter(|last| last.cycle == summary.cycles_done) else {
            return Ok(());
        };
        let mut out = stdout().lock();
        match self.style {
            // Without wrapping, a narrow terminal shows the beginning.
            Style::Live => write!(out, "\r\x1b[?7l{}\x1b[K\x1b[?7h", text(summary, cycle))?,
            Style::Lines => writeln!(out, "{}", text(summary, cycle))?,
            Style::Json => writeln!(out, "{}", json(summary, cycle)?)?,
        }
        out.flush()
    }

    /// Prints the summary, unless stdout has failed; a closed pipe is not an error.
    fn finish(self, summary: &Summary) -> Result<()> {
        if let Some(error) = self.failed {
            return match error.kind() {
                io::ErrorKind::BrokenPipe => Ok(()),
                _ => Err(error).context("stdout"),
            };
        }
        let mut out = stdout().lock();
        match self.style {
            Style::Json => {
                if let Some(error) = &summary.first_error {
                    eprintln!("clockguest: {error}");
                }
            }
            Style::Live => write!(out, "\n{}", summary.to_text(false))?,
            Style::Lines => write!(out, "{}", summary.to_text(false))?,
        }
        Ok(out.flush()?)
    }
}

fn text(summary: &Summary, cycle: &Cycle) -> String {
    format!(
        "{} cycle {}: TSC {:+} ticks ({:+}), kvmclock {:+} ns ({:+}), skew {:+} ns ({:+}), {} steps back",
        summary.method.name(),
        cycle.cycle,
        cycle.tsc_error_ticks,
        summary.tsc_error_ticks_total,
        cycle.kvmclock_error_ns,
        summary.kvmclock_error_ns_total,
        cycle.tsc_kvmclock_skew_ns,
        summary.tsc_kvmclock_skew_ns_total,
        summary.backwards_steps,
    )
}

fn json(summary: &Summary, cycle: &Cycle) -> io::Result<String> {
    let line = Line {
        kind: "watch",
        method: summary.method,
        vcpus: summary.vcpus,
        tsc_khz: summary.tsc_khz,
        cycle,
        tsc_error_ticks_total: summary.tsc_error_ticks_total,
        kvmclock_error_ns_total: summary.kvmclock_error_ns_total,
        tsc_kvmclock_skew_ns_total: summary.tsc_kvmclock_skew_ns_total,
        backwards_steps: summary.backwards_steps,
        first_error: summary.first_error.as_deref(),
    };
    serde_json::to_string(&line).map_err(io::Error::from)
}
