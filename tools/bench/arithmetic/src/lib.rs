// SPDX-License-Identifier: GPL-2.0-only

//! What the host-side arithmetic costs, beside the kernel's C where that computes the same.
//!
//! [`conversions`] has what is measured, [`inputs`] what it is measured with. Instructions are
//! counted in the program of this package, under callgrind, ns by `benches/ns.rs`, with criterion;
//! `run` does both and prints the table.

// A part of this crate, as it is of the module: so the compiler may inline what it may there.
#[allow(dead_code)]
#[path = "../../../../rust/pvclock/lib.rs"]
pub mod pvclock;

pub mod conversions;
pub mod inputs;
