// SPDX-License-Identifier: GPL-2.0-only

//! The page: self-contained, and readable without scripts.

use super::{
    chart::{svg, Chart, Table},
    input::Run,
    summary::{self, Row},
};
use crate::origin::Origin;
use maud::{html, Markup, PreEscaped, DOCTYPE};
use serde_json::Value;

const STYLE: &str = include_str!("page.css");

/// Nothing may be fetched, nothing run.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

pub(crate) fn html(runs: &[Run], charts: &[Chart]) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { "clockguest report" }
                style { (PreEscaped(svg::STYLE)) (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "What became of guests' clocks" }
                    @if let Some(verdict) = summary::verdict(runs) { p.verdict { (verdict) } }
                }
                main {
                    (results(runs))
                    (figures(charts))
                    (origins(runs))
                }
                footer { p { "Written by clockguest " (env!("CARGO_PKG_VERSION")) " report." } }
                (data(runs))
            }
        }
    };
    page.into_string()
}

fn results(runs: &[Run]) -> Markup {
    let errors = summary::errors(runs);
    let slopes = summary::slopes(runs);
    html! {
        @if !errors.is_empty() {
            section {
                h2 { "Worst error of a cycle" }
                p {
                    "By the guest's own readings, against what its clocks would have read had nobody touched them. \
                     Skew is how far kvmclock was set against the TSC. Errors of the legacy methods are results; \
                     method atomic fails if it loses anything."
                }
                (stacking("errors", &summary::ERRORS, &errors))
            }
        }
        @if !slopes.is_empty() {
            section {
                h2 { "What each vCPU costs" }
                (stacking("slopes", &summary::SLOPES, &slopes))
            }
        }
    }
}

/// A table whose rows become lists where it would be too wide.
fn stacking(id: &str, columns: &[(&str, &str)], rows: &[Row]) -> Markup {
    html! {
        table.stacking id=(id) {
            thead { tr { @for (_, title) in columns { th scope="col" { (title) } } } }
            tbody {
                @for row in rows {
                    tr data-run=(row.number) class=[row.failed.then_some("failed")] {
                        @for ((name, title), cell) in columns.iter().zip(&row.cells) {
                            td data-name=(name) data-title=(title) data-value=[cell.value.as_ref()] {
                                span { (cell.text) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn figures(charts: &[Chart]) -> Markup {
    html! {
        section.charts {
            @for chart in charts {
                figure {
                    (svg::element(chart))
                    figcaption {
                        (chart.description)
                        " Files: " a href={ (chart.name) ".svg" } { (chart.name) ".svg" }
                        ", " a href={ (chart.name) ".png" } { (chart.name) ".png" } "."
                    }
                    details {
                        summary { "Numbers of " (chart.title) }
                        (numbers(&chart.name, &chart.table))
                    }
                }
            }
        }
    }
}

fn numbers(name: &str, table: &Table) -> Markup {
    html! {
        div.scrolling tabindex="0" {
            table data-chart=(name) {
                thead { tr { @for title in &table.head { th scope="col" { (title) } } } }
                tbody { @for row in &table.rows { tr { @for cell in row { td { (cell) } } } } }
            }
        }
    }
}

/// Each command once, with the runs that it made.
fn origins(runs: &[Run]) -> Markup {
    let mut found: Vec<(&Origin, Vec<String>)> = Vec::new();
    for (run, number) in runs.iter().zip(1..) {
        match found.iter_mut().find(|(origin, _)| **origin == run.origin) {
            Some((_, numbers)) => numbers.push(number.to_string()),
            None => found.push((&run.origin, vec![number.to_string()])),
        }
    }
    let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "not known".into());
    html! {
        section {
            h2 { "Where this comes from" }
            table.stacking id="origins" {
                thead { tr { @for title in ["Runs", "Command", "Kernel", "Module, build ID", "QEMU", "CPU"] {
                    th scope="col" { (title) }
                } } }
                tbody { @for (origin, numbers) in &found {
                    tr {
                        td data-title="Runs" { span { (numbers.join(", ")) } }
                        td data-title="Command" { code { (origin.command) } }
                        td data-title="Kernel" { span { (known(&origin.kernel)) } }
                        td data-title="Module" { span { (origin.module.as_deref().unwrap_or("not loaded")) } }
                        td data-title="QEMU" { span { (known(&origin.qemu)) } }
                        td data-title="CPU" { span { (known(&origin.cpu)) } }
                    }
                } }
            }
        }
    }
}

/// All runs as they were read, for a program.
fn data(runs: &[Run]) -> Markup {
    let values: Value = runs.iter().map(|run| run.value.clone()).collect();
    // No text in it may end the element.
    let json = values.to_string().replace('<', "\\u003c");
    html! { script type="application/json" id="runs" { (PreEscaped(json)) } }
}
