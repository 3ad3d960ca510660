// SPDX-License-Identifier: GPL-2.0-only

//! All calls at once, by many threads and processes: everybody sees one whole state or another, and
//! nothing is left when a process goes, however it goes.
//!
//! kselftest-atomicity has a SET that fails half way, kselftest-steps what a guest makes of one.
//!
//! `--times=N`: how often everything has to happen; `--sets=N`: SETs while another thread reads
//! without a lock; `--closes=N`, `--kills=N`: descriptors to be closed, and processes to be killed.

mod closed;
mod killed;
mod looks;
mod many;
mod records;
mod states;
mod storm;
mod stranger;
mod tally;
mod unlocked;

use kvm_clock_guest_selftests::{
    ktap::{self, Case},
    require,
};
use kvm_ioctls::Kvm;
use std::process::ExitCode;

fn main() -> ExitCode {
    // What this program is in a process that it started itself.
    match ktap::option("as", String::new()).as_deref() {
        Ok("stranger") => return stranger::main(),
        Ok("victim") => return killed::main(),
        _ => (),
    }
    let mut cases: Vec<Case<Kvm>> = many::cases();
    cases.extend(records::cases());
    cases.extend(unlocked::cases());
    cases.extend(closed::cases());
    cases.extend(killed::cases());
    ktap::main(require::clock_guest, cases)
}
