// SPDX-License-Identifier: GPL-2.0-only

//! What the selftests of `kvm_clock_guest` share.
//!
//! - [`prelude`]: what nearly every program imports,
//! - [`ktap`]: runs and reports cases; [`require`]: what the host must have,
//! - [`compare`], [`refusal`], [`wait`]: equal values, calls that must fail, conditions to wait
//!   for,
//! - [`fixture`], [`apart`]: VMs in the states that cases start from,
//! - [`clocks`], [`expect`], [`one_clock`], [`continued`]: a VM's clocks, and what they must be,
//! - [`progress`]: a guest that reads its clocks without a pause,
//! - [`snippet`], [`timer_guest`]: guest code,
//! - [`tsc_writes`], [`msr`], [`steal`], [`hyperv`], [`xen`]: interfaces of KVM,
//! - [`copy`]: moves a guest to another VM,
//! - [`descriptors`], [`mapping`], [`payload`], [`fault`]: descriptors and memory of ioctls,
//! - [`affinity`], [`clocksource`], [`host_clock`], [`hotplug`], [`host_module`], [`references`],
//!   [`trace`]: the host,
//! - [`threads`], [`time`]: threads of a case, lengths of time.

// The guest is x86 code.
#![cfg(target_arch = "x86_64")]

pub mod affinity;
pub mod apart;
pub mod clocks;
pub mod clocksource;
pub mod compare;
pub mod continued;
pub mod copy;
pub mod descriptors;
pub mod expect;
pub mod fault;
pub mod fixture;
pub mod host_clock;
pub mod host_module;
pub mod hotplug;
pub mod hyperv;
pub mod ktap;
pub mod mapping;
pub mod module;
pub mod msr;
pub mod one_clock;
pub mod payload;
pub mod prelude;
pub mod progress;
pub mod references;
pub mod refusal;
pub mod require;
pub mod snippet;
pub mod steal;
pub mod threads;
pub mod time;
pub mod timer_guest;
pub mod trace;
pub mod tsc_writes;
pub mod wait;
pub mod xen;
