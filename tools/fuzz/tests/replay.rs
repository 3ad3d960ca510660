// SPDX-License-Identifier: GPL-2.0-only

//! Replays every kept input through its target: `corpus/` reaches the code that a fuzzer has
//! reached, `regressions/` has the inputs that once failed. `inputs.py` documents the files.

use kvm_clock_guest_fuzz::TARGETS;
use std::{fs, io::ErrorKind, panic::catch_unwind, path::Path};

/// The inputs of a file by `name=` or line number; none if there is no such file.
fn inputs(file: &Path) -> Vec<(String, Vec<u8>)> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return vec![],
        Err(error) => panic!("{}: {error}", file.display()),
    };
    let lines = text.lines().zip(1..);
    let inputs = lines.filter(|(line, _)| !line.starts_with('#'));
    let input = |(line, number): (&str, u32)| {
        let (name, quoted) = line.split_at(line.find('"')?);
        let name = match name {
            "" => number.to_string(),
            _ => name.strip_suffix('=')?.to_owned(),
        };
        let bytes = unescape(quoted.strip_prefix('"')?.strip_suffix('"')?)?;
        Some((format!("{}: {name}", file.display()), bytes))
    };
    let all: Option<Vec<_>> = inputs.map(input).collect();
    all.unwrap_or_else(|| panic!("{}: a line is no input", file.display()))
}

/// The bytes of `text`, in which `\x` and two hexadecimal digits stand for one.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('\\');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.strip_prefix('x')?.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend(rest.as_bytes());
    }
    Some(bytes)
}

fn replay(name: &str) {
    let (_, target) = TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("no target {name}"));
    let read = |kind| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        inputs(&here.join(kind).join(name).with_extension("txt"))
    };
    let (corpus, regressions) = (read("corpus"), read("regressions"));
    assert!(!corpus.is_empty(), "no corpus of {name}");
    let failed: Vec<_> = corpus
        .iter()
        .chain(&regressions)
        .filter(|(_, input)| catch_unwind(|| target(input)).is_err())
        .map(|(name, _)| name)
        .collect();
    assert!(failed.is_empty(), "these fail: {failed:#?}");
    println!("{} inputs", corpus.len() + regressions.len());
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn all_are_replayed() {
            let known = TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>();
            assert_eq!(known, [$(stringify!($name)),*]);
        }
    };
}

#[test]
fn escapes_are_bytes() {
    let bytes = b"{\"a\": \x00\xff\\1}".to_vec();
    assert_eq!(unescape(r#"{"a": \x00\xff\x5c1}"#), Some(bytes));
    assert_eq!(unescape(r"\n"), None);
    assert_eq!(unescape(r"\x0"), None);
}

replays!(arithmetic validation plan stream migration update_file);
