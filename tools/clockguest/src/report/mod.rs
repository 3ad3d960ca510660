// SPDX-License-Identifier: GPL-2.0-only

//! Writes an HTML page, and an SVG and a PNG file of each chart, from the JSON of runs.
//!
//! `input` reads the runs; `clock_error`, `error_by_cause` and `cost` select the data of charts,
//! `glance` and `summary` that of the tables; `chart` draws, `page` writes the page. No file is
//! written before all are complete.

mod chart;
mod clock_error;
mod cost;
mod error_by_cause;
mod glance;
mod input;
mod page;
mod summary;
pub mod text;

use chart::{png, svg};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use thiserror::Error as ThisError;

/// The reason why there is no report.
#[derive(Debug, ThisError)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, #[source] io::Error),
    /// A file is not JSON.
    #[error("{0} is not JSON: {1}")]
    NoJson(PathBuf, #[source] serde_json::Error),
    /// A file is an empty array.
    #[error("{0} has no runs")]
    Empty(PathBuf),
    /// A run has an unknown kind, or is not valid for its kind.
    #[error("{file}, run {number}: {why}")]
    Run {
        /// The file of the run.
        file: PathBuf,
        /// Number of the run in the file, from 1.
        number: usize,
        /// The defect.
        why: String,
    },
    /// A chart cannot be drawn as PNG.
    #[error("cannot draw {0}.png")]
    Draw(String),
    /// A file cannot be written.
    #[error("cannot write {0}: {1}")]
    Write(PathBuf, #[source] io::Error),
}

/// A written report.
#[derive(Debug)]
pub struct Written {
    /// The page.
    pub page: PathBuf,
    /// Number of charts, each with an SVG and a PNG file.
    pub charts: usize,
    /// Number of runs.
    pub runs: usize,
}

/// Writes a report of the runs in `files` to the folder `out`.
///
/// # Errors
///
/// [`Error`]; nothing is written except with [`Error::Write`].
pub fn write(files: &[impl AsRef<Path>], out: &Path) -> Result<Written, Error> {
    let runs = input::read(files)?;
    let mut charts = clock_error::charts(&runs);
    charts.extend(error_by_cause::charts(&runs));
    charts.extend(cost::charts(&runs));

    let mut made = Vec::new();
    for chart in &charts {
        let png = png::file(&chart.scene).ok_or_else(|| Error::Draw(chart.name.clone()))?;
        made.push((format!("{}.svg", chart.name), svg::file(chart).into_bytes()));
        made.push((format!("{}.png", chart.name), png));
    }
    // Last, so that all files that it refers to exist.
    made.push(("index.html".into(), page::html(&runs, &charts).into_bytes()));

    fs::create_dir_all(out).map_err(|error| Error::Write(out.into(), error))?;
    for (name, bytes) in made {
        let path = out.join(name);
        fs::write(&path, bytes).map_err(|error| Error::Write(path, error))?;
    }
    Ok(Written {
        page: out.join("index.html"),
        charts: charts.len(),
        runs: runs.len(),
    })
}
