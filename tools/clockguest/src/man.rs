// SPDX-License-Identifier: GPL-2.0-only

//! Man pages, generated from the definition of the command line: a page per subcommand.

use clap::{Args, Command, CommandFactory};
use clap_mangen::{
    roff::{bold, roman, Roff},
    Man,
};
use std::{
    fs,
    io::{Result, Write},
    path::{Path, PathBuf},
};

/// The title of the manual, at the top of each page.
const MANUAL: &str = "kvm-clock-guest";

#[derive(Args, Debug)]
pub(crate) struct ManPages {
    /// Subcommand whose page to print [default: the program itself]
    pub(crate) subcommand: Option<String>,

    /// Write the pages of all subcommands to this folder; creates it if necessary
    #[arg(long, value_name = "DIR", conflicts_with = "subcommand")]
    pub(crate) to: Option<PathBuf>,

    /// Date of the pages, e.g. 2026-01-31
    #[arg(long, default_value = "", hide_default_value = true, value_parser = date)]
    pub(crate) date: String,
}

/// The page of a subcommand, or of the program itself, with `date`; `None` if the subcommand is
/// unknown.
pub(crate) fn page<C: CommandFactory>(subcommand: Option<&str>, date: &str) -> Option<String> {
    let program = built::<C>();
    let command = match subcommand {
        None => &program,
        Some(name) => program.find_subcommand(name)?,
    };
    // Writes to memory do not fail.
    render(&program, command, date).ok()
}

/// Writes every page with `date` to the folder `to`, which it creates if necessary.
pub(crate) fn write_all<C: CommandFactory>(to: &Path, date: &str) -> Result<()> {
    let program = built::<C>();
    fs::create_dir_all(to)?;
    for command in pages(&program) {
        let name = format!("{}.1", page_name(command));
        fs::write(to.join(name), render(&program, command, date)?)?;
    }
    Ok(())
}

/// Parses a date YYYY-MM-DD; it may be empty.
pub(crate) fn date(text: &str) -> std::result::Result<String, String> {
    let is_right = |(place, byte): (usize, u8)| match place {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    };
    // Empty by default.
    let length = text.len() == 10 || text.is_empty();
    if length && text.bytes().enumerate().all(is_right) {
        Ok(text.to_owned())
    } else {
        Err(format!("'{text}' is not of the form YYYY-MM-DD"))
    }
}

/// The definition, with the names of pages.
fn built<C: CommandFactory>() -> Command {
    // The `help` subcommand would have a page for each subcommand.
    let mut program = C::command().disable_help_subcommand(true);
    program.build();
    program
}

/// The program and its visible subcommands.
fn pages(program: &Command) -> impl Iterator<Item = &Command> {
    let shown = program.get_subcommands().filter(|sub| !sub.is_hide_set());
    std::iter::once(program).chain(shown)
}

fn page_name(command: &Command) -> &str {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
}

fn render(program: &Command, command: &Command, date: &str) -> Result<String> {
    let version = program.get_version().unwrap_or_default();
    // An empty argument differs from a missing one.
    let date = if date.is_empty() { "\"\"" } else { date };
    let man = Man::new(command.clone())
        .title(page_name(command).to_uppercase())
        .date(date)
        .source(format!("{} {version}", program.get_name()))
        .manual(MANUAL);
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut out)?;
    }
    let help = command
        .get_after_long_help()
        .or_else(|| command.get_after_help())
        .map(ToString::to_string);
    out.write_all(sections(&help.unwrap_or_default()).render().as_bytes())?;
    out.write_all(see_also(program, command).render().as_bytes())?;
    // clap_mangen writes empty lines, for which roff has a request.
    Ok(String::from_utf8_lossy(&out).replace(".br\n\n.br\n", ".sp\n"))
}

/// The heading in `line`, if it is one.
fn heading(line: &str) -> Option<&str> {
    line.strip_suffix(':')
        .filter(|heading| !heading.starts_with(' '))
}

/// The sections of a help text, see [`crate::help`].
fn sections(help: &str) -> Roff {
    let mut roff = Roff::new();
    let mut lines = help.lines().peekable();
    // Whether the next text continues a paragraph or starts a section.
    let mut flows = true;
    if lines.peek().is_some_and(|first| heading(first).is_none()) {
        roff.control("SH", ["NOTES"]);
    }
    while let Some(line) = lines.next() {
        if line.is_empty() {
            flows = false;
            continue;
        }
        if let Some(heading) = heading(line) {
            roff.control("SH", [heading.to_uppercase().as_str()]);
            flows = true;
            continue;
        }
        let body = line.strip_prefix("  ").unwrap_or(line);
        if body.starts_with("$ ") {
            // A command.
            if !std::mem::take(&mut flows) {
                roff.control("PP", []);
            }
            roff.control("EX", []);
            roff.text([roman(body)]).control("EE", []);
            continue;
        }
        let is_deeper = |next: &&str| next.starts_with("   ");
        // The text of a long term starts on the next line.
        let below = lines.peek().is_some_and(is_deeper).then_some((body, ""));
        if let Some((term, what)) = body.split_once("  ").or(below) {
            let mut words = vec![what.trim()];
            while let Some(more) = lines.next_if(is_deeper) {
                words.push(more.trim());
            }
            roff.control("TP", []).text([bold(term)]);
            roff.text([roman(words.join(" ").trim())]);
            flows = false;
            continue;
        }
        if !std::mem::replace(&mut flows, true) {
            roff.control("PP", []);
        }
        roff.text([roman(body)]);
    }
    roff
}

/// Refers to the other pages.
fn see_also(program: &Command, command: &Command) -> Roff {
    let mut others: Vec<_> = pages(program)
        .map(page_name)
        .filter(|&name| name != page_name(command))
        .collect();
    others.sort_unstable();
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    for (index, name) in others.iter().enumerate() {
        let comma = if index + 1 < others.len() { "," } else { "" };
        roff.text([bold(*name), roman(format!("(1){comma}"))]);
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_becomes_sections() {
        let help = "\
Some files:
  A text
  goes on.
  /dev/kvm  is a device
            that does it
  /a/path/that/is/long
            is below
  $ ls -l

  A text.

Last:
  $ true";
        let expected = "\
.SH \"SOME FILES\"
A text
goes on.
.TP
\\fB/dev/kvm\\fR
is a device that does it
.TP
\\fB/a/path/that/is/long\\fR
is below
.PP
.EX
$ ls \\-l
.EE
.PP
A text.
.SH LAST
.EX
$ true
.EE
";
        assert_eq!(sections(help).to_roff(), expected);
        let bare = "No heading\nat all.";
        let expected = ".SH NOTES\nNo heading\nat all.\n";
        assert_eq!(sections(bare).to_roff(), expected);
    }

    #[test]
    fn dates_have_one_form() {
        for right in ["2026-01-31", ""] {
            assert_eq!(date(right).as_deref(), Ok(right));
        }
        for wrong in [
            "2026-1-31",
            "31.01.2026",
            "2026-01-31 ",
            "2026-01\"31",
            "yesterday",
        ] {
            assert!(date(wrong).is_err(), "{wrong}");
        }
    }
}
