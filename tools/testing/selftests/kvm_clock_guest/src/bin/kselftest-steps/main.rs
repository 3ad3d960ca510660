// SPDX-License-Identifier: GPL-2.0-only

//! A guest whose vCPUs read their clocks without a pause sees none of them go back, on a vCPU or
//! between two, through a thousand SETs: no guest instruction runs between the first vCPU's change
//! and the last one's.

mod racing;
mod record;
mod rounds;

use kvm_clock_guest_selftests::{ktap, require};
use std::process::ExitCode;

/// SETs of a case.
const SETS: u32 = 1_000;

fn main() -> ExitCode {
    let mut cases = rounds::cases();
    cases.extend(racing::cases());
    cases.extend(record::cases());
    ktap::main(require::clock_guest, cases)
}
