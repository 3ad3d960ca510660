// SPDX-License-Identifier: GPL-2.0-only

//! A small VMM whose guest measures the clock errors of a save and restore.
//!
//! From the bottom up:
//!
//! - [`guest`]: a few dozen instructions that read RDTSC and the pvclock page in a tight loop, and
//!   the host's view of their results,
//! - [`vmm`]: a VM that runs this guest: memory, vCPU threads, saved state,
//! - [`method`]: the ways to save and restore the guest's clocks,
//! - [`scenario`]: what happens between save and restore: pause, snapshot, migration,
//! - [`stream`]: the format of a saved guest,
//! - [`migration`]: migration to another host,
//! - [`update`]: live update of the host's kernel,
//! - [`measure`]: clock errors, from the guest's readings before and after,
//! - [`selftest`]: a test of this host,
//! - [`summary`], [`info`], [`origin`]: the printed results,
//! - [`report`]: a page and charts of the printed results,
//! - [`audit`]: the clocks of other VMMs' VMs, from KVM's debugfs and tracepoints,
//! - [`trace`], [`affinity`]: trace buffers and kprobes on the kernel, and the CPUs of threads.
//!
//! Names carry their units: TSC values and offsets are ticks, mod 2^64; clocks are ns; rates kHz.
//!
//! # Example
//!
//! The same as `clockguest cycle --scenario pause --method legacy-msr --cycles 5`. It needs KVM;
//! the examples of [`measure::compare`] and [`stream`] do not.
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
//! let mut progress = Progress::new("pause with legacy-msr".to_owned(), config.cycles);
//! let summary = scenario::run(&config, &mut progress)?;
//! print!("{}", summary.to_text(true));
//! # Ok::<(), anyhow::Error>(())
//! ```

// The guest and the RDTSC reads are x86 code.
#![cfg(target_arch = "x86_64")]

pub mod affinity;
pub mod audit;
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
pub mod selftest;
pub mod stream;
pub mod summary;
pub mod trace;
pub mod update;
pub mod vmm;
