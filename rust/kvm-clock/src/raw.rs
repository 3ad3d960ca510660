// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bare ioctls, for tests that send invalid arguments.

use crate::{
    errno::{Errno, Result},
    request::{KVM_GET_VM_CLOCK_GUEST, KVM_SET_VM_CLOCK_GUEST},
};
use std::{
    ffi::{c_int, c_void},
    io,
    os::fd::AsRawFd,
};

/// `KVM_GET_VM_CLOCK_GUEST` on any descriptor, with any argument.
///
/// # Errors
///
/// The kernel's errno.
///
/// # Safety
///
/// If `arg` is writable, it points to a structure that begins with its own size; if the structure's
/// `vcpus` is writable, it points to `nr_vcpus` entries. The kernel may write all of this during
/// the call. (An address that is not writable gives `EFAULT`.)
pub unsafe fn get(fd: &impl AsRawFd, arg: *mut c_void) -> Result<()> {
    // SAFETY: The caller allows the kernel's writes.
    unsafe { ioctl(fd, KVM_GET_VM_CLOCK_GUEST, arg) }.map(drop)
}

/// `KVM_SET_VM_CLOCK_GUEST` on any descriptor, with any argument.
///
/// # Errors
///
/// The kernel's errno.
///
/// # Safety
///
/// As [`get`], but the kernel only reads the array.
pub unsafe fn set(fd: &impl AsRawFd, arg: *mut c_void) -> Result<()> {
    // SAFETY: The caller allows the kernel's writes.
    unsafe { ioctl(fd, KVM_SET_VM_CLOCK_GUEST, arg) }.map(drop)
}

/// A KVM ioctl whose argument is a pointer.
///
/// # Safety
///
/// `arg` is valid for what the kernel reads and writes for `request`, one of [`crate::request`]. (A
/// descriptor that is not KVM's does not know the request.)
// libc's type for requests has 64 bits with one C library, and 32 with another.
#[allow(clippy::cast_lossless)]
pub(crate) unsafe fn ioctl(fd: &impl AsRawFd, request: u32, arg: *mut c_void) -> Result<c_int> {
    // SAFETY: The caller allows what the kernel does with `arg`.
    // CAST: libc's type for requests depends on the C library.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, arg) })
}

/// A KVM ioctl whose argument is a number.
#[allow(clippy::cast_lossless)]
pub(crate) fn ioctl_value(fd: &impl AsRawFd, request: u32, value: u32) -> Result<c_int> {
    // SAFETY: The requests that this is for take a number: the kernel accesses no memory.
    // CAST: As above.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, libc::c_ulong::from(value)) })
}

fn check(ret: c_int) -> Result<c_int> {
    if ret < 0 {
        return Err(Errno(
            io::Error::last_os_error().raw_os_error().unwrap_or(0),
        ));
    }
    Ok(ret)
}
