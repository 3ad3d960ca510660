// SPDX-License-Identifier: GPL-2.0-only

//! Charts: what each shows, the table behind it, and how it is drawn.

pub(crate) mod font;
pub(crate) mod plot;
pub(crate) mod png;
pub(crate) mod scene;
pub(crate) mod svg;

use scene::Scene;

/// One chart.
#[derive(Debug)]
pub(crate) struct Chart {
    /// Of its files, and of its elements.
    pub(crate) name: String,
    pub(crate) title: String,
    /// For who does not see it.
    pub(crate) description: String,
    pub(crate) scene: Scene,
    pub(crate) table: Table,
}

/// The numbers behind a chart.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}
