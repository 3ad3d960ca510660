// SPDX-License-Identifier: GPL-2.0-only

//! Runs cases, reports each in KTAP, and exits as kselftest expects.
//!
//! See `Documentation/dev-tools/ktap.rst` and `tools/testing/selftests/kselftest.h`.

use crate::note;
use anyhow::{Context, Result};
use std::{
    env,
    io::{self, Write},
    process::ExitCode,
    str::FromStr,
};
use thiserror::Error;

/// Some case failed: kselftest's `KSFT_FAIL`.
const KSFT_FAIL: u8 = 1;
/// No case could be run: kselftest's `KSFT_SKIP`.
const KSFT_SKIP: u8 = 4;

/// The error of a case or a whole program that this host cannot run: what is missing.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Skip(pub String);

type Run<C> = Box<dyn Fn(&C) -> Result<()>>;

/// A test case; `C` is what the requirements return.
pub struct Case<C> {
    name: String,
    run: Run<C>,
}

impl<C> Case<C> {
    /// A case that passes if `run` returns `Ok`, is skipped if it returns [`Skip`], else fails.
    pub fn new(name: impl Into<String>, run: impl Fn(&C) -> Result<()> + 'static) -> Self {
        Self {
            name: name.into(),
            run: Box::new(run),
        }
    }

    /// The case, repeated at most twice if it fails with an `E`: the tested event did not happen.
    pub fn again_after<E>(self) -> Self
    where
        C: 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let run = self.run;
        Self::new(self.name, move |context| {
            for _ in 0..2 {
                match run(context) {
                    Err(error) if error.is::<E>() => note!("again, as {error:#}"),
                    result => return result,
                }
            }
            run(context)
        })
    }
}

/// Prints a diagnostic of the running case; takes arguments as `format!()`.
#[macro_export]
macro_rules! note {
    ($($text:tt)+) => { $crate::ktap::print_note(&format!($($text)+)) };
}

/// Prints `text` as a diagnostic of the running case.
pub fn print_note(text: &str) {
    // If stdout is closed, nothing reads the results.
    let _ = diagnostic(&mut io::stdout().lock(), text);
}

/// All cases of several lists.
pub fn all<C>(lists: impl IntoIterator<Item = Vec<Case<C>>>) -> Vec<Case<C>> {
    lists.into_iter().flatten().collect()
}

/// The value of a program's own option, `--name=value`, or `default`.
pub fn option<T>(name: &str, default: T) -> Result<T>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    env::args()
        .skip(1)
        .find_map(|arg| Some(value(&arg, name)?.to_owned()))
        .map_or(Ok(default), |value| {
            value.parse().with_context(|| format!("--{name}={value}"))
        })
}

/// The value that `arg` gives option `name`.
fn value<'a>(arg: &'a str, name: &str) -> Option<&'a str> {
    arg.strip_prefix("--")?
        .strip_prefix(name)?
        .strip_prefix('=')
}

/// The whole of a test program's `main()`.
///
/// With arguments, only the cases run whose name contains one of them; arguments after `--without`
/// leave out cases instead. `--list` prints the names of the cases, and runs none. `--name=value`
/// is for [`option`].
pub fn main<C>(requirements: impl FnOnce() -> Result<C>, mut cases: Vec<Case<C>>) -> ExitCode {
    let (list, args): (Vec<_>, Vec<_>) = env::args().skip(1).partition(|arg| arg == "--list");
    choose(&mut cases, args.into_iter());
    if !list.is_empty() {
        cases.iter().for_each(|case| println!("{}", case.name));
        return ExitCode::SUCCESS;
    }
    match report(&mut io::stdout(), requirements, cases) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("cannot write results: {error}");
            ExitCode::from(KSFT_FAIL)
        }
    }
}

fn choose<C>(cases: &mut Vec<Case<C>>, args: impl Iterator<Item = String>) {
    let mut args = args.filter(|arg| !(arg.starts_with("--") && arg.contains('=')));
    let wanted: Vec<_> = args.by_ref().take_while(|arg| arg != "--without").collect();
    let unwanted: Vec<_> = args.collect();
    cases.retain(|case| {
        let has_one_of = |texts: &[String]| texts.iter().any(|text| case.name.contains(text));
        (wanted.is_empty() || has_one_of(&wanted)) && !has_one_of(&unwanted)
    });
}

fn report<C>(
    out: &mut impl Write,
    requirements: impl FnOnce() -> Result<C>,
    cases: Vec<Case<C>>,
) -> io::Result<u8> {
    writeln!(out, "KTAP version 1")?;
    let context = match requirements() {
        Ok(context) => context,
        Err(error) if error.is::<Skip>() => {
            writeln!(out, "1..0 # SKIP {error}")?;
            return Ok(KSFT_SKIP);
        }
        Err(error) => {
            writeln!(out, "1..1")?;
            diagnostic(out, &format!("{error:#}"))?;
            writeln!(out, "not ok 1 requirements")?;
            return Ok(KSFT_FAIL);
        }
    };

    writeln!(out, "1..{}", cases.len())?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (number, case) in (1..).zip(&cases) {
        let name = &case.name;
        // The notes of a case that hangs must not stay in a buffer.
        out.flush()?;
        match (case.run)(&context) {
            Ok(()) => {
                passed += 1;
                writeln!(out, "ok {number} {name}")?;
            }
            Err(error) if error.is::<Skip>() => {
                skipped += 1;
                writeln!(out, "ok {number} {name} # SKIP {error}")?;
            }
            Err(error) => {
                failed += 1;
                diagnostic(out, &format!("{error:#}"))?;
                writeln!(out, "not ok {number} {name}")?;
            }
        }
    }
    diagnostic(
        out,
        &format!("Totals: pass:{passed} fail:{failed} xfail:0 xpass:0 skip:{skipped} error:0"),
    )?;
    Ok(match (passed, failed) {
        (_, 1..) => KSFT_FAIL,
        (0, 0) => KSFT_SKIP,
        _ => 0,
    })
}

fn diagnostic(out: &mut impl Write, text: &str) -> io::Result<()> {
    text.lines().try_for_each(|line| writeln!(out, "# {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{bail, ensure};
    use std::{cell::Cell, rc::Rc};

    fn run(requirements: Result<u32>, cases: Vec<Case<u32>>) -> (u8, String) {
        let mut out = Vec::new();
        let status = report(&mut out, || requirements, cases).unwrap();
        (status, String::from_utf8(out).unwrap())
    }

    fn needs(least: u32) -> Case<u32> {
        Case::new(format!("needs {least}"), move |&has| {
            ensure!(has >= least, "has {has},\nneeds {least}");
            Ok(())
        })
    }

    fn skips() -> Case<u32> {
        Case::new("scales", |_| bail!(Skip("no TSC scaling".into())))
    }

    #[test]
    fn reports_each_case_with_its_diagnostics() {
        let (status, text) = run(Ok(1), vec![needs(1), needs(2), skips()]);
        assert_eq!(status, KSFT_FAIL);
        assert_eq!(
            text,
            "KTAP version 1\n1..3\nok 1 needs 1\n# has 1,\n# needs 2\nnot ok 2 needs 2\n\
             ok 3 scales # SKIP no TSC scaling\n\
             # Totals: pass:1 fail:1 xfail:0 xpass:0 skip:1 error:0\n"
        );
    }

    #[test]
    fn runs_again_after_one_error_only() {
        let tried = |succeeds_at: u32, skips: bool| {
            let tries = Rc::new(Cell::new(0));
            let count = Rc::clone(&tries);
            let case = Case::new("tries", move |_| {
                count.set(count.get() + 1);
                ensure!(!skips, Skip("no TSC scaling".into()));
                ensure!(count.get() >= succeeds_at, io::Error::other("too slow"));
                Ok(())
            });
            let (status, _) = run(Ok(1), vec![case.again_after::<io::Error>()]);
            (tries.get(), status)
        };
        assert_eq!(tried(1, false), (1, 0));
        assert_eq!(tried(3, false), (3, 0));
        assert_eq!(tried(4, false), (3, KSFT_FAIL));
        assert_eq!(tried(1, true), (1, KSFT_SKIP));
    }

    #[test]
    fn arguments_choose_cases() {
        let chosen = |args: &[&str]| {
            let mut cases = vec![needs(1), needs(2), skips()];
            choose(&mut cases, args.iter().map(|&arg| arg.to_owned()));
            cases.into_iter().map(|case| case.name).collect::<Vec<_>>()
        };
        assert_eq!(chosen(&[]), ["needs 1", "needs 2", "scales"]);
        assert_eq!(chosen(&["needs 2", "ales"]), ["needs 2", "scales"]);
        assert_eq!(chosen(&["--without", "needs 2", "ales"]), ["needs 1"]);
        assert_eq!(chosen(&["needs", "--without", "1"]), ["needs 2"]);
        assert_eq!(chosen(&["--rounds=1", "needs 2"]), ["needs 2"]);
    }

    #[test]
    fn options_have_values() {
        assert_eq!(value("--rounds=20", "rounds"), Some("20"));
        assert_eq!(value("--rounds=20", "round"), None);
        assert_eq!(value("rounds=20", "rounds"), None);
        assert_eq!(value("--without", "rounds"), None);
    }

    #[test]
    fn passes_if_nothing_failed() {
        assert_eq!(run(Ok(1), vec![needs(1), skips()]).0, 0);
    }

    #[test]
    fn skips_if_nothing_ran() {
        assert_eq!(run(Ok(1), vec![skips()]).0, KSFT_SKIP);
    }

    #[test]
    fn skips_all_without_requirements() {
        let (status, text) = run(Err(Skip("no KVM".into()).into()), vec![needs(1)]);
        assert_eq!(status, KSFT_SKIP);
        assert_eq!(text, "KTAP version 1\n1..0 # SKIP no KVM\n");
    }

    #[test]
    fn broken_requirements_fail() {
        let (status, text) = run(Err(anyhow::anyhow!("EIO")), vec![needs(1)]);
        assert_eq!(status, KSFT_FAIL);
        assert_eq!(text, "KTAP version 1\n1..1\n# EIO\nnot ok 1 requirements\n");
    }
}
