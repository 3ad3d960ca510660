// SPDX-License-Identifier: GPL-2.0-only

//! The page: self-contained, and readable without scripts.

use super::{
    chart::{svg, Chart, Table},
    glance::{self, Glance},
    input::Run,
    summary::{self, Row},
    text::duration,
};
use crate::origin::Origin;
use maud::{html, Markup, PreEscaped, DOCTYPE};
use serde_json::Value;

const STYLE: &str = include_str!("page.css");

/// The page may neither fetch nor run anything.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

pub(crate) fn html(runs: &[Run], charts: &[Chart]) -> String {
    let glance = glance::glance(runs);
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
                    h1 { "Guest clock report" }
                    @if let Some(verdict) = summary::verdict(runs) {
                        p.verdict {
                            (verdict)
                            @if let Some(ns) = glance.as_ref().and_then(Glance::others_wrong_ns) {
                                " With other methods, clocks are wrong by up to " (duration(ns)) "."
                            }
                        }
                    }
                }
                main {
                    @if let Some(glance) = &glance { (losses(glance)) }
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

fn losses(glance: &Glance) -> Markup {
    html! {
        section {
            h2 { "What the guest's clocks lose, at worst" }
            table.stacking id="glance" {
                thead { tr {
                    th scope="col" { "Method" }
                    @for operation in &glance.operations { th scope="col" { (operation) } }
                } }
                tbody { @for line in &glance.methods {
                    tr {
                        td data-name="method" data-title="Method" {
                            span { b { (line.method.name()) } ": " (glance::words(line.method)) }
                        }
                        @for (operation, loss) in glance.operations.iter().zip(&line.losses) {
                            td data-name=(operation) data-title=(operation) {
                                @match loss {
                                    Some(loss) if loss.is_nothing() => strong.nothing { (loss.words().concat()) },
                                    Some(loss) => span { @for part in loss.words() { span.part { (part) } } },
                                    None => span { "not measured" },
                                }
                            }
                        }
                    }
                } }
            }
            p {
                "Wrong: how far a clock reads from what it would read without the interruption. Apart: how far kvmclock moved \
                 against the TSC; both should show one time, and Linux abandons a TSC that is too far apart. On two hosts, \
                 the difference of the hosts' own clocks makes both wrong, with every method."
            }
        }
    }
}

fn results(runs: &[Run]) -> Markup {
    let errors = summary::errors(runs);
    let slopes = summary::slopes(runs);
    html! {
        @if !errors.is_empty() {
            section {
                h2 { "Worst error of a cycle" }
                p {
                    "From the guest's own readings, compared with the values that its clocks would have had without the \
                     interruption. Skew is the shift of kvmclock against the TSC. Errors of the legacy methods are results; \
                     with method atomic, any error is a failure."
                }
                (stacking("errors", &summary::ERRORS, &errors))
            }
        }
        @if !slopes.is_empty() {
            section {
                h2 { "Cost per vCPU" }
                (stacking("slopes", &summary::SLOPES, &slopes))
            }
        }
    }
}

/// A table whose rows become lists on narrow screens.
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
                        summary { "Data of " (chart.title) }
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

/// The origins of the runs, each with the numbers of its runs.
fn origins(runs: &[Run]) -> Markup {
    let mut found: Vec<(&Origin, Vec<String>)> = Vec::new();
    for (run, number) in runs.iter().zip(1..) {
        match found.iter_mut().find(|(origin, _)| **origin == run.origin) {
            Some((_, numbers)) => numbers.push(number.to_string()),
            None => found.push((&run.origin, vec![number.to_string()])),
        }
    }
    let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
    html! {
        section {
            h2 { "Origin of the runs" }
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

/// All runs as read, for programs.
fn data(runs: &[Run]) -> Markup {
    let values: Value = runs.iter().map(|run| run.value.clone()).collect();
    // The text must not end the element.
    let json = values.to_string().replace('<', "\\u003c");
    html! { script type="application/json" id="runs" { (PreEscaped(json)) } }
}
