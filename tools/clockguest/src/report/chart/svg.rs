// SPDX-License-Identifier: GPL-2.0-only

//! Draws a chart as SVG.

use super::{
    scene::{Anchor, At, Mark, Scene},
    Chart,
};
use maud::{html, Markup, PreEscaped};

/// Colours and fonts of charts and page, in light and dark mode.
pub(crate) const STYLE: &str = include_str!("chart.css");

/// The element in the page.
pub(crate) fn element(chart: &Chart) -> Markup {
    draw(chart, None)
}

/// A separate file.
pub(crate) fn file(chart: &Chart) -> String {
    let svg = draw(chart, Some("http://www.w3.org/2000/svg"));
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n", svg.0)
}

/// With `namespace`, the element is a separate file.
fn draw(chart: &Chart, namespace: Option<&str>) -> Markup {
    let Scene {
        width,
        height,
        marks,
    } = &chart.scene;
    let title = format!("{}-title", chart.name);
    let description = format!("{}-description", chart.name);
    html! {
        svg xmlns=[namespace] class="chart" role="img" viewBox={ "0 0 " (width) " " (height) }
            width=(width) height=(height) aria-labelledby={ (title) " " (description) } {
            title id=(title) { (chart.title) }
            desc id=(description) { (chart.description) }
            @if namespace.is_some() {
                style { (PreEscaped(STYLE)) }
                rect class="paper" width=(width) height=(height) {}
            }
            @for mark in marks {
                (mark_of(mark))
            }
        }
    }
}

fn mark_of(mark: &Mark) -> Markup {
    match mark {
        Mark::Area {
            at,
            width,
            height,
            ink,
        } => html! {
            rect class=(ink.class()) x=(short(at.0)) y=(short(at.1)) width=(short(*width)) height=(short(*height)) {}
        },
        Mark::Line {
            points,
            ink,
            width,
            dashes,
        } => html! {
            path class={ "line " (ink.class()) } d=(path(points, false)) stroke-width=(width)
                stroke-dasharray=[(!dashes.is_empty()).then(|| list(dashes))] {}
        },
        Mark::Marker {
            outline,
            ink,
            hollow,
            datum,
        } => html! {
            @let class = format!("{} {}", if *hollow { "hollow" } else { "solid" }, ink.class());
            @match datum {
                None => path class=(class) d=(path(outline, true)) {},
                Some(datum) => path class=(class) d=(path(outline, true)) data-series=(datum.series)
                    data-x=(datum.x) data-value=(datum.value) data-unit=(datum.unit) {
                    title { (datum.series) ", " (datum.x) ": " (datum.value) " " (datum.unit) }
                },
            }
        },
        Mark::Text {
            at,
            text,
            size,
            anchor,
            ink,
        } => html! {
            text class=(ink.class()) x=(short(at.0)) y=(short(at.1)) font-size=(size)
                text-anchor=[match anchor {
                    Anchor::Start => None,
                    Anchor::Middle => Some("middle"),
                    Anchor::End => Some("end"),
                }] { (text) }
        },
    }
}

fn path(points: &[At], closed: bool) -> String {
    let mut path = String::new();
    for (index, (x, y)) in points.iter().enumerate() {
        path += if index == 0 { "M" } else { "L" };
        path += &format!("{} {}", short(*x), short(*y));
    }
    if closed {
        path.push('Z');
    }
    path
}

fn list(values: &[f64]) -> String {
    let texts: Vec<_> = values.iter().map(f64::to_string).collect();
    texts.join(" ")
}

/// Rounds to a hundredth of a pixel.
fn short(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
