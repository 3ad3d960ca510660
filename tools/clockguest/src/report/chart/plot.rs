// SPDX-License-Identifier: GPL-2.0-only

//! Lays out series on a common x axis, and a logarithmic y axis with a separate band for exact
//! zero.

use super::{
    font,
    scene::{dashes, marker, Anchor, Datum, Ink, Mark, Scene},
};

/// A phone's width; wider screens show charts side by side.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 296.0;
const TOP: f64 = 42.0;
const BOTTOM: f64 = 40.0;
/// Font sizes of labels, and of the title.
const SIZE: f64 = 10.0;
const TITLE_SIZE: f64 = 12.5;
/// Distance between the baselines of two labels.
const LINE: f64 = 12.0;
/// Height of each series in the band of zero.
const LANE: f64 = 10.0;
/// Gap between the band of zero and the axis, for values below the start of the axis.
const GAP: f64 = 12.0;
/// Series with more points have smaller markers.
const MANY_POINTS: usize = 40;

/// A value on an axis, and its label.
pub(crate) type Tick = (f64, String);

pub(crate) struct XAxis {
    pub(crate) label: &'static str,
    pub(crate) logarithmic: bool,
    pub(crate) ticks: Vec<Tick>,
    pub(crate) first: f64,
    pub(crate) last: f64,
}

/// A logarithmic axis from `first`, with a band for zero below it if `zero` is set.
pub(crate) struct YAxis {
    pub(crate) label: &'static str,
    pub(crate) zero: bool,
    pub(crate) ticks: Vec<Tick>,
    pub(crate) first: f64,
    pub(crate) last: f64,
}

#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) x: f64,
    /// In units of the y axis; not negative.
    pub(crate) y: f64,
    /// The clock was behind: draw a hollow marker.
    pub(crate) negative: bool,
    pub(crate) datum: Datum,
}

impl Point {
    /// The point of `value` in `unit` at `x`, where the y axis has `y`, with its sign.
    pub(crate) fn new(
        series: &str,
        x: u32,
        y: f64,
        value: impl ToString,
        unit: &'static str,
    ) -> Self {
        Self {
            x: f64::from(x),
            y: y.abs(),
            negative: y < 0.0,
            datum: Datum {
                series: series.to_owned(),
                x: x.to_string(),
                value: value.to_string(),
                unit,
            },
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) label: String,
    /// Number of marker, dashes and colour.
    pub(crate) style: usize,
    pub(crate) points: Vec<Point>,
}

pub(crate) struct Plot<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: XAxis,
    pub(crate) y: YAxis,
    pub(crate) series: &'a [Series],
}

/// A plot with its margins.
struct Layout<'a> {
    plot: &'a Plot<'a>,
    left: f64,
    right: f64,
    /// The lower end of the logarithmic part.
    floor: f64,
    bottom: f64,
}

impl Plot<'_> {
    pub(crate) fn scene(&self) -> Scene {
        let widest = |texts: &mut dyn Iterator<Item = &str>| {
            texts
                .map(|text| font::width(text, SIZE))
                .fold(0.0, f64::max)
        };
        let left = 8.0 + widest(&mut self.y.ticks.iter().map(|(_, text)| text.as_str()));
        let labels = widest(&mut self.series.iter().map(|series| series.label.as_str()));
        let bottom = HEIGHT - BOTTOM;
        let zero = if self.y.zero {
            GAP + LANE * self.series.len() as f64
        } else {
            0.0
        };
        let layout = Layout {
            plot: self,
            left,
            right: WIDTH - labels - 16.0,
            floor: bottom - zero,
            bottom,
        };
        let mut marks = layout.axes();
        for number in 0..self.series.len() {
            layout.draw(number, &mut marks);
        }
        layout.name_series(&mut marks);
        Scene {
            width: WIDTH,
            height: HEIGHT,
            marks,
        }
    }
}

impl Layout<'_> {
    fn x(&self, value: f64) -> f64 {
        let XAxis {
            first,
            last,
            logarithmic,
            ..
        } = self.plot.x;
        let on = |value: f64| if logarithmic { value.log2() } else { value };
        let part = (on(value) - on(first)) / (on(last) - on(first)).max(f64::MIN_POSITIVE);
        // Keep the markers of the first and last point inside.
        let inset = 6.0;
        self.left + inset + part.clamp(0.0, 1.0) * (self.right - self.left - 2.0 * inset)
    }

    /// In the band of zero, each series has its own lane, so that they do not hide each other.
    fn y(&self, series: usize, value: f64) -> f64 {
        let YAxis { first, last, .. } = self.plot.y;
        if value == 0.0 {
            self.floor + GAP + LANE * (series as f64 + 0.5)
        } else if value < first {
            self.floor + GAP * (1.0 - value / first)
        } else {
            self.floor - (value / first).log10() / (last / first).log10() * (self.floor - TOP)
        }
    }

    fn axes(&self) -> Vec<Mark> {
        let mut marks = vec![text(
            (4.0, 15.0),
            self.plot.title,
            Anchor::Start,
            Ink::Text,
            TITLE_SIZE,
        )];
        marks.push(note((4.0, TOP - 12.0), self.plot.y.label, Anchor::Start));
        if self.plot.y.zero {
            let at = (self.left, self.floor + GAP);
            let height = self.bottom - at.1;
            marks.push(Mark::Area {
                at,
                width: self.right - self.left,
                height,
                ink: Ink::Band,
            });
            let middle = at.1 + height / 2.0 + SIZE * 0.35;
            marks.push(note((self.left - 4.0, middle), "0", Anchor::End));
        }
        let mut lowest = f64::INFINITY;
        for (value, label) in &self.plot.y.ticks {
            let y = self.y(0, *value);
            marks.push(line(vec![(self.left, y), (self.right, y)], Ink::Grid));
            if lowest - y >= LINE - 1.0 {
                lowest = y;
                let at = (self.left - 4.0, y + SIZE * 0.35);
                marks.push(note(at, label, Anchor::End));
            }
        }
        for (value, label) in &self.plot.x.ticks {
            let x = self.x(*value);
            marks.push(line(
                vec![(x, self.bottom), (x, self.bottom + 4.0)],
                Ink::Muted,
            ));
            marks.push(note((x, self.bottom + 15.0), label, Anchor::Middle));
        }
        marks.push(line(
            vec![(self.left, self.bottom), (self.right, self.bottom)],
            Ink::Muted,
        ));
        let middle = (self.left + self.right) / 2.0;
        marks.push(note(
            (middle, HEIGHT - 9.0),
            self.plot.x.label,
            Anchor::Middle,
        ));
        marks
    }

    fn draw(&self, number: usize, marks: &mut Vec<Mark>) {
        let series = &self.plot.series[number];
        let place = |point: &Point| (self.x(point.x), self.y(number, point.y));
        // A logarithmic axis has no line between zero and other values.
        for run in series.points.chunk_by(|a, b| (a.y == 0.0) == (b.y == 0.0)) {
            if run.len() > 1 {
                marks.push(Mark::Line {
                    points: run.iter().map(place).collect(),
                    ink: Ink::Series(series.style),
                    width: 1.2,
                    dashes: dashes(series.style),
                });
            }
        }
        let radius = if series.points.len() > MANY_POINTS {
            1.5
        } else {
            3.0
        };
        for point in &series.points {
            marks.push(Mark::Marker {
                outline: marker(series.style, place(point), radius),
                ink: Ink::Series(series.style),
                hollow: point.negative,
                datum: Some(point.datum.clone()),
            });
        }
    }

    /// Writes the name of each series next to its last point, without overlaps.
    fn name_series(&self, marks: &mut Vec<Mark>) {
        let last = |(number, series): (usize, &Series)| {
            let point = series.points.last()?;
            Some((number, self.y(number, point.y)))
        };
        let mut names: Vec<_> = self
            .plot
            .series
            .iter()
            .enumerate()
            .filter_map(last)
            .collect();
        names.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut floor = self.bottom - 2.0;
        for (_, y) in names.iter_mut().rev() {
            *y = y.min(floor);
            floor = *y - LINE;
        }
        for (number, y) in names {
            let series = &self.plot.series[number];
            let ink = Ink::Series(series.style);
            marks.push(Mark::Marker {
                outline: marker(series.style, (self.right + 7.0, y), 3.0),
                ink,
                hollow: false,
                datum: None,
            });
            let at = (self.right + 14.0, y + SIZE * 0.35);
            marks.push(text(at, &series.label, Anchor::Start, ink, SIZE));
        }
    }
}

fn text(at: (f64, f64), text: &str, anchor: Anchor, ink: Ink, size: f64) -> Mark {
    Mark::Text {
        at,
        text: text.to_owned(),
        size,
        anchor,
        ink,
    }
}

fn note(at: (f64, f64), words: &str, anchor: Anchor) -> Mark {
    text(at, words, anchor, Ink::Muted, SIZE)
}

fn line(points: Vec<(f64, f64)>, ink: Ink) -> Mark {
    Mark::Line {
        points,
        ink,
        width: 1.0,
        dashes: &[],
    }
}

/// Up to `most` ticks at whole numbers from `first` to `last`, including both.
pub(crate) fn counting(first: u32, last: u32, most: u32) -> Vec<Tick> {
    let step = (last.saturating_sub(first))
        .div_ceil(most.max(2) - 1)
        .max(1);
    let mut ticks: Vec<_> = (first..last)
        .step_by(step as usize)
        .filter(|at| last - at > step / 2)
        .collect();
    ticks.push(last);
    let tick = |at: u32| (f64::from(at), at.to_string());
    ticks.into_iter().map(tick).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_count_from_the_first_to_the_last() {
        let values = |first, last| -> Vec<_> {
            counting(first, last, 5)
                .into_iter()
                .map(|(_, text)| text)
                .collect()
        };
        assert_eq!(values(1, 1), ["1"]);
        assert_eq!(values(1, 3), ["1", "2", "3"]);
        assert_eq!(values(1, 12), ["1", "4", "7", "10", "12"]);
        assert_eq!(values(1, 100), ["1", "26", "51", "76", "100"]);
    }
}
