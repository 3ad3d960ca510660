// SPDX-License-Identifier: GPL-2.0-only

//! What the selftests of `kvm_clock_guest` have in common.
//!
//! - [`ktap`]: runs a table of cases and reports it,
//! - [`require`]: what the host must have, or else the whole program is skipped,
//! - [`clocks`]: all that can be seen of a VM's clocks, to compare before and after,
//! - [`fixture`]: VMs in the states that the cases start from,
//! - [`halting`]: vCPUs that only halt,
//! - [`host_clock`]: the host's clocks,
//! - [`payload`]: ioctl arguments that end, or are write-protected, where a case wants it,
//! - [`refusal`]: a call that must fail and change nothing.

// The guest is x86 code.
#![cfg(target_arch = "x86_64")]

pub mod clocks;
pub mod fixture;
pub mod halting;
pub mod host_clock;
pub mod ktap;
pub mod payload;
pub mod refusal;
pub mod require;
