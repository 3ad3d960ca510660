// SPDX-License-Identifier: GPL-2.0-only

//! Every input that was kept goes through its target: `corpus/` reaches what a fuzzer has reached,
//! `regressions/` is what once found something.

use kvm_clock_guest_fuzz::TARGETS;
use std::{
    fs,
    io::ErrorKind,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

/// The files of `folder`, none if there is no such folder.
fn inputs(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => vec![],
        Err(error) => panic!("{}: {error}", folder.display()),
    };
    files.sort();
    files
}

fn replay(name: &str) {
    let (_, target) = TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("no target {name}"));
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = inputs(&here.join("corpus").join(name));
    assert!(!corpus.is_empty(), "no corpus of {name}");
    let regressions = inputs(&here.join("regressions").join(name));
    let failed: Vec<_> = corpus
        .iter()
        .chain(&regressions)
        .filter(|path| {
            let input = fs::read(path).unwrap();
            catch_unwind(|| target(&input)).is_err()
        })
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

replays!(arithmetic validation plan stream migration update_file);
