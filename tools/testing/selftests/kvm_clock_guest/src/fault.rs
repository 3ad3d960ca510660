// SPDX-License-Identifier: GPL-2.0-only

//! System calls that fail half way: the kernel's fault injection, for this thread.
//!
//! See `Documentation/fault-injection/fault-injection.rst`.

use crate::ktap::Skip;
use anyhow::{
    bail,
    Context,
    Result, //
};
use std::{
    fs::{
        self,
        File,
        OpenOptions, //
    },
    io,
    os::unix::fs::FileExt,
    path::{
        Path,
        PathBuf, //
    },
};

const FAILSLAB: &str = "/sys/kernel/debug/failslab";
const USERCOPY: &str = "/sys/kernel/debug/fail_usercopy";
const NTH: &str = "/proc/thread-self/fail-nth";
const MAKE_IT_FAIL: &str = "/proc/thread-self/make-it-fail";

/// No allocation of interest is smaller, bytes.
const SMALLEST: u32 = 32;
/// No system call has as many allocations.
const MANY: u32 = 1_000_000;

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The n-th copy from or to user memory: `EFAULT`.
    UserAccess,
    /// All allocations once those before have had so many bytes, n times as many as the smallest has:
    /// `ENOMEM`. Not the n-th alone, as some are tried twice.
    Memory,
}

/// Fault injection into this thread's system calls; dropping this restores its settings.
#[derive(Debug)]
pub struct Faults {
    kind: Kind,
    former: Vec<(PathBuf, String)>,
}

impl Faults {
    /// Prepares faults of `kind`. No other thread may do so at the time.
    ///
    /// # Errors
    ///
    /// [`Skip`] if the kernel cannot inject faults; those of debugfs.
    pub fn new(kind: Kind) -> Result<Self> {
        for path in [FAILSLAB, USERCOPY, NTH, MAKE_IT_FAIL] {
            if !Path::new(path).exists() {
                bail!(Skip(format!(
                    "no {path}: the kernel needs FAILSLAB and FAULT_INJECTION_USERCOPY"
                )));
            }
        }
        let mut faults = Self {
            kind,
            former: Vec::new(),
        };
        // A stack dump for each fault would look like a kernel in trouble.
        faults.configure(USERCOPY, "verbose", "0")?;
        faults.configure(FAILSLAB, "verbose", "0")?;
        match kind {
            // No cache but those marked, of which there are none, so that allocations do not count.
            Kind::UserAccess => faults.configure(FAILSLAB, "cache-filter", "Y")?,
            Kind::Memory => {
                for (file, value) in [
                    // Those that may sleep fail too.
                    ("ignore-gfp-wait", "N"),
                    ("task-filter", "Y"),
                    ("interval", "1"),
                    ("probability", "100"),
                    ("space", "0"),
                    ("times", "0"),
                ] {
                    faults.configure(FAILSLAB, file, value)?;
                }
            }
        }
        Ok(faults)
    }

    /// Makes the system call `call` with its `nth` fault (from 1); returns what it returned, and
    /// whether there was a fault at all.
    ///
    /// # Errors
    ///
    /// Those of procfs and debugfs.
    pub fn nth<R>(&self, nth: u32, call: impl FnOnce() -> R) -> Result<(R, bool)> {
        match self.kind {
            Kind::UserAccess => nth_user_access(nth, call).context(NTH),
            Kind::Memory => with_memory((nth - 1) * SMALLEST, call).context(FAILSLAB),
        }
    }

    fn configure(&mut self, folder: &str, file: &str, value: &str) -> Result<()> {
        let path = Path::new(folder).join(file);
        let name = || path.display().to_string();
        let former = fs::read_to_string(&path).with_context(name)?;
        fs::write(&path, value).with_context(name)?;
        self.former.push((path, former));
        Ok(())
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        for (path, value) in self.former.iter().rev() {
            if let Err(error) = fs::write(path, value) {
                eprintln!("cannot restore {}: {error}", path.display());
            }
        }
    }
}

fn nth_user_access<R>(nth: u32, call: impl FnOnce() -> R) -> io::Result<(R, bool)> {
    let control = OpenOptions::new().read(true).write(true).open(NTH)?;
    control.write_all_at(nth.to_string().as_bytes(), 0)?;
    let result = call();
    Ok((result, left_over(&control)? == 0))
}

/// Fault points that the system call before left, none of which is in force any more.
fn left_over(control: &File) -> io::Result<u32> {
    // To read and to write this is a fault point too, which fails if it is the last.
    let mut text = [0; 16];
    let left = match control.read_at(&mut text, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => 1,
        result => number(&text[..result?])?,
    };
    match control.write_at(b"0", 0) {
        Err(error) if error.raw_os_error() != Some(libc::EFAULT) => Err(error),
        _ => Ok(left),
    }
}

/// Allocations fail once they would leave none of `bytes`.
fn with_memory<R>(bytes: u32, call: impl FnOnce() -> R) -> io::Result<(R, bool)> {
    let times = Path::new(FAILSLAB).join("times");
    fs::write(Path::new(FAILSLAB).join("space"), bytes.to_string())?;
    fs::write(&times, MANY.to_string())?;
    let control = OpenOptions::new().write(true).open(MAKE_IT_FAIL)?;
    control.write_all_at(b"1", 0)?;
    let result = call();
    control.write_all_at(b"0", 0)?;
    let left = number(&fs::read(&times)?)?;
    Ok((result, left < MANY))
}

fn number(text: &[u8]) -> io::Result<u32> {
    let text = String::from_utf8_lossy(text);
    // Of a longer array, the rest is 0.
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    text.parse().map_err(io::Error::other)
}
