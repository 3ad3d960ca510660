// SPDX-License-Identifier: GPL-2.0-only

//! Measures the host-side arithmetic, and the kernel's C where it computes the same.
//!
//! [`conversions`] has the functions, [`inputs`] their arguments. Callgrind counts the instructions
//! of this package's program, criterion measures the ns in `benches/ns.rs`; `run` runs both and
//! prints the table.

// A part of this crate as it is of the module, so that the compiler can inline as much.
#[allow(dead_code)]
#[path = "../../../../rust/pvclock/lib.rs"]
pub mod pvclock;

pub mod conversions;
pub mod inputs;
