// SPDX-License-Identifier: GPL-2.0-only

//! Modes advance and freeze: the guest TSC goes where it should, by arithmetic of the test's own,
//! and kvmclock stays the same function of it, by the same bits wherever they can stay.

mod advance;
mod backwards;
mod freeze;
mod moved;

use kvm_clock_guest_selftests::{ktap, require};
use std::process::ExitCode;

/// vCPUs of the VMs.
const VCPUS: u32 = 2;

/// Anchors of the other domain: behind, and far ahead of, any host TSC of here.
const DOMAINS: &[u64] = &[0, 1 << 63, u64::MAX - 1_000_000_007];

fn main() -> ExitCode {
    let mut cases = advance::cases();
    cases.extend(backwards::cases());
    cases.extend(freeze::cases());
    ktap::main(require::clock_guest, cases)
}
