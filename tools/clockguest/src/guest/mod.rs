// SPDX-License-Identifier: GPL-2.0-only

//! The guest: its memory layout, its code, and the host's view of its results.

pub mod code;
pub mod layout;
pub mod view;

pub use view::{Backwards, Sample, Step};
