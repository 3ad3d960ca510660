// SPDX-License-Identifier: GPL-2.0-only

//! `clockguest audit`: the clocks of the VMs on this host.

use crate::{cli, print, stop};
use anyhow::Result;
use clockguest::audit::{audit, Config, Event, Observer, Report};
use serde::Serialize;
use std::{
    io::{self, stdout, Write},
    time::Duration,
};

/// How long KVM is observed without --watch and --for.
const TIME: Duration = Duration::from_secs(2);

/// A line of JSON.
#[derive(Serialize)]
struct Line<'a, T> {
    kind: &'static str,
    #[serde(flatten)]
    content: &'a T,
}

/// Shows events with --watch.
struct View {
    watch: bool,
    json: bool,
    /// The error of stdout, if any.
    failed: Option<io::Error>,
}

pub(crate) fn run(args: &cli::Audit) -> Result<u8> {
    let config = Config {
        pid: args.pid,
        time: args.time.or((!args.watch).then_some(TIME)),
    };
    let mut view = View {
        watch: args.watch,
        json: args.json,
        failed: None,
    };
    stop::catch_signals()?;
    let report: Report = audit(&config, &mut view)?;
    if let Some(error) = view.failed {
        // A reader that has seen enough is no failure.
        return match error.kind() {
            io::ErrorKind::BrokenPipe => Ok(0),
            _ => Err(error.into()),
        };
    }
    let line = Line {
        kind: "audit",
        content: &report,
    };
    print(args.json, &line, &report.to_text())?;
    Ok(0)
}

impl Observer for View {
    fn is_done(&self) -> bool {
        self.failed.is_some() || stop::is_requested()
    }

    fn event(&mut self, event: Event) {
        if self.watch && self.failed.is_none() {
            self.failed = self.show(&event).err();
        }
    }
}

impl View {
    fn show(&self, event: &Event) -> io::Result<()> {
        let mut out = stdout().lock();
        if self.json {
            let line = Line {
                kind: "event",
                content: event,
            };
            writeln!(out, "{}", serde_json::to_string(&line)?)?;
        } else {
            writeln!(out, "{}", event.to_text())?;
        }
        out.flush()
    }
}
