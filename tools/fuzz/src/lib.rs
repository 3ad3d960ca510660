// SPDX-License-Identifier: GPL-2.0-only

//! Coverage-guided fuzzing on the host: the targets as plain functions.
//!
//! - [`arithmetic()`] compares `rust/pvclock` with integers that have no width,
//! - [`validation()`] compares what it accepts and refuses with the rules of the ABI,
//! - [`plan()`] checks that a SET does what the ABI says of its mode,
//! - [`stream()`] reads the frames of a migration stream,
//! - [`migration()`] reads the messages in them, and computes what a host does before it calls KVM,
//! - [`update_file()`] reads the file of a live update.
//!
//! A target panics if something is wrong. `fuzz_targets/` makes fuzzers of the targets,
//! `tools/fuzz/run` runs these, and `cargo test` replays `corpus/` and `regressions/` with
//! `tests/replay.rs`.

// The guest and its saved state are x86.
#![cfg(target_arch = "x86_64")]

mod arithmetic;
mod frames;
mod input;
mod migration;
mod mutator;
mod plan;
mod stream;
mod update_file;
mod validation;

pub use arithmetic::arithmetic;
pub use migration::migration;
pub use mutator::mutate_number;
pub use plan::plan;
pub use stream::stream;
pub use update_file::update_file;
pub use validation::validation;

/// Processes an input; panics if something is wrong.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("arithmetic", arithmetic),
    ("validation", validation),
    ("plan", plan),
    ("stream", stream),
    ("migration", migration),
    ("update_file", update_file),
];
