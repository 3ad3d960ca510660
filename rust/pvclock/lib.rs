// SPDX-License-Identifier: GPL-2.0-only

//! TSC and pvclock arithmetic, the ioctl ABI, and the plan that turns one into the other.
//!
//! One source, compiled into the `kvm_clock_guest` kernel module and into its tools: no allocation,
//! no floating point, no 128-bit division, no panic for any input.
//!
//! Two functions make a guest clock; all else follows from them:
//!
//! - L1 guest TSC at host TSC `h`, [`tsc::Relation`]: `G(h) = ((h * ratio) >> frac_bits) + offset`,
//! - kvmclock at guest TSC `g`, [`record`]:
//!   `K(g) = system_time + (((g - tsc_timestamp) << shift) * mul >> 32)`.
//!
//! TSC values live in the ring of integers mod 2^64: a counter wraps, an offset may be "negative",
//! and a fresh host's TSC is behind any older one. Every addition of TSC values therefore wraps,
//! on purpose; order between two of them is the sign of their wrapped difference.

// Only the root of a crate may carry `no_std`; Kbuild, which sets `MODULE`, makes this a module.
#![cfg_attr(not(MODULE), no_std)]

pub mod abi;
pub mod plan;
pub mod rate;
pub mod record;
pub mod request;
pub mod tsc;
mod wide;
