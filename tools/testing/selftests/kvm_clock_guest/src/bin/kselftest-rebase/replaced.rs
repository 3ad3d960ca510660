// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_SET_CLOCK` replaces the pinned record, as documented.

use crate::{causes::update_master_clock, pinned};
use kvm_clock_guest_selftests::prelude::*;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![Case::new("KVM_SET_CLOCK replaces the record", replaced)]
}

/// From then on KVM derives the clock: from the value that was set, at the host's rate.
fn replaced(kvm: &Kvm) -> Result<()> {
    const NEW_NS: u64 = 1_000_000_000_000;
    const MINUTE_NS: u64 = 60_000_000_000;

    let vm = pinned(kvm, 2)?;
    let before = Clocks::of(&vm)?;
    set_clock(&vm, NEW_NS)?;
    let status = get(&vm)?.header.status;
    ensure!(
        status & STATUS_PINNED == 0,
        "a record is still pinned: status {status:#x}"
    );
    run_a_little(&vm)?;
    // It stays derived.
    update_master_clock(&vm)?;
    run_a_little(&vm)?;
    let after = Clocks::of(&vm)?;
    ensure!(
        !after.pinned && after.offsets == before.offsets,
        "clocks were {before:x?}, are {after:x?}"
    );
    let own = Clocks::of(&derived(kvm, 1)?)?.record;
    for page in &after.pages {
        ensure!(
            (page.tsc_to_system_mul, page.tsc_shift) == (own.tsc_to_system_mul, own.tsc_shift),
            "the guest's record is {page:x?}, one of KVM's making {own:x?}"
        );
    }
    let clock = get(&vm)?.header.kvmclock_ns;
    ensure!(
        clock.wrapping_sub(NEW_NS) < MINUTE_NS,
        "kvmclock is {clock} ns less than a minute after it was set to {NEW_NS} ns"
    );
    Ok(())
}
