// SPDX-License-Identifier: GPL-2.0-only

//! Messages of another host: none does harm, and writing what was read gives the same bytes.

use crate::frames::{stream_of, SESSION};
use clockguest::migration::replay::replay;

/// The memory limit: bytes for each byte of input, and a constant.
const PER_BYTE: u64 = 64;
const CONSTANT: u64 = 1 << 16;

/// The target: reads the stream that the input describes.
///
/// # Panics
///
/// If a message does harm.
pub fn migration(text: &[u8]) {
    let stream = stream_of(text);
    let mut written = Vec::new();
    let used = allocation_counter::measure(|| written = replay(stream.as_slice(), SESSION));
    let allowed = stream.len() as u64 * PER_BYTE + CONSTANT;
    assert!(
        used.bytes_max <= allowed,
        "{} bytes of memory for {} bytes of input",
        used.bytes_max,
        stream.len()
    );
    let again = replay(written.as_slice(), SESSION);
    assert_eq!(again, written, "{}", String::from_utf8_lossy(&written));
}
