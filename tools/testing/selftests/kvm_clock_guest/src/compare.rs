// SPDX-License-Identifier: GPL-2.0-only

//! Comparisons of an actual with an expected value.

/// Fails unless the first two arguments are equal; the others say what they are.
#[macro_export]
macro_rules! ensure_eq {
    ($actual:expr, $expected:expr, $($what:tt)+) => {
        match (&$actual, &$expected) {
            (actual, expected) => ::anyhow::ensure!(
                *actual == *expected,
                "{}: {actual:?}, expected {expected:?}",
                format_args!($($what)+)
            ),
        }
    };
}

/// As [`ensure_eq!`]; prints integers in hexadecimal.
#[macro_export]
macro_rules! ensure_eq_hex {
    ($actual:expr, $expected:expr, $($what:tt)+) => {
        match (&$actual, &$expected) {
            (actual, expected) => ::anyhow::ensure!(
                *actual == *expected,
                "{}: {actual:x?}, expected {expected:x?}",
                format_args!($($what)+)
            ),
        }
    };
}
