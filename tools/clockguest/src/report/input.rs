// SPDX-License-Identifier: GPL-2.0-only

//! Reads the JSON of runs: each file has one run, or an array of runs.

use super::Error;
use crate::{migration, origin::Origin, summary};
use serde::{de::DeserializeOwned, Deserialize};
use serde_json::Value;
use std::{fs, path::Path};

/// The results of a run.
#[derive(Debug)]
pub(crate) enum Measured {
    /// `clockguest cycle`, and each run of `clockguest demo`.
    Cycle(summary::Summary),
    /// `clockguest migrate`.
    Migrate(migration::Summary),
    /// `make bench`.
    Bench(Bench),
}

/// One run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) origin: Origin,
    pub(crate) measured: Measured,
    /// The run as read.
    pub(crate) value: Value,
}

/// The results of a benchmark.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Bench {
    pub(crate) results: Vec<Cost>,
    #[serde(default)]
    pub(crate) slopes: Vec<Slope>,
}

/// The cost of one operation on a whole VM.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Cost {
    pub(crate) method: String,
    pub(crate) operation: String,
    pub(crate) case: String,
    pub(crate) vcpus: u32,
    pub(crate) instructions: u64,
    pub(crate) syscalls: u64,
    /// Instructions with vCPUs locked, if known.
    pub(crate) locked: Option<u64>,
}

/// The additional cost per vCPU.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Slope {
    pub(crate) method: String,
    pub(crate) operation: String,
    pub(crate) case: String,
    pub(crate) instructions_per_vcpu: f64,
}

/// Reads all runs of all files; at least one.
pub(crate) fn read(files: &[impl AsRef<Path>]) -> Result<Vec<Run>, Error> {
    let mut runs = Vec::new();
    for file in files {
        let file = file.as_ref();
        let text = fs::read_to_string(file).map_err(|error| Error::Read(file.into(), error))?;
        let value =
            serde_json::from_str(&text).map_err(|error| Error::NoJson(file.into(), error))?;
        let found = match value {
            Value::Array(values) => values,
            one => vec![one],
        };
        if found.is_empty() {
            return Err(Error::Empty(file.into()));
        }
        for (value, number) in found.into_iter().zip(1..) {
            let run = run(value).map_err(|why| Error::Run {
                file: file.into(),
                number,
                why,
            })?;
            runs.push(run);
        }
    }
    Ok(runs)
}

fn run(value: Value) -> Result<Run, String> {
    let Some(kind) = value.get("kind").and_then(Value::as_str) else {
        return Err("it has no kind: it is not the JSON output of clockguest".into());
    };
    let measured = match kind {
        "cycle" => Measured::Cycle(parsed(&value, kind)?),
        "migrate" => Measured::Migrate(parsed(&value, kind)?),
        "bench" => Measured::Bench(parsed(&value, kind)?),
        _ => return Err(format!("kind '{kind}' is not cycle, migrate or bench")),
    };
    measured.check()?;
    Ok(Run {
        origin: parsed(&value, kind)?,
        measured,
        value,
    })
}

fn parsed<T: DeserializeOwned>(value: &Value, kind: &str) -> Result<T, String> {
    T::deserialize(value).map_err(|error| format!("it is not a valid '{kind}': {error}"))
}

impl Measured {
    /// Checks what the types do not ensure.
    fn check(&self) -> Result<(), String> {
        let (single, done, what, failed) = match self {
            Self::Cycle(run) => (
                run.per_cycle.len(),
                run.cycles_done,
                "cycle",
                run.first_error.is_some(),
            ),
            Self::Migrate(run) => (
                run.per_move.len(),
                run.moves_done,
                "move",
                run.first_error.is_some(),
            ),
            Self::Bench(bench) => return bench.check(),
        };
        // Inconsistent readings have no entry.
        if single == 0 && done > 0 && !failed {
            return Err(format!("it has no per_{what}, but {done} {what}s"));
        }
        let khz = match self {
            Self::Cycle(run) => run.tsc_khz,
            Self::Migrate(run) => run.tsc_khz,
            Self::Bench(_) => return Ok(()),
        };
        if khz == 0 && single > 0 {
            return Err("its tsc_khz is 0".into());
        }
        Ok(())
    }
}

impl Bench {
    fn check(&self) -> Result<(), String> {
        if self.results.is_empty() {
            return Err("it has no results".into());
        }
        if self.results.iter().any(|cost| cost.vcpus == 0) {
            return Err("a result has 0 vCPUs".into());
        }
        Ok(())
    }
}
