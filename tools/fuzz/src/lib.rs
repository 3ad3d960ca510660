// SPDX-License-Identifier: GPL-2.0-only

//! Coverage-guided fuzzing on the host: what each target does with an input, as plain functions.
//!
//! - [`arithmetic()`]: every function of `rust/pvclock` against integers that have no width,
//! - [`validation()`]: what is accepted keeps all the rules of the ABI, what is refused breaks one,
//! - [`plan()`]: a SET that is accepted does what the ABI says of its mode,
//! - [`stream()`]: frames of the stream that a guest travels in,
//! - [`migration()`]: the messages in them, and what a host computes of these before it asks KVM,
//! - [`update_file()`]: the file of a live update.
//!
//! A target panics if something is wrong. `fuzz_targets/` makes fuzzers of them, `tools/fuzz/run` runs
//! those, and `tests/replay.rs` has `cargo test` replay `corpus/` and `regressions/`.

// The guest and what is saved of it are x86.
#![cfg(target_arch = "x86_64")]

mod arithmetic;
mod input;
mod migration;
mod numbers;
#[path = "../../../rust/pvclock/tests/oracle/mod.rs"]
mod oracle;
mod plan;
mod rules;
mod sealed;
mod stream;
mod update_file;
mod validation;

pub use arithmetic::arithmetic;
pub use migration::migration;
pub use numbers::replace_number;
pub use plan::plan;
pub use stream::stream;
pub use update_file::update_file;
pub use validation::validation;

/// What is done with an input; panics if something is wrong.
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
