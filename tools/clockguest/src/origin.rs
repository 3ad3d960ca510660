// SPDX-License-Identifier: GPL-2.0-only

//! The origin of a result: command, kernel, module, emulator.

use crate::info::read_line;
use serde::{Deserialize, Serialize};
use std::{env, fs};

/// `tools/vm/host run` sets this variable to the version of the QEMU that emulates the test host.
const QEMU: &str = "CLOCK_GUEST_QEMU";

/// The information that is needed to repeat a measurement; `None` where unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The command line, quoted for a shell.
    pub command: String,
    /// Release and version of the running kernel.
    pub kernel: Option<String>,
    /// Build ID of the loaded `kvm_clock_guest`.
    pub module: Option<String>,
    /// Version of the QEMU that emulates this host.
    pub qemu: Option<String>,
    /// Model name of the CPU.
    #[serde(default)]
    pub cpu: Option<String>,
}

impl Origin {
    /// The origin of this process's results.
    pub fn of_this() -> Self {
        let arguments = env::args_os().map(|word| quoted(&word.to_string_lossy()));
        Self {
            command: arguments.collect::<Vec<_>>().join(" "),
            kernel: kernel(),
            module: module_build_id(),
            qemu: env::var(QEMU).ok().filter(|version| !version.is_empty()),
            cpu: cpu(),
        }
    }
}

/// An object with `kind` and the origin before its own members.
#[derive(Debug, Serialize)]
pub struct WithOrigin<'a, T> {
    kind: &'static str,
    #[serde(flatten)]
    origin: &'a Origin,
    #[serde(flatten)]
    of: &'a T,
}

impl<'a, T> WithOrigin<'a, T> {
    /// The object `of` of type `kind`.
    pub fn new(kind: &'static str, origin: &'a Origin, of: &'a T) -> Self {
        Self { kind, origin, of }
    }
}

fn kernel() -> Option<String> {
    let release = read_line("/proc/sys/kernel/osrelease")?;
    let version = read_line("/proc/sys/kernel/version")?;
    Some(format!("{release} {version}"))
}

/// The build ID in hex: modules in Rust have neither version nor srcversion.
fn module_build_id() -> Option<String> {
    let note = fs::read("/sys/module/kvm_clock_guest/notes/.note.gnu.build-id").ok()?;
    Some(hex_of(description(&note)?))
}

/// The description of an ELF note. Three words precede it, the first two with the sizes of name and
/// description, then the name, padded to whole words.
fn description(note: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let bytes = note.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_ne_bytes(bytes)).ok()
    };
    let begin = 12 + word(0)?.checked_next_multiple_of(4)?;
    note.get(begin..begin.checked_add(word(4)?)?)
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn cpu() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// `word`, quoted for a shell if necessary.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("--cycles=20"), "--cycles=20");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn build_id_is_the_description_of_the_note() {
        let mut note = Vec::new();
        for word in [4u32, 3, 3] {
            note.extend(word.to_ne_bytes());
        }
        note.extend(b"GNU\0\x86\x57\xa3");
        assert_eq!(description(&note).map(hex_of).as_deref(), Some("8657a3"));
        assert_eq!(description(&note[..18]), None);
        assert_eq!(description(&[0xff; 12]), None);
    }

    #[test]
    fn origin_comes_first() {
        #[derive(Serialize)]
        struct Of {
            vcpus: u32,
        }
        let origin = Origin {
            command: "clockguest".into(),
            ..Origin::default()
        };
        assert_eq!(
            serde_json::to_string(&WithOrigin::new("cycle", &origin, &Of { vcpus: 4 })).unwrap(),
            r#"{"kind":"cycle","command":"clockguest","kernel":null,"module":null,"qemu":null,"cpu":null,"vcpus":4}"#
        );
    }
}
