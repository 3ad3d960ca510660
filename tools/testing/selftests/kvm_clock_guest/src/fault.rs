// SPDX-License-Identifier: GPL-2.0-only

//! Faults inside this thread's system calls, with the kernel's fault injection.
//!
//! See `Documentation/fault-injection/fault-injection.rst`.

use crate::ktap::Skip;
use anyhow::{bail, Context, Result};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const FAILSLAB: &str = "/sys/kernel/debug/failslab";
const FAIL_PAGE: &str = "/sys/kernel/debug/fail_page_alloc";
const USERCOPY: &str = "/sys/kernel/debug/fail_usercopy";
const NTH: &str = "/proc/thread-self/fail-nth";
const MAKE_IT_FAIL: &str = "/proc/thread-self/make-it-fail";

/// No relevant allocation is smaller, bytes.
const SMALLEST: u32 = 32;
/// More allocations than any system call makes.
const MANY: u32 = 1_000_000;

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The n-th copy from or to user memory: `EFAULT`.
    UserAccess,
    /// All allocations after those of n times the smallest size: `ENOMEM`. Not the n-th alone, as
    /// the kernel retries some.
    Memory,
    /// All allocations of pages after n pages: `ENOMEM`. Arrays of more than 8 KiB have pages of
    /// their own.
    Pages,
    /// As `Memory`, and no two contiguous pages are available, so that such arrays consist of
    /// single pages.
    Scattered,
    /// The n-th of all these, in the order of execution, and only that.
    Any,
}

/// Settings of a folder of debugfs.
type Settings = &'static [(&'static str, &'static str)];

/// All allocations of this thread.
const ALWAYS: Settings = &[
    // Those that may sleep fail too.
    ("ignore-gfp-wait", "N"),
    ("task-filter", "Y"),
    ("interval", "1"),
    ("probability", "100"),
    ("space", "0"),
    ("times", "0"),
];
const ANY_PAGE: Settings = &[("ignore-gfp-highmem", "N"), ("min-order", "0")];
const PAGES_IN_ONE_PIECE: Settings = &[("ignore-gfp-highmem", "N"), ("min-order", "1")];
/// Only marked caches, of which there are none, so that allocations do not count.
const NO_CACHE: Settings = &[("cache-filter", "Y")];
/// Likewise.
const NO_PAGE: Settings = &[("min-order", "64")];

impl Kind {
    /// The settings, without those that prevent a stack dump for each fault.
    fn settings(self) -> &'static [(&'static str, Settings)] {
        const SLEEPERS: Settings = &[("ignore-gfp-wait", "N")];
        match self {
            Self::UserAccess => &[(FAILSLAB, NO_CACHE), (FAIL_PAGE, NO_PAGE)],
            Self::Memory => &[(FAILSLAB, ALWAYS)],
            Self::Pages => &[(FAIL_PAGE, ALWAYS), (FAIL_PAGE, ANY_PAGE)],
            Self::Scattered => &[
                (FAILSLAB, ALWAYS),
                (FAIL_PAGE, ALWAYS),
                (FAIL_PAGE, PAGES_IN_ONE_PIECE),
            ],
            Self::Any => &[
                (FAILSLAB, SLEEPERS),
                (FAIL_PAGE, SLEEPERS),
                (FAIL_PAGE, ANY_PAGE),
            ],
        }
    }

    /// How much succeeds before the `nth` fault, in the folder's unit.
    fn space(self, nth: u32) -> Option<(&'static str, u32)> {
        match self {
            Self::UserAccess | Self::Any => None,
            Self::Memory | Self::Scattered => Some((FAILSLAB, (nth - 1) * SMALLEST)),
            Self::Pages => Some((FAIL_PAGE, nth - 1)),
        }
    }
}

/// Fault injection into this thread's system calls; dropping this restores the settings.
#[derive(Debug)]
pub struct Faults {
    kind: Kind,
    former: Vec<(PathBuf, String)>,
}

impl Faults {
    /// Prepares faults of `kind`. No other thread may do so at the same time.
    ///
    /// Fails with [`Skip`] if the kernel cannot inject faults.
    pub fn new(kind: Kind) -> Result<Self> {
        for path in [FAILSLAB, FAIL_PAGE, USERCOPY, NTH, MAKE_IT_FAIL] {
            if !Path::new(path).exists() {
                bail!(Skip(format!(
                    "no {path}: the kernel needs FAILSLAB, FAIL_PAGE_ALLOC and \
                     FAULT_INJECTION_USERCOPY"
                )));
            }
        }
        let mut faults = Self {
            kind,
            former: Vec::new(),
        };
        for folder in [FAILSLAB, FAIL_PAGE, USERCOPY] {
            faults.configure(folder, "verbose", "0")?;
        }
        for (folder, settings) in kind.settings() {
            for (file, value) in *settings {
                faults.configure(folder, file, value)?;
            }
        }
        Ok(faults)
    }

    /// Makes the system call `call` with its `nth` fault (from 1); returns its result, and whether
    /// there was a fault.
    pub fn nth<R>(&self, nth: u32, call: impl FnOnce() -> R) -> Result<(R, bool)> {
        let Some((folder, space)) = self.kind.space(nth) else {
            return nth_alone(nth, call).context(NTH);
        };
        if self.kind == Kind::Scattered {
            set_times(FAIL_PAGE, MANY)?;
        }
        with_space(folder, space, call).context(folder)
    }

    /// How many allocations of contiguous pages failed in the last call of [`Kind::Scattered`].
    pub fn refused_pages(&self) -> Result<u32> {
        Ok(MANY - times(FAIL_PAGE).context(FAIL_PAGE)?)
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

fn nth_alone<R>(nth: u32, call: impl FnOnce() -> R) -> io::Result<(R, bool)> {
    let control = OpenOptions::new().read(true).write(true).open(NTH)?;
    control.write_all_at(nth.to_string().as_bytes(), 0)?;
    let result = call();
    Ok((result, left_over(&control)? == 0))
}

/// Fault points that the previous system call did not reach; disables them.
fn left_over(control: &File) -> io::Result<u32> {
    // Reading and writing this is a fault point too, which fails if it is the last.
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

/// Makes `call`; allocations fail after `space`, in the unit of `folder`.
fn with_space<R>(folder: &str, space: u32, call: impl FnOnce() -> R) -> io::Result<(R, bool)> {
    fs::write(Path::new(folder).join("space"), space.to_string())?;
    set_times(folder, MANY)?;
    let control = OpenOptions::new().write(true).open(MAKE_IT_FAIL)?;
    control.write_all_at(b"1", 0)?;
    let result = call();
    control.write_all_at(b"0", 0)?;
    Ok((result, times(folder)? < MANY))
}

/// How many faults may still happen.
fn times(folder: &str) -> io::Result<u32> {
    number(&fs::read(Path::new(folder).join("times"))?)
}

/// Sets how many faults may happen.
fn set_times(folder: &str, times: u32) -> io::Result<()> {
    fs::write(Path::new(folder).join("times"), times.to_string())
}

fn number(text: &[u8]) -> io::Result<u32> {
    let text = String::from_utf8_lossy(text);
    // The rest of a longer array is 0.
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    text.parse().map_err(io::Error::other)
}
