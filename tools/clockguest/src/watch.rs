// SPDX-License-Identifier: GPL-2.0-only

//! `clockguest watch`: the present errors of a running guest's clocks.

use crate::{cli, FAILED};
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
use std::{
    io::{self, stdout, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
};
use vmm_sys_util::signal::register_signal_handler;

/// Somebody asked for the end.
static ENOUGH: AtomicBool = AtomicBool::new(false);

/// Ctrl-C, and what else ends a program, ends the watch instead.
fn catch_signals() -> Result<()> {
    extern "C" fn enough(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        ENOUGH.store(true, Ordering::Relaxed);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        register_signal_handler(signal, enough).context("sigaction")?;
    }
    Ok(())
}

/// How a cycle is shown.
enum Style {
    /// One line that is rewritten.
    Live,
    /// A line each.
    Lines,
    /// A JSON object each.
    Json,
}

struct View {
    style: Style,
    /// Nobody sees what is printed.
    failed: Option<io::Error>,
}

/// What a line of JSON tells.
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
    catch_signals()?;
    let mut summary = watch(&config, args.interval, &mut view)?;
    // Whoever ends it asks for no more than was done.
    if args.cycles.is_none() {
        summary.cycles = summary.cycles_done;
    }
    view.finish(&summary)?;
    Ok(summary.first_error.map_or(0, |_| FAILED))
}

impl Watcher for View {
    fn enough(&self) -> bool {
        self.failed.is_some() || ENOUGH.load(Ordering::Relaxed)
    }

    fn see(&mut self, so_far: &Summary) {
        self.failed = self.show(so_far).err();
    }
}

impl View {
    fn show(&self, so_far: &Summary) -> io::Result<()> {
        // A cycle whose readings contradict each other has none; the end tells why.
        let last = so_far.per_cycle.last();
        let Some(cycle) = last.filter(|last| last.cycle == so_far.cycles_done) else {
            return Ok(());
        };
        let mut out = stdout().lock();
        match self.style {
            // Without wrapping a narrow terminal shows the beginning.
            Style::Live => write!(out, "\r\x1b[?7l{}\x1b[K\x1b[?7h", text(so_far, cycle))?,
            Style::Lines => writeln!(out, "{}", text(so_far, cycle))?,
            Style::Json => writeln!(out, "{}", json(so_far, cycle)?)?,
        }
        out.flush()
    }

    /// The sum, unless nobody sees it; a reader that has gone is no failure.
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

fn text(so_far: &Summary, cycle: &Cycle) -> String {
    format!(
        "{} cycle {}: TSC {:+} ticks ({:+}), kvmclock {:+} ns ({:+}), skew {:+} ns ({:+}), {} steps back",
        so_far.method.name(),
        cycle.cycle,
        cycle.tsc_error_ticks,
        so_far.tsc_error_ticks_total,
        cycle.kvmclock_error_ns,
        so_far.kvmclock_error_ns_total,
        cycle.tsc_kvmclock_skew_ns,
        so_far.tsc_kvmclock_skew_ns_total,
        so_far.backwards_steps,
    )
}

fn json(so_far: &Summary, cycle: &Cycle) -> io::Result<String> {
    let line = Line {
        kind: "watch",
        method: so_far.method,
        vcpus: so_far.vcpus,
        tsc_khz: so_far.tsc_khz,
        cycle,
        tsc_error_ticks_total: so_far.tsc_error_ticks_total,
        kvmclock_error_ns_total: so_far.kvmclock_error_ns_total,
        tsc_kvmclock_skew_ns_total: so_far.tsc_kvmclock_skew_ns_total,
        backwards_steps: so_far.backwards_steps,
        first_error: so_far.first_error.as_deref(),
    };
    serde_json::to_string(&line).map_err(io::Error::from)
}
