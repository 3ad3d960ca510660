// SPDX-License-Identifier: GPL-2.0-only

//! A test of this host: whether its module, its TSC and KVM keep a guest's clocks, by the guest's
//! own readings.
//!
//! The cases are the crate's scenarios, and cycles in every mode of `KVM_SET_VM_CLOCK_GUEST`; what
//! this host cannot do is skipped, with the reason.

mod cpus;
mod modes;
mod report;

pub use modes::ModeSummary;
pub use report::{Case, Measured, Report, Status, Verdict};

use crate::{
    host::open_kvm,
    info::Info,
    method::{Method, Mode},
    progress::Progress,
    scenario::{self, Scenario},
    summary::Summary,
};
use anyhow::Result;
use kvm_ioctls::Kvm;
use std::time::{Duration, Instant};

/// The guest's TSC rate in cases with scaling, as a part of the host's.
const OTHER_RATE: (u32, u32) = (3, 4);

/// Parameters of a test.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// vCPUs of the guests, except in the case that uses every CPU.
    pub vcpus: u32,
    /// Cycles of each case.
    pub cycles: u32,
    /// Minimum time from stop to run.
    pub downtime: Duration,
    /// Use `/dev/kvm` even if no CPU vendor's module is loaded.
    pub any_kvm: bool,
}

/// The result of a case.
enum Outcome {
    Cycles(Summary),
    Modes(ModeSummary),
    /// It cannot run here, for this reason.
    Skip(String),
}

/// A case: its name, and the function that runs it.
type Entry<'a> = (&'static str, Box<dyn Fn() -> Result<Outcome> + 'a>);

/// Tests this host; `next` receives each case when it ends.
pub fn run(config: &Config, next: &mut dyn FnMut(&Case)) -> Report {
    let start = Instant::now();
    let info = Info::gather(config.any_kvm);
    let mut cases = Vec::new();
    let mut add = |case: Case| {
        next(&case);
        cases.push(case);
    };
    let mut lacking = None;
    for (name, result) in requirements(&info) {
        // Without KVM, nothing else is known.
        let result = info.problem.clone().map_or(result, Err);
        lacking = lacking.or(result.as_ref().err().cloned());
        add(Case::requirement(name, result));
    }
    match (lacking, open_kvm(config.any_kvm)) {
        (None, Ok(kvm)) => entries(config, &info, &kvm)
            .into_iter()
            .for_each(|(name, run)| add(measured(name, run()))),
        (Some(why), _) => NAMES
            .iter()
            .for_each(|&name| add(Case::skipped(name, &why))),
        (None, Err(error)) => add(Case::failed("/dev/kvm", error.to_string())),
    }
    Report::new(info, cases, start.elapsed())
}

/// What the other cases need, and the reason if it is missing.
fn requirements(info: &Info) -> Vec<(&'static str, Result<String, String>)> {
    let needs = |is: bool, text: String, why: String| if is { Ok(text) } else { Err(why) };
    let has = |mode: Mode| info.clock_guest_cap.iter().any(|name| name == mode.name());
    let clocksource = info.clocksource.as_deref().unwrap_or("unknown");
    vec![
        (
            "KVM",
            Ok(info.kvm_vendor_module.unwrap_or("--any-kvm").to_owned()),
        ),
        (
            "module kvm_clock_guest",
            needs(
                [Mode::Exact, Mode::Advance, Mode::Freeze].into_iter().all(has),
                info.clock_guest_cap.join(", "),
                if info.kvm_clock_guest_loaded {
                    "KVM_CAP_VM_CLOCK_GUEST lacks a mode: the module is another version".into()
                } else {
                    "kvm_clock_guest is not loaded".into()
                },
            ),
        ),
        (
            "host TSC",
            needs(
                info.master_clock == Some(true),
                format!(
                    "stable, {} kHz, clocksource {clocksource}",
                    info.tsc_khz.unwrap_or(0)
                ),
                format!("KVM has no master clock: the host keeps time with {clocksource}, or its TSC is not stable"),
            ),
        ),
    ]
}

/// The names of all further cases, in order.
const NAMES: [&str; 9] = [
    "exact, pause",
    "exact, snapshot",
    "exact, migrate",
    "exact, each CPU",
    "advance",
    "freeze",
    "exact, other TSC rate",
    "advance, other TSC rate",
    "freeze, other TSC rate",
];

fn entries<'a>(config: &'a Config, info: &'a Info, kvm: &'a Kvm) -> Vec<Entry<'a>> {
    let mut runs: Vec<Box<dyn Fn() -> Result<Outcome> + 'a>> = Vec::new();
    for scenario in Scenario::ALL {
        runs.push(Box::new(move || in_scenario(config, scenario)));
    }
    runs.push(Box::new(|| cpus::run(config, kvm).map(Outcome::Cycles)));
    let own = info.tsc_khz.unwrap_or(0);
    for (mode, is_own) in [
        (Mode::Advance, true),
        (Mode::Freeze, true),
        (Mode::Exact, false),
        (Mode::Advance, false),
        (Mode::Freeze, false),
    ] {
        runs.push(Box::new(move || {
            if !is_own && info.tsc_scaling != Some(true) {
                return Ok(Outcome::Skip(
                    "this CPU, or this KVM, does not scale a guest's TSC".into(),
                ));
            }
            let tsc_khz = (!is_own).then(|| {
                // CAST: The result is less than `own`.
                (u64::from(own) * u64::from(OTHER_RATE.0) / u64::from(OTHER_RATE.1)) as u32
            });
            modes::run(config, kvm, mode, tsc_khz).map(Outcome::Modes)
        }));
    }
    assert_eq!(runs.len(), NAMES.len());
    NAMES.into_iter().zip(runs).collect()
}

fn in_scenario(config: &Config, scenario: Scenario) -> Result<Outcome> {
    let of_scenario = config.of(scenario);
    let what = format!("exact, {}", scenario.name());
    let mut progress = Progress::new(what, of_scenario.cycles);
    let summary = scenario::run(&of_scenario, &mut progress)?;
    progress.finish(summary.cycles_done);
    Ok(Outcome::Cycles(summary))
}

impl Config {
    /// The parameters of `scenario`.
    fn of(&self, scenario: Scenario) -> scenario::Config {
        scenario::Config {
            scenario,
            method: Method::Atomic,
            vcpus: self.vcpus,
            cycles: self.cycles,
            downtime: self.downtime,
            any_kvm: self.any_kvm,
        }
    }
}

fn measured(name: &str, result: Result<Outcome>) -> Case {
    match result {
        Ok(Outcome::Cycles(summary)) => Case::measured(name, Measured::Cycles(Box::new(summary))),
        Ok(Outcome::Modes(summary)) => Case::measured(name, Measured::Mode(summary)),
        Ok(Outcome::Skip(why)) => Case::skipped(name, &why),
        Err(error) => Case::failed(name, format!("{error:#}")),
    }
}
