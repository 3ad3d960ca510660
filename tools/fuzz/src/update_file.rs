// SPDX-License-Identifier: GPL-2.0-only

//! The file of a live update: refused, or else read as what is written again by the same bytes.

use crate::sealed::{described, SESSION};
use clockguest::update::read_and_write;

/// The target: a file as it is, and the one that the input describes.
///
/// # Panics
///
/// If a file hurts.
pub fn update_file(text: &[u8]) {
    check(text);
    check(&described(text));
}

fn check(file: &[u8]) {
    if let Ok(written) = read_and_write(file, SESSION) {
        let again = read_and_write(written.as_slice(), SESSION).map_err(|error| error.to_string());
        assert_eq!(again, Ok(written));
    }
}
