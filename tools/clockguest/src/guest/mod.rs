// SPDX-License-Identifier: GPL-2.0-only

//! The guest: where things are in its memory, its code, and the host's view of what it publishes.

pub mod code;
pub mod layout;
pub mod view;

pub use view::{Backwards, Sample, Step};
