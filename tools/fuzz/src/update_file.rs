// SPDX-License-Identifier: GPL-2.0-only

//! The file of a live update: if it can be read, writing what was read gives the same bytes.

use crate::frames::{stream_of, SESSION};
use clockguest::update::read_and_write;

/// The target: reads the input as a file, and the file that the input describes.
///
/// # Panics
///
/// If a file does harm.
pub fn update_file(text: &[u8]) {
    check(text);
    check(&stream_of(text));
}

fn check(file: &[u8]) {
    if let Ok(written) = read_and_write(file, SESSION) {
        let again = read_and_write(written.as_slice(), SESSION).map_err(|error| error.to_string());
        assert_eq!(again, Ok(written));
    }
}
