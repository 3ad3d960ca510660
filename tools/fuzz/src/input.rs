// SPDX-License-Identifier: GPL-2.0-only

//! From a fuzzer's bytes to numbers: unchanged, so that a mutation of the bytes is one of the
//! numbers.

use pvclock::{abi::ClockGuest, tsc::Scale};
use zerocopy::{FromBytes, IntoBytes};

/// `T` from the first bytes, filled up with zeros; and the remaining bytes.
pub(crate) fn take<T: FromBytes + IntoBytes>(bytes: &[u8]) -> (T, &[u8]) {
    let (head, rest) = bytes.split_at(bytes.len().min(size_of::<T>()));
    let mut value = T::new_zeroed();
    value.as_mut_bytes()[..head.len()].copy_from_slice(head);
    (value, rest)
}

/// The scale of the ABI's pair, or a valid one near it.
pub(crate) fn scale(ratio: u64, frac_bits: u32) -> Scale {
    Scale::new(ratio, frac_bits)
        .or_else(|| Scale::new(ratio.max(1), frac_bits % 63 + 1))
        .unwrap_or(Scale::IDENTITY)
}

/// `record` with valid values in place of those that SET refuses.
pub(crate) fn valid(record: ClockGuest) -> ClockGuest {
    ClockGuest {
        version: 0,
        pad0: 0,
        tsc_to_system_mul: record.tsc_to_system_mul | 1 << 31,
        tsc_shift: record.tsc_shift % 32,
        flags: record.flags & 1,
        pad: [0; 2],
        ..record
    }
}
