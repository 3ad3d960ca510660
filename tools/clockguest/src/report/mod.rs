// SPDX-License-Identifier: GPL-2.0-only

//! Makes one HTML page, and a SVG and a PNG file of each chart, from the JSON of any set of runs.
//!
//! `input` reads the runs; `clock_error`, `split` and `cost` choose what a chart shows, `summary` what the
//! table; `chart` draws, `page` writes the page. Everything is made before the first file is written.

mod chart;
mod clock_error;
mod cost;
mod input;
mod page;
mod split;
mod summary;
pub mod text;

use chart::{png, svg};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use thiserror::Error as ThisError;

/// Why there is no report.
#[derive(Debug, ThisError)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, #[source] io::Error),
    /// A file is no JSON.
    #[error("{0} is not JSON: {1}")]
    NoJson(PathBuf, #[source] serde_json::Error),
    /// A file is an empty array.
    #[error("{0} has no runs")]
    Empty(PathBuf),
    /// A run is of no kind that is known, or not what its kind says.
    #[error("{file}, run {number}: {why}")]
    Run {
        /// Where it is.
        file: PathBuf,
        /// Counts from 1 in each file.
        number: usize,
        /// What is wrong.
        why: String,
    },
    /// A chart cannot be drawn as PNG.
    #[error("cannot draw {0}.png")]
    Draw(String),
    /// A file cannot be written.
    #[error("cannot write {0}: {1}")]
    Write(PathBuf, #[source] io::Error),
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// The page.
    pub page: PathBuf,
    /// Charts, each of which has a SVG and a PNG file.
    pub charts: usize,
    /// Runs that they are made of.
    pub runs: usize,
}

/// Makes a report of the runs in `files`, and writes it to the folder `out`.
///
/// # Errors
///
/// [`Error`]; nothing has been written unless it says that it cannot write.
pub fn write(files: &[impl AsRef<Path>], out: &Path) -> Result<Written, Error> {
    let runs = input::read(files)?;
    let mut charts = clock_error::charts(&runs);
    charts.extend(split::charts(&runs));
    charts.extend(cost::charts(&runs));

    let mut made = Vec::new();
    for chart in &charts {
        let png = png::file(&chart.scene).ok_or_else(|| Error::Draw(chart.name.clone()))?;
        made.push((format!("{}.svg", chart.name), svg::file(chart).into_bytes()));
        made.push((format!("{}.png", chart.name), png));
    }
    // Last: once it is there, so is all that it names.
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
