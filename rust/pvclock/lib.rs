// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR BSD-3-Clause

//! TSC and pvclock arithmetic, the ioctl ABI, and the plan that turns one into the other.
//!
//! One source, compiled into the `kvm_clock_guest` kernel module and into its tools: no allocation,
//! no floating point, no 128-bit division, no panic for any input.
//!
//! Two functions make a guest clock; all else follows from them:
//!
//! - L1 guest TSC at host TSC `h`, [`tsc::TscTransform`]: `G(h) = ((h * ratio) >> frac_bits) +
//!   offset`,
//! - kvmclock at guest TSC `g`, [`record`]:
//!   `K(g) = system_time + (((g - tsc_timestamp) << shift) * mul >> 32)`.
//!
//! TSC values live in the ring of integers mod 2^64: a counter wraps, an offset may be "negative",
//! and a fresh host's TSC is behind any older one. Every addition of TSC values therefore wraps,
//! on purpose; order between two of them is the sign of their wrapped difference.
//!
//! # Where to begin
//!
//! [`tsc::TscTransform`] and [`ClockGuest::kvmclock_ns`](abi::ClockGuest::kvmclock_ns) are the two
//! functions. What SET computes is the way of a request from the ioctl's bytes,
//! [`abi::VmClockGuest`], over [`request::SetRequest`] to [`plan::plan`]:
//!
//! ```
//! use pvclock::{abi, counter::{GuestTsc, HostTsc, TscOffset}, plan, rate, request, tsc};
//!
//! // What GET returned on a host of 2 GHz whose TSC was far ahead: one vCPU, up for 2 s, 0.5 ns a
//! // tick.
//! let saved = abi::VmClockGuest {
//!     host_tsc: HostTsc(900_000_000_000),
//!     guest_tsc: GuestTsc(4_000_000_000),
//!     kvmclock_ns: 2_000_000_000,
//!     tai_ns: 1_800_000_000_000_000_000,
//!     tai_offset_s: 37,
//!     host_tsc_khz: 2_000_000,
//!     record: abi::ClockGuest {
//!         tsc_to_system_mul: 1 << 31,
//!         ..Default::default()
//!     },
//!     ..Default::default()
//! };
//! let entry = abi::ClockGuestVcpu {
//!     tsc_offset: TscOffset(4_000_000_000u64.wrapping_sub(900_000_000_000)),
//!     ..Default::default()
//! };
//!
//! // The guest arrives on another host 10 s later, so the mode is advance.
//! let set = |mode| request::SetRequest::new(abi::VmClockGuest { mode, ..saved }).unwrap();
//! let advance = set(abi::MODE_ADVANCE);
//! let present = [abi::ClockGuestVcpu::default()];
//! let ref_offset = advance.match_vcpus(&present, &mut [entry]).unwrap();
//! let now = plan::ClockSnapshot {
//!     host_tsc: HostTsc(5_000),
//!     tai_ns: saved.tai_ns + 10_000_000_000,
//!     tai_offset_s: 37,
//!     ..Default::default()
//! };
//! let here = rate::GuestRate { host_khz: 2_000_000, scale: tsc::Scale::IDENTITY };
//! let plan = plan::plan(&advance, ref_offset, &now, here, 250).unwrap();
//!
//! // Its TSC reads what it would have read at home, and kvmclock is the same function of it.
//! let offset = entry.tsc_offset.wrapping_add(plan.offset_shift);
//! let guest_tsc = tsc::TscTransform { scale: plan.scale, offset }.guest_tsc(now.host_tsc);
//! assert_eq!(guest_tsc, saved.guest_tsc.wrapping_add(20_000_000_000));
//! assert_eq!(plan.record, saved.record);
//! assert_eq!(plan.record.kvmclock_ns(guest_tsc), 12_000_000_000);
//!
//! // Exact is for the host that the guest was saved on; this one's TSC has not come as far.
//! let exact = set(abi::MODE_EXACT);
//! let refused = plan::plan(&exact, ref_offset, &now, here, 250);
//! assert_eq!(refused, Err(plan::PlanError::Stale));
//! ```

// Only the root of a crate may carry `no_std`; in the kernel this is a module of one.
#![cfg_attr(not(CONFIG_RUST), no_std)]

pub mod abi;
pub mod counter;
pub mod handover;
pub mod plan;
pub mod rate;
pub mod record;
pub mod request;
pub mod tsc;
mod wide;
