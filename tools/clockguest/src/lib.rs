// SPDX-License-Identifier: GPL-2.0-only

//! A small VMM whose guest measures what saving and restoring its clocks does to them.
//!
//! From the bottom up:
//!
//! - [`guest`]: some dozens of instructions that read RDTSC and the pvclock page at full speed, and
//!   the host's view of what they publish,
//! - [`vmm`]: a VM made of that guest: memory, vCPU threads, what is saved of it,
//! - [`method`]: the ways to save and restore its clocks,
//! - [`scenario`]: what happens to the VM in between: pause, snapshot, migration,
//! - [`stream`]: what a saved guest travels in,
//! - [`migration`]: a guest that moves to another host,
//! - [`update`]: a guest that outlives its host's kernel,
//! - [`measure`]: the error, from the guest's readings before and after,
//! - [`summary`], [`info`], [`origin`]: what is printed,
//! - [`report`]: a page and charts of what was printed,
//! - [`trace`]: the kernel, watched from outside.
//!
//! Units are in every name: TSC values and offsets are ticks, mod 2^64; clocks are ns; rates kHz.
//!
//! # Example
//!
//! What `clockguest cycle --scenario pause --method legacy-msr --cycles 5` does, on a host with
//! KVM; [`measure::compare`] and [`stream`] have examples that need none.
//!
//! ```no_run
//! use clockguest::{method::Method, progress::Progress, scenario};
//!
//! let config = scenario::Config {
//!     scenario: scenario::Scenario::Pause,
//!     method: Method::LegacyMsr,
//!     vcpus: 2,
//!     cycles: 5,
//!     downtime: std::time::Duration::from_millis(50),
//!     any_kvm: false,
//! };
//! let mut progress = Progress::new("pause by legacy-msr".to_owned(), config.cycles);
//! let summary = scenario::run(&config, &mut progress)?;
//! print!("{}", summary.to_text(true));
//! # Ok::<(), anyhow::Error>(())
//! ```

// The guest and the RDTSC brackets are x86 code.
#![cfg(target_arch = "x86_64")]

pub mod duration;
pub mod guest;
pub mod host;
pub mod info;
pub mod measure;
pub mod method;
pub mod migration;
pub mod observe;
pub mod origin;
pub mod progress;
pub mod report;
pub mod scenario;
pub mod stream;
pub mod summary;
pub mod trace;
pub mod update;
pub mod vmm;
