// SPDX-License-Identifier: GPL-2.0-only

//! The bare calls, for who must send what no correct caller would.

use pvclock::abi::{KVM_GET_VM_CLOCK_GUEST, KVM_SET_VM_CLOCK_GUEST};
use std::{ffi::c_void, os::fd::AsRawFd};
use vmm_sys_util::{errno, ioctl::ioctl_with_mut_ptr};

/// `KVM_GET_VM_CLOCK_GUEST` on any descriptor, with any argument.
///
/// # Errors
///
/// The errno, as the kernel gave it.
///
/// # Safety
///
/// Where `arg` can be written, it points to a structure that begins with its own size, and its
/// `vcpus`, where that can be written, to `nr_vcpus` entries; all of it may be written for the
/// duration of the call. (An address that cannot be written gives `EFAULT`.)
pub unsafe fn get(fd: &impl AsRawFd, arg: *mut c_void) -> errno::Result<()> {
    // SAFETY: The kernel writes what the caller says may be written.
    check(unsafe { ioctl_with_mut_ptr(fd, KVM_GET_VM_CLOCK_GUEST.into(), arg) })
}

/// `KVM_SET_VM_CLOCK_GUEST` on any descriptor, with any argument.
///
/// # Errors
///
/// The errno, as the kernel gave it.
///
/// # Safety
///
/// As of [`get`], but that the array is only read.
pub unsafe fn set(fd: &impl AsRawFd, arg: *mut c_void) -> errno::Result<()> {
    // SAFETY: The kernel writes what the caller says may be written.
    check(unsafe { ioctl_with_mut_ptr(fd, KVM_SET_VM_CLOCK_GUEST.into(), arg) })
}

fn check(ret: i32) -> errno::Result<()> {
    if ret < 0 {
        return errno::errno_result();
    }
    Ok(())
}
