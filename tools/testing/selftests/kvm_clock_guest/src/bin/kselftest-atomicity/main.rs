// SPDX-License-Identifier: GPL-2.0-only

//! A SET that fails, at any point, changes no clock and no pending update; one that succeeds
//! changes all of them.
//!
//! Every SET here has other TSC offsets and a record at another rate, so that any change is
//! visible. kselftest-errno has each errno with each of its causes.

mod moments;
mod pending;
mod positions;
mod race;

use kvm_clock_guest_selftests::prelude::*;

/// vCPUs of the VMs: a first, a middle and a last one.
const VCPUS: u32 = 3;

/// vCPUs for whose array SET and GET allocate memory: up to 8 entries are on the stack.
const MANY_VCPUS: u32 = 9;

/// What the cases share: a call that fails changes nothing, so many cases use one VM.
struct Host {
    kvm: Kvm,
    /// A VM with a derived clock, and one with a pinned clock.
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

/// Fails unless SET changed the clocks of the stopped `vm` from `before` to `clock`.
fn ensure_done(vm: &Vm, before: &Clocks, clock: &VmClock) -> Result<()> {
    let saved = offsets(clock);
    let reading = run_a_little(vm)?;
    let now = Clocks::of(vm)?;
    now.ensure_pinned_to(clock.header.record)?;
    let by = now.offsets[0].since(saved[0]);
    ensure!(
        now.offsets
            .iter()
            .zip(&saved)
            .all(|(now, saved)| now.since(*saved) == by),
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
    let cases = [
        moments::cases(),
        positions::cases(),
        pending::cases(),
        race::cases(),
    ];
    ktap::main(Host::new, ktap::all(cases))
}
