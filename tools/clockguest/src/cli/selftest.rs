// SPDX-License-Identifier: GPL-2.0-only

//! `clockguest selftest`.

use crate::{print, FAILED, UNAVAILABLE};
use anyhow::{Context, Result};
use clap::Args;
use clockguest::{
    duration,
    guest::layout::MAX_VCPUS,
    origin::{Origin, WithOrigin},
    selftest::{self, Config, Verdict},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

#[derive(Args, Debug)]
pub(crate) struct Selftest {
    /// vCPUs of the guests; one case has a vCPU for each CPU of the host
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: u32,

    /// Cycles of each case
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    cycles: u32,

    /// Minimum time from stop to run, e.g. 500us, 50ms, 5s
    #[arg(long, default_value = "50ms", value_parser = duration::parse)]
    downtime: Duration,

    /// Also write the report to a file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Also write the report as JSON to a file
    #[arg(long, value_name = "FILE")]
    json_file: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Selftest {
    pub(crate) fn run(&self, any_kvm: bool) -> Result<u8> {
        // Before the test, which takes a while.
        for file in [&self.report, &self.json_file].into_iter().flatten() {
            write(file, "")?;
        }
        let config = Config {
            vcpus: self.vcpus,
            cycles: self.cycles,
            downtime: self.downtime,
            any_kvm,
        };
        let report = selftest::run(&config, &mut |case| eprint!("{}", case.to_text()));
        let origin = Origin::of_this();
        let run = WithOrigin::new("selftest", &origin, &report);
        let text = report.to_text(&origin);
        if let Some(file) = &self.report {
            write(file, &text)?;
        }
        if let Some(file) = &self.json_file {
            write(file, &format!("{}\n", serde_json::to_string(&run)?))?;
        }
        print(self.json, &run, &text)?;
        Ok(match report.verdict {
            Verdict::Passed => 0,
            Verdict::Failed => FAILED,
            Verdict::Unsupported => UNAVAILABLE,
        })
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
