// SPDX-License-Identifier: GPL-2.0-only

//! Charts: their data, tables and drawings.

pub(crate) mod font;
pub(crate) mod plot;
pub(crate) mod png;
pub(crate) mod scene;
pub(crate) mod svg;

use scene::Scene;

/// A chart.
#[derive(Debug)]
pub(crate) struct Chart {
    /// The name of its files and elements.
    pub(crate) name: String,
    pub(crate) title: String,
    /// A description for screen readers.
    pub(crate) description: String,
    pub(crate) scene: Scene,
    pub(crate) table: Table,
}

/// The data of a chart.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}
