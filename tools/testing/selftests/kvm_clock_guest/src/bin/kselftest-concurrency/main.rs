// SPDX-License-Identifier: GPL-2.0-only

//! All calls concurrently, from many threads and processes: each sees one complete state or
//! another, and nothing remains when a process ends, in whatever way.
//!
//! kselftest-atomicity has SETs that fail midway, kselftest-steps their effect on a guest.
//!
//! `--times=N`: how often everything must happen; `--sets=N`: SETs while another thread reads
//! without a lock; `--closes=N`, `--kills=N`: how many descriptors are closed, and processes
//! killed.

mod closed;
mod counts;
mod killed;
mod many;
mod observers;
mod other_process;
mod records;
mod states;
mod stress;
mod unlocked;

use kvm_clock_guest_selftests::prelude::*;

fn main() -> ExitCode {
    // The role of this program in a process that it started itself.
    match ktap::option("as", String::new()).as_deref() {
        Ok("other-process") => return other_process::main(),
        Ok("victim") => return killed::main(),
        _ => (),
    }
    let cases = [
        many::cases(),
        records::cases(),
        unlocked::cases(),
        closed::cases(),
        killed::cases(),
    ];
    ktap::main(require::clock_guest, ktap::all(cases))
}
