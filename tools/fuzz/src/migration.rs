// SPDX-License-Identifier: GPL-2.0-only

//! Messages of another host: none hurts, and what is understood of them is said again by the same bytes.

use crate::sealed::{described, SESSION};
use clockguest::migration::replay::replay;

/// Memory that hearing may take, bytes for each byte of input, and beyond that.
const PER_BYTE: u64 = 64;
const BEYOND: u64 = 1 << 16;

/// The target: the stream that the input describes.
///
/// # Panics
///
/// If a message hurts.
pub fn migration(text: &[u8]) {
    let stream = described(text);
    let mut said = Vec::new();
    let used = allocation_counter::measure(|| said = replay(stream.as_slice(), SESSION));
    let allowed = stream.len() as u64 * PER_BYTE + BEYOND;
    assert!(
        used.bytes_max <= allowed,
        "{} bytes of memory for {} bytes of input",
        used.bytes_max,
        stream.len()
    );
    let again = replay(said.as_slice(), SESSION);
    assert_eq!(again, said, "{}", String::from_utf8_lossy(&said));
}
