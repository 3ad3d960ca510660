// SPDX-License-Identifier: GPL-2.0-only

//! A VM that runs the [`guest`](crate::guest): memory, one thread per vCPU, and its saved state.

pub mod error;
mod exit;
pub mod memory;
pub mod state;
pub mod vcpu;
pub mod vm;

pub use error::{Error, Result};
pub use vm::Vm;
