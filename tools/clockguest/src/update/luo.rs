// SPDX-License-Identifier: GPL-2.0-only

//! The kernel's Live Update Orchestrator: named sessions of memfds that outlive the kernel.
//!
//! See `Documentation/userspace-api/liveupdate.rst` of Linux. A session that is created lives as
//! long as its descriptor, until a kexec: then the next kernel, and only that one, has it by its
//! name.

use crate::host::Unavailable;
use anyhow::{anyhow, bail, Context, Result};
use std::{
    ffi::CStr,
    fs::File,
    io::{self, Read, Seek, Write},
    os::fd::{AsRawFd, FromRawFd},
};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

const DEVICE: &str = "/dev/liveupdate";
/// Bytes of a session's name, with the final 0.
const NAME_LENGTH: usize = 64;

/// Request numbers.
mod nr {
    use vmm_sys_util::ioctl_io_nr;

    const LIVEUPDATE: u32 = 0xba;

    ioctl_io_nr!(CREATE_SESSION, LIVEUPDATE, 0x00);
    ioctl_io_nr!(RETRIEVE_SESSION, LIVEUPDATE, 0x01);
    ioctl_io_nr!(SESSION_PRESERVE_FD, LIVEUPDATE, 0x40);
    ioctl_io_nr!(SESSION_RETRIEVE_FD, LIVEUPDATE, 0x41);
    ioctl_io_nr!(SESSION_FINISH, LIVEUPDATE, 0x42);
}

/// `struct liveupdate_ioctl_create_session`, and `..._retrieve_session`.
#[repr(C)]
struct OpenSession {
    size: u32,
    fd: i32,
    name: [u8; NAME_LENGTH],
}

/// `struct liveupdate_session_preserve_fd`, and `..._retrieve_fd`.
#[repr(C)]
struct SessionFd {
    size: u32,
    fd: i32,
    token: u64,
}

/// `struct liveupdate_session_finish`.
#[repr(C)]
struct Finish {
    size: u32,
    reserved: u32,
}

/// A session, until it is dropped.
#[derive(Debug)]
pub struct Session {
    fd: File,
    name: String,
    /// What it preserves, to be seen in `/proc` while it is held.
    files: Vec<File>,
}

impl Session {
    /// Creates a session for the next kernel.
    ///
    /// # Errors
    ///
    /// [`Unavailable::NoLiveUpdate`]; if the name is too long or taken.
    pub(super) fn create(name: &str) -> Result<Self> {
        Self::open(nr::CREATE_SESSION(), name)
            .with_context(|| format!("cannot create LUO session {name:?}"))
    }

    /// The session `name` that the previous kernel handed over.
    ///
    /// # Errors
    ///
    /// [`Unavailable::NoLiveUpdate`]; if there is none, or if it was retrieved before.
    pub(super) fn retrieve(name: &str) -> Result<Self> {
        Self::open(nr::RETRIEVE_SESSION(), name)
            .map_err(|error| match errno(&error) {
                Some(libc::ENOENT) => anyhow!(
                    "the previous kernel handed over no such session: a session is lost without a \
                     kexec, or with another one after it"
                ),
                Some(libc::EINVAL) => anyhow!("it was retrieved before"),
                _ => error,
            })
            .with_context(|| format!("cannot retrieve LUO session {name:?}"))
    }

    fn open(request: libc::c_ulong, name: &str) -> Result<Self> {
        let mut argument = OpenSession {
            // CAST: The size of a small structure.
            size: size_of::<OpenSession>() as u32,
            fd: -1,
            name: [0; NAME_LENGTH],
        };
        if name.is_empty() || name.len() >= NAME_LENGTH || name.contains('\0') {
            bail!("a name has 1 to {} bytes", NAME_LENGTH - 1);
        }
        argument.name[..name.len()].copy_from_slice(name.as_bytes());
        let device = File::options().read(true).write(true).open(DEVICE);
        let device = device.map_err(|error| match error.raw_os_error() {
            // One process at a time.
            Some(libc::EBUSY) => anyhow!("{DEVICE} is in use by another program"),
            _ => Unavailable::NoLiveUpdate(error).into(),
        })?;
        // SAFETY: The structure is the ioctl's, and begins with its size.
        let status = unsafe { ioctl_with_mut_ref(&device, request, &mut argument) };
        check(status)?;
        // SAFETY: The kernel made this descriptor for the caller.
        let fd = unsafe { File::from_raw_fd(argument.fd) };
        Ok(Self {
            fd,
            name: name.to_owned(),
            files: Vec::new(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hands `file`, a memfd, over to the next kernel as `token`. Its size is fixed from now on;
    /// its content is that at the kexec.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub(super) fn preserve(&mut self, file: File, token: u64) -> Result<()> {
        self.file_ioctl(nr::SESSION_PRESERVE_FD(), file.as_raw_fd(), token)
            .with_context(|| format!("cannot preserve file {token} in {:?}", self.name))?;
        self.files.push(file);
        Ok(())
    }

    /// The memfd that was preserved as `token`.
    ///
    /// # Errors
    ///
    /// If there is none, and those of the kernel.
    pub(super) fn file(&self, token: u64) -> Result<File> {
        let fd = self
            .file_ioctl(nr::SESSION_RETRIEVE_FD(), -1, token)
            .with_context(|| format!("cannot retrieve file {token} of {:?}", self.name))?;
        // SAFETY: The kernel made this descriptor for the caller.
        Ok(unsafe { File::from_raw_fd(fd) })
    }

    fn file_ioctl(&self, request: libc::c_ulong, fd: i32, token: u64) -> Result<i32> {
        let mut argument = SessionFd {
            // CAST: The size of a small structure.
            size: size_of::<SessionFd>() as u32,
            fd,
            token,
        };
        // SAFETY: The structure is the ioctl's, and begins with its size.
        check(unsafe { ioctl_with_mut_ref(&self.fd, request, &mut argument) })?;
        Ok(argument.fd)
    }

    /// Ends a session that was retrieved; its files stay.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub(super) fn finish(self) -> Result<()> {
        let mut argument = Finish {
            // CAST: The size of a small structure.
            size: size_of::<Finish>() as u32,
            reserved: 0,
        };
        // SAFETY: The structure is the ioctl's, and begins with its size.
        check(unsafe { ioctl_with_mut_ref(&self.fd, nr::SESSION_FINISH(), &mut argument) })
            .with_context(|| format!("cannot finish LUO session {:?}", self.name))
    }
}

fn check(status: libc::c_int) -> Result<()> {
    match status {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().into()),
    }
}

fn errno(error: &anyhow::Error) -> Option<i32> {
    error.downcast_ref::<io::Error>()?.raw_os_error()
}

/// A new memfd of `size` bytes of zeros.
pub(super) fn memfd(name: &CStr, size: u64) -> io::Result<File> {
    // SAFETY: `name` is a string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The descriptor is new, and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

/// A new memfd with `bytes`.
pub(super) fn memfd_with(name: &CStr, bytes: &[u8]) -> io::Result<File> {
    let mut file = memfd(name, 0)?;
    file.write_all(bytes)?;
    Ok(file)
}

/// The content of a memfd, wherever its position is.
pub(super) fn content(mut file: &File) -> io::Result<Vec<u8>> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memfd_reads_back() {
        let file = memfd_with(c"test", b"clocks").unwrap();
        assert_eq!(content(&file).unwrap(), b"clocks");
        assert_eq!(content(&file).unwrap(), b"clocks");
        assert_eq!(content(&memfd(c"test", 3).unwrap()).unwrap(), [0; 3]);
    }

    #[test]
    fn names_that_the_kernel_would_cut_are_refused() {
        for name in ["", "a\0b", &"n".repeat(64)] {
            let error = format!("{:#}", Session::create(name).unwrap_err());
            assert!(error.contains("1 to 63 bytes"), "{error}");
        }
    }

    #[test]
    fn structures_are_those_of_the_header() {
        assert_eq!(size_of::<OpenSession>(), 72);
        assert_eq!(size_of::<SessionFd>(), 16);
        assert_eq!(size_of::<Finish>(), 8);
        assert_eq!(nr::CREATE_SESSION(), 0xba00);
        assert_eq!(nr::SESSION_FINISH(), 0xba42);
    }
}
