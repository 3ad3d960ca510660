// SPDX-License-Identifier: GPL-2.0-only

//! The ioctls' payload in user memory. What is used was read once.

use crate::{
    pvclock::abi::{
        ClockGuest,
        ClockGuestVcpu,
        VmClockGuest, //
    },
    vcpus::Vcpus, //
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
pub(crate) fn read_header(arg: UserPtr) -> Result<VmClockGuest> {
    let mut size = 0u32;
    UserSlice::new(arg, size_of::<u32>())
        .reader()
        .read_slice(size.as_mut_bytes())?;
    // CAST: `usize` has 64 bits.
    let len = size as usize;
    if len < KNOWN {
        return Err(EINVAL);
    }
    if len > PAGE_SIZE {
        return Err(E2BIG);
    }

    let mut reader = UserSlice::new(arg, len).reader();
    let mut header = VmClockGuest::default();
    reader.read_slice(header.as_mut_bytes())?;
    // What was checked is what counts, whatever the caller made of it since.
    header.size = size;

    let mut tail = [0u8; 64];
    while !reader.is_empty() {
        let part = &mut tail[..reader.len().min(64)];
        reader.read_slice(part)?;
        if part.iter().any(|byte| *byte != 0) {
            return Err(E2BIG);
        }
    }
    Ok(header)
}

/// Writes back what this kernel knows of the header.
pub(crate) fn write_header(arg: UserPtr, header: &mut VmClockGuest) -> Result {
    // CAST: The size of a small structure.
    header.size = KNOWN as u32;
    UserSlice::new(arg, KNOWN)
        .writer()
        .write_slice(header.as_bytes())
}

/// Writes back how many vCPUs the VM has, and nothing else.
pub(crate) fn write_nr_vcpus(arg: UserPtr, nr_vcpus: u32) -> Result {
    write_at(arg, offset_of!(VmClockGuest, nr_vcpus), nr_vcpus.as_bytes())
}

/// Writes back what SET did: `STATUS_*`, and the precision, ns.
pub(crate) fn write_outcome(arg: UserPtr, status: u32, precision_ns: u32) -> Result {
    write_at(arg, offset_of!(VmClockGuest, status), status.as_bytes())?;
    write_at(
        arg,
        offset_of!(VmClockGuest, precision_ns),
        precision_ns.as_bytes(),
    )
}

/// Reads a record.
pub(crate) fn read_record(arg: UserPtr) -> Result<ClockGuest> {
    let mut record = ClockGuest::default();
    UserSlice::new(arg, size_of::<ClockGuest>())
        .reader()
        .read_slice(record.as_mut_bytes())?;
    Ok(record)
}

/// Writes a record.
pub(crate) fn write_record(arg: UserPtr, record: &ClockGuest) -> Result {
    UserSlice::new(arg, size_of::<ClockGuest>())
        .writer()
        .write_slice(record.as_bytes())
}

/// Writes back the difference of the TSC rates, and nothing else.
pub(crate) fn write_rate_diff(arg: UserPtr, hz: i64) -> Result {
    write_at(arg, offset_of!(VmClockGuest, rate_diff_hz), hz.as_bytes())
}

fn write_at(arg: UserPtr, offset: usize, bytes: &[u8]) -> Result {
    UserSlice::new(arg.wrapping_byte_add(offset), bytes.len())
        .writer()
        .write_slice(bytes)
}

/// Reads the vCPU array that `header` points to.
///
/// The caller has made sure that `nr_vcpus` is no more than a VM can have.
pub(crate) fn read_vcpus(header: &VmClockGuest) -> Result<Vcpus> {
    let mut vcpus = Vcpus::new(header.nr_vcpus)?;
    let bytes = vcpus.as_mut_bytes();
    UserSlice::new(array(header), bytes.len())
        .reader()
        .read_slice(bytes)?;
    Ok(vcpus)
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
