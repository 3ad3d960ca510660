// SPDX-License-Identifier: GPL-2.0-only

//! Modes advance and freeze: the guest TSC has the expected value, by arithmetic of the test's own,
//! and kvmclock stays the same function of it, with the same bits whenever possible.

mod advance;
mod backwards;
mod freeze;
mod moved;

use kvm_clock_guest_selftests::prelude::*;

/// vCPUs of the VMs.
const VCPUS: u32 = 2;

/// Anchors of the other domain: behind, and far ahead of, this host's TSC.
const DOMAINS: &[HostTsc] = &[
    HostTsc(0),
    HostTsc(1 << 63),
    HostTsc(u64::MAX - 1_000_000_007),
];

fn main() -> ExitCode {
    let mut cases = advance::cases();
    cases.extend(backwards::cases());
    cases.extend(freeze::cases());
    ktap::main(require::clock_guest, cases)
}
