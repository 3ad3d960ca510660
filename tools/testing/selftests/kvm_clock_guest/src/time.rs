// SPDX-License-Identifier: GPL-2.0-only

//! Lengths of time, ns; signed, as differences of times are.

/// A second.
pub const SECOND_NS: i64 = 1_000_000_000;
/// An hour.
pub const HOUR_NS: i64 = 3600 * SECOND_NS;
/// A week.
pub const WEEK_NS: i64 = 7 * 24 * HOUR_NS;
