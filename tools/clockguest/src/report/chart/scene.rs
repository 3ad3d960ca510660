// SPDX-License-Identifier: GPL-2.0-only

//! The elements of a chart's drawing, for SVG and PNG.
//!
//! Lengths are CSS pixels, from the upper left corner.

/// A position.
pub(crate) type At = (f64, f64);

/// The role of a colour, which depends on light or dark mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ink {
    /// Important text.
    Text,
    /// Other text.
    Muted,
    /// Grid lines.
    Grid,
    /// The band of exact zero.
    Band,
    /// A series with this number.
    Series(usize),
}

/// Number of distinct colours, markers and dashes; more series repeat them.
pub(crate) const STYLES: usize = 6;

impl Ink {
    /// The class in SVG.
    pub(crate) fn class(self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Muted => "muted".into(),
            Self::Grid => "grid".into(),
            Self::Band => "band".into(),
            Self::Series(number) => format!("s{}", number % STYLES),
        }
    }
}

/// The part of a text at its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// The data of a marker, for programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Datum {
    pub(crate) series: String,
    /// Number of the cycle or move, or of vCPUs.
    pub(crate) x: String,
    /// As in the JSON.
    pub(crate) value: String,
    pub(crate) unit: &'static str,
}

/// An element of a drawing.
#[derive(Clone, Debug)]
pub(crate) enum Mark {
    Area {
        at: At,
        width: f64,
        height: f64,
        ink: Ink,
    },
    Line {
        points: Vec<At>,
        ink: Ink,
        width: f64,
        dashes: &'static [f64],
    },
    Marker {
        outline: Vec<At>,
        ink: Ink,
        hollow: bool,
        /// `None` in a legend.
        datum: Option<Datum>,
    },
    Text {
        at: At,
        text: String,
        size: f64,
        anchor: Anchor,
        ink: Ink,
    },
}

/// A drawing.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) width: f64,
    pub(crate) height: f64,
    pub(crate) marks: Vec<Mark>,
}

/// Dashes of a series.
pub(crate) fn dashes(series: usize) -> &'static [f64] {
    const ALL: [&[f64]; STYLES] = [
        &[],
        &[5.0, 3.0],
        &[1.5, 2.5],
        &[8.0, 3.0, 1.5, 3.0],
        &[10.0, 4.0],
        &[3.0, 1.5],
    ];
    ALL[series % STYLES]
}

/// The marker of a series: circle, square, triangle, diamond, triangle upside down, hexagon.
pub(crate) fn marker(series: usize, (x, y): At, radius: f64) -> Vec<At> {
    // Corners, angle of the first one (turns, clockwise from the right), and a factor for equal
    // weight.
    const ALL: [(u32, f64, f64); STYLES] = [
        (20, 0.0, 1.0),
        (4, 0.125, 1.2),
        (3, 0.75, 1.35),
        (4, 0.0, 1.35),
        (3, 0.25, 1.35),
        (6, 0.0, 1.15),
    ];
    let (corners, turn, factor) = ALL[series % STYLES];
    let corner = |number: u32| {
        let angle = (turn + f64::from(number) / f64::from(corners)) * std::f64::consts::TAU;
        let radius = radius * factor;
        (x + radius * angle.cos(), y + radius * angle.sin())
    };
    (0..corners).map(corner).collect()
}
