// SPDX-License-Identifier: GPL-2.0-only

//! A guest whose vCPUs read their clocks continuously sees no step back, on one vCPU or between
//! two, during a thousand SETs: no guest instruction runs between the changes of the first and the
//! last vCPU.

mod racing;
mod record;
mod rounds;

use kvm_clock_guest_selftests::prelude::*;

/// SETs of a case.
const SETS: u32 = 1_000;

fn main() -> ExitCode {
    let mut cases = rounds::cases();
    cases.extend(racing::cases());
    cases.extend(record::cases());
    ktap::main(require::clock_guest, cases)
}
