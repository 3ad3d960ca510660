// SPDX-License-Identifier: GPL-2.0-only

//! The results of a test of this host, as JSON and as a text that can be sent to somebody.

use super::ModeSummary;
use crate::{
    info::Info,
    method::Mode,
    origin::Origin,
    report::text::grouped,
    summary::{identical, Summary},
};
use serde::Serialize;
use std::{fmt::Write, time::Duration};

/// The status of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It kept its promise.
    Pass,
    /// It did not, or a call failed.
    Fail,
    /// It cannot run here.
    Skip,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Skip => "skip",
        }
    }
}

/// Numbers of a case.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Measured {
    /// Of a scenario.
    Cycles(Box<Summary>),
    /// Of a mode.
    Mode(ModeSummary),
}

impl Measured {
    fn first_error(&self) -> Option<&str> {
        match self {
            Self::Cycles(summary) => summary.first_error.as_deref(),
            Self::Mode(summary) => summary.first_error.as_deref(),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Cycles(s) => format!(
                "{} cycles, {} vCPUs: {} ticks, {} ns, offsets {}, records {}, {} steps back",
                s.cycles_done,
                s.vcpus,
                grouped(s.tsc_error_ticks_max),
                grouped(s.kvmclock_error_ns_max),
                identical(s.offsets_bit_identical),
                identical(s.record_bit_identical),
                s.backwards_steps,
            ),
            Self::Mode(s) => format!(
                "{} cycles, {} vCPUs, {} kHz: {}, skew {} ns, records {}, {} steps back",
                s.cycles_done,
                s.vcpus,
                s.tsc_khz,
                match s.mode {
                    Mode::Exact => format!("{} ticks", grouped(s.tsc_outside_ticks_max)),
                    _ => format!(
                        "{} ticks beyond what the host's clocks allow, which is known to {} ticks",
                        grouped(s.tsc_outside_ticks_max),
                        grouped(s.uncertainty_ticks_max)
                    ),
                },
                s.tsc_kvmclock_skew_ns_max,
                identical(s.record_bit_identical),
                s.backwards_steps,
            ),
        }
    }
}

/// A case.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// Its status.
    pub status: Status,
    /// What was found, or why it failed or was skipped.
    pub text: String,
    /// Its numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

impl Case {
    fn new(name: &str, status: Status, text: String) -> Self {
        Self {
            name: name.to_owned(),
            status,
            text,
            measured: None,
        }
    }

    /// A property of the host; without it, the case is skipped for the given reason.
    pub(super) fn requirement(name: &str, result: Result<String, String>) -> Self {
        match result {
            Ok(text) => Self::new(name, Status::Pass, text),
            Err(why) => Self::new(name, Status::Skip, why),
        }
    }

    pub(super) fn skipped(name: &str, why: &str) -> Self {
        Self::new(name, Status::Skip, why.to_owned())
    }

    pub(super) fn failed(name: &str, why: String) -> Self {
        Self::new(name, Status::Fail, why)
    }

    pub(super) fn measured(name: &str, measured: Measured) -> Self {
        let mut case = match measured.first_error() {
            None => Self::new(name, Status::Pass, measured.text()),
            Some(error) => Self::new(name, Status::Fail, format!("{error} ({})", measured.text())),
        };
        case.measured = Some(measured);
        case
    }

    /// A line for the user.
    pub fn to_text(&self) -> String {
        format!("{}  {:24}{}\n", self.status.name(), self.name, self.text)
    }
}

/// The whole result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// No case failed, and modes exact, advance and freeze were measured.
    Passed,
    /// A case failed.
    Failed,
    /// This host lacks what all cases need.
    Unsupported,
}

/// The result of a test of this host.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The whole result.
    pub verdict: Verdict,
    /// The host.
    pub host: Info,
    /// The cases, in order.
    pub cases: Vec<Case>,
    /// How long it took, s.
    pub seconds: f64,
}

impl Report {
    pub(super) fn new(host: Info, cases: Vec<Case>, took: Duration) -> Self {
        let verdict = if cases.iter().any(|case| case.status == Status::Fail) {
            Verdict::Failed
        } else if cases.iter().any(|case| case.measured.is_some()) {
            Verdict::Passed
        } else {
            Verdict::Unsupported
        };
        Self {
            verdict,
            host,
            cases,
            seconds: took.as_secs_f64(),
        }
    }

    fn count(&self, status: Status) -> usize {
        self.cases
            .iter()
            .filter(|case| case.status == status)
            .count()
    }

    /// The last line: verdict and counts.
    pub fn to_line(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Passed => "passed",
            Verdict::Failed => "FAILED",
            Verdict::Unsupported => "not supported on this host",
        };
        format!(
            "clockguest selftest: {verdict}: {} passed, {} failed, {} skipped, {:.0} s\n",
            self.count(Status::Pass),
            self.count(Status::Fail),
            self.count(Status::Skip),
            self.seconds
        )
    }

    /// A text for a mail: host, cases, verdict. It names neither host nor user.
    pub fn to_text(&self, origin: &Origin) -> String {
        let mut text = String::new();
        let unknown = || "unknown".to_owned();
        for (name, value) in [
            ("clockguest", Some(env!("CARGO_PKG_VERSION").to_owned())),
            ("kernel", origin.kernel.clone()),
            ("CPU", origin.cpu.clone()),
            ("module's build ID", origin.module.clone()),
        ] {
            let _ = writeln!(text, "{name:24}{}", value.unwrap_or_else(unknown));
        }
        if let Some(qemu) = &origin.qemu {
            let _ = writeln!(text, "{:24}{qemu}", "emulated by");
        }
        // Its first line is the kernel's release.
        for line in self.host.to_text().lines().skip(1) {
            let _ = writeln!(text, "{line}");
        }
        text.push('\n');
        for case in &self.cases {
            text += &case.to_text();
        }
        text.push('\n');
        text + &self.to_line()
    }
}
