// SPDX-License-Identifier: GPL-2.0-only

//! The bare ioctls, for tests that send invalid arguments.

use pvclock::abi::{KVM_GET_VM_CLOCK_GUEST, KVM_SET_VM_CLOCK_GUEST};
use std::{ffi::c_void, os::fd::AsRawFd};
use vmm_sys_util::{errno, ioctl::ioctl_with_mut_ptr};

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
pub unsafe fn get(fd: &impl AsRawFd, arg: *mut c_void) -> errno::Result<()> {
    // SAFETY: The caller allows the kernel's writes.
    check(unsafe { ioctl_with_mut_ptr(fd, KVM_GET_VM_CLOCK_GUEST.into(), arg) })
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
pub unsafe fn set(fd: &impl AsRawFd, arg: *mut c_void) -> errno::Result<()> {
    // SAFETY: The caller allows the kernel's writes.
    check(unsafe { ioctl_with_mut_ptr(fd, KVM_SET_VM_CLOCK_GUEST.into(), arg) })
}

/// The errno of an ioctl that returned `ret`.
pub(crate) fn check(ret: i32) -> errno::Result<()> {
    if ret < 0 {
        return errno::errno_result();
    }
    Ok(())
}
