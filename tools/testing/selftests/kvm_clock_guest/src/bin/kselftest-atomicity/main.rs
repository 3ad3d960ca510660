// SPDX-License-Identifier: GPL-2.0-only

//! A SET that fails, wherever it fails, leaves every clock and every pending update as it was; one
//! that succeeds changes all of them.
//!
//! Every SET here asks for other TSC offsets and for a record at another rate, so that nothing of
//! it could be done unnoticed. kselftest-errno has each errno by each of its causes.

mod moments;
mod pending;
mod positions;
mod race;

use anyhow::{ensure, Result};
use clockguest::vmm::Vm;
use kvm_clock::VmClock;
use kvm_clock_guest_selftests::{
    clocks::{function, Clocks},
    fixture::{derived, get, pinned, run_a_little, unlike},
    ktap, require,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{MODE_ADVANCE, MODE_EXACT, MODE_FREEZE};
use std::process::ExitCode;

/// vCPUs of the VMs: a first, one in between, and a last.
const VCPUS: u32 = 3;

/// vCPUs for whose array SET and GET allocate memory: up to 8 entries are on the stack.
const MANY_VCPUS: u32 = 9;

/// All modes of SET.
const MODES: [(&str, u32); 3] = [
    ("exact", MODE_EXACT),
    ("advance", MODE_ADVANCE),
    ("freeze", MODE_FREEZE),
];

/// What the cases share: a call that fails changes nothing, so one VM serves many of them.
struct Host {
    kvm: Kvm,
    /// A VM whose clocks KVM derived, and one whose clock is pinned.
    vms: [Vm; 2],
}

impl Host {
    fn new() -> Result<Self> {
        let kvm = require::clock_guest()?;
        let vms = both(&kvm, VCPUS)?;
        Ok(Self { kvm, vms })
    }
}

fn both(kvm: &Kvm, vcpus: u32) -> Result<[Vm; 2]> {
    Ok([derived(kvm, vcpus)?, pinned(kvm, vcpus)?])
}

/// A SET for `vm` in `mode` that would change everything.
fn request(vm: &Vm, mode: u32) -> Result<VmClock> {
    let mut clock = unlike(get(vm)?);
    clock.header.mode = mode;
    Ok(clock)
}

/// Fails unless all of `clock` was SET in the stopped `vm`, whose clocks were `before`.
fn ensure_done(vm: &Vm, before: &Clocks, clock: &VmClock) -> Result<()> {
    let record = function(clock.header.record);
    let saved: Vec<_> = clock.vcpus.iter().map(|vcpu| vcpu.tsc_offset).collect();
    let reading = run_a_little(vm)?;
    let now = Clocks::of(vm)?;
    ensure!(now.pinned, "no record is pinned");
    ensure!(
        function(now.record) == record && now.pages.iter().all(|&page| function(page) == record),
        "the record is {:x?}, the guest's are {:x?}, SET was {record:x?}",
        now.record,
        now.pages
    );
    let by = now.offsets[0].wrapping_sub(saved[0]);
    ensure!(
        now.offsets
            .iter()
            .zip(&saved)
            .all(|(now, saved)| now.wrapping_sub(*saved) == by),
        "offsets are {:x?}, SET were {saved:x?}",
        now.offsets
    );
    ensure!(
        clock.header.mode != MODE_EXACT || by == 0,
        "offsets are {by:#x} above those that were SET"
    );
    ensure!(
        now.offsets != before.offsets,
        "offsets still are {:x?}",
        now.offsets
    );
    now.ensure_reads(&reading)
}

fn main() -> ExitCode {
    let mut cases = moments::cases();
    cases.extend(positions::cases());
    cases.extend(pending::cases());
    cases.extend(race::cases());
    ktap::main(Host::new, cases)
}
