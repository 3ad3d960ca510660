// SPDX-License-Identifier: GPL-2.0-only

//! The kernel's own arithmetic, for tests to compare ours with.
//!
//! C headers: [`arch/x86/include/asm/pvclock.h`](srctree/arch/x86/include/asm/pvclock.h),
//! [`include/linux/crc32.h`](srctree/include/linux/crc32.h),
//! [`include/linux/math64.h`](srctree/include/linux/math64.h)

use super::bindings;
use crate::pvclock::{
    abi::ClockGuest,
    counter::GuestTsc, //
};

/// `__pvclock_read_cycles()`.
pub(crate) fn pvclock_read_cycles(record: &ClockGuest, tsc: GuestTsc) -> u64 {
    let record = bindings::pvclock_vcpu_time_info {
        version: record.version,
        pad0: record.pad0,
        tsc_timestamp: record.tsc_timestamp.0,
        system_time: record.system_time,
        tsc_to_system_mul: record.tsc_to_system_mul,
        tsc_shift: record.tsc_shift,
        flags: record.flags,
        pad: record.pad,
    };
    // SAFETY: The record is valid for reads.
    unsafe { bindings::rust_helper___pvclock_read_cycles(&record, tsc.0) }
}

/// `mul_u64_u64_shr()`.
pub(crate) fn mul_u64_u64_shr(a: u64, mul: u64, shift: u32) -> u64 {
    // SAFETY: No requirements.
    unsafe { bindings::rust_helper_mul_u64_u64_shr(a, mul, shift) }
}

/// CRC-32 of IEEE 802.3, by `crc32_le()`.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    // SAFETY: The bytes are valid for reads.
    unsafe { bindings::rust_helper_crc32(bytes.as_ptr(), bytes.len()) }
}
