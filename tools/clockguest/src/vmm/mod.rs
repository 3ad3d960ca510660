// SPDX-License-Identifier: GPL-2.0-only

//! A VM: memory, vCPUs with or without threads, and what is saved of it.

pub mod builder;
pub mod code_guest;
pub mod error;
mod exit;
pub mod halt;
pub mod long_mode;
pub mod memory;
pub mod state;
pub mod vcpu;
pub mod vm;

pub use builder::{Guest, VmBuilder, VmFds};
pub use error::{Error, Result};
pub use vm::Vm;
