// SPDX-License-Identifier: GPL-2.0-only

//! A copy of this program that starts fast.
//!
//! The test host's root file system is a 9p mount without a page cache: starting a process from it
//! takes three times as long as from memory, and a scenario starts one per cycle.

use anyhow::{Context, Result};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd},
    path::PathBuf,
};

/// An executable file with this program.
pub(super) struct Program {
    path: PathBuf,
    /// The copy in memory that `path` refers to, if any.
    _copy: Option<File>,
}

impl Program {
    /// Copies this program into memory; if that fails, uses its own file.
    pub(super) fn this() -> Result<Self> {
        if let Ok(copy) = copy() {
            return Ok(Self {
                path: format!("/proc/self/fd/{}", copy.as_raw_fd()).into(),
                _copy: Some(copy),
            });
        }
        Ok(Self {
            path: std::env::current_exe().context("cannot find this program")?,
            _copy: None,
        })
    }

    /// Its path, for a child of this process.
    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }
}

fn copy() -> io::Result<File> {
    // SAFETY: The name is a C string.
    let fd =
        unsafe { libc::memfd_create(c"clockguest".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_EXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The descriptor is new, so nobody else owns it.
    let mut copy = unsafe { File::from_raw_fd(fd) };
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    Ok(copy)
}
