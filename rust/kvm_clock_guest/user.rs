// SPDX-License-Identifier: GPL-2.0-only

//! The ioctls' payload in user memory. What is used was read once.

use crate::{
    kvm::Payload,
    pvclock::abi::{
        ClockGuest,
        ClockGuestVcpu,
        VmClockGuest, //
    },
};
use core::mem::offset_of;
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};
use zerocopy::IntoBytes;

const KNOWN: usize = size_of::<VmClockGuest>();

/// Reads the header, whose first word is its size, as in `clone3()`.
///
/// # Errors
///
/// - `EINVAL` if it is smaller than the first version of the structure,
/// - `E2BIG` if it is larger than a page, or has something in a part that this kernel ignores,
/// - `EFAULT` if it cannot be read.
// Otherwise the structure is copied twice more.
#[inline(always)]
pub(crate) fn read_header(arg: UserPtr) -> Result<VmClockGuest> {
    let mut reader = UserSlice::new(arg, KNOWN).reader();
    let Ok(Payload(header)) = reader.read::<Payload<VmClockGuest>>() else {
        // A wrong size is an error of its own, also where there is no more to read than that.
        let size = UserSlice::new(arg, size_of::<u32>()).reader().read()?;
        check_size(size)?;
        return Err(EFAULT);
    };
    let len = check_size(header.size)?;
    if len > KNOWN {
        check_tail(arg.wrapping_byte_add(KNOWN), len - KNOWN)?;
    }
    Ok(header)
}

fn check_size(size: u32) -> Result<usize> {
    // CAST: `usize` has 64 bits.
    let len = size as usize;
    if len < KNOWN {
        return Err(EINVAL);
    }
    if len > PAGE_SIZE {
        return Err(E2BIG);
    }
    Ok(len)
}

/// Checks that a part that this kernel ignores is 0.
fn check_tail(arg: UserPtr, len: usize) -> Result {
    let mut reader = UserSlice::new(arg, len).reader();
    let mut tail = [0u8; 64];
    while !reader.is_empty() {
        let part = &mut tail[..reader.len().min(64)];
        reader.read_slice(part)?;
        if part.iter().any(|byte| *byte != 0) {
            return Err(E2BIG);
        }
    }
    Ok(())
}

/// Writes back what this kernel knows of the header.
pub(crate) fn write_header(arg: UserPtr, header: &VmClockGuest) -> Result {
    UserSlice::new(arg, KNOWN)
        .writer()
        .write_slice(header.as_bytes())
}

/// Writes back how many vCPUs the VM has, and nothing else.
pub(crate) fn write_nr_vcpus(arg: UserPtr, nr_vcpus: u32) -> Result {
    UserSlice::new(
        arg.wrapping_byte_add(offset_of!(VmClockGuest, nr_vcpus)),
        size_of::<u32>(),
    )
    .writer()
    .write_slice(nr_vcpus.as_bytes())
}

/// Reads a record.
pub(crate) fn read_record(arg: UserPtr) -> Result<ClockGuest> {
    let Payload(record) = UserSlice::new(arg, size_of::<ClockGuest>())
        .reader()
        .read::<Payload<ClockGuest>>()?;
    Ok(record)
}

/// Writes a record.
pub(crate) fn write_record(arg: UserPtr, record: &ClockGuest) -> Result {
    UserSlice::new(arg, size_of::<ClockGuest>())
        .writer()
        .write_slice(record.as_bytes())
}

/// Reads the vCPU array that `header` points to.
pub(crate) fn read_vcpus(header: &VmClockGuest, vcpus: &mut [ClockGuestVcpu]) -> Result {
    let bytes = vcpus.as_mut_bytes();
    UserSlice::new(array(header), bytes.len())
        .reader()
        .read_slice(bytes)
}

/// Writes the vCPU array that `header` points to.
pub(crate) fn write_vcpus(header: &VmClockGuest, vcpus: &[ClockGuestVcpu]) -> Result {
    let bytes = vcpus.as_bytes();
    UserSlice::new(array(header), bytes.len())
        .writer()
        .write_slice(bytes)
}

fn array(header: &VmClockGuest) -> UserPtr {
    // CAST: `usize` has 64 bits.
    UserPtr::from_addr(header.vcpus as usize)
}
