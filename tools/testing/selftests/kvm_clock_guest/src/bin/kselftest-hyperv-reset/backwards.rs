// SPDX-License-Identifier: GPL-2.0-only

//! ADVANCE moves a guest that just booted back to before its record, which moves back by an
//! exact step, below TSC 0.

use crate::state::{ensure_continues, prepare, Function, Page};
use kvm_clock_guest_selftests::prelude::*;

/// The guest's age when it makes its record.
const UPTIME: Duration = Duration::from_millis(500);

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for (when, page) in Page::ALL {
        for vcpus in [1, 2] {
            cases.push(Case::new(
                format!(
                    "the reference counter is the record's after advance backwards near boot, \
                     {when}, {vcpus} vCPUs"
                ),
                move |kvm| near_boot(kvm, vcpus, page),
            ));
        }
    }
    cases
}

fn near_boot(kvm: &Kvm, vcpus: u32, page: Page) -> Result<()> {
    let vm = Vm::new(kvm, vcpus)?;
    // KVM makes the record when the guest first runs; SET must follow within this time.
    sleep(UPTIME);
    settle(&vm)?;
    prepare(&vm, page)?;
    let mut saved = get(&vm)?;
    let header = &mut saved.header;
    // With an odd factor the exact step is so long that one step back lies below TSC 0.
    header.record.tsc_to_system_mul |= 1;
    let record = header.record;
    let age_ns = i64::try_from(header.kvmclock_ns - record.system_time)?;
    // The guest booted at TSC 0. Halfway from there to the record:
    let ticks = u128::from(record.tsc_timestamp.0 / 2);
    let back_ns = i64::try_from(ticks * 1_000_000 / u128::from(header.host_tsc_khz))?;
    header.tai_ns += age_ns + back_ns;
    header.flags = FLAG_ALLOW_BACKWARDS;
    make_consistent(&mut saved);
    set(&vm, &mut saved, MODE_ADVANCE)?;

    let after = get(&vm)?;
    ensure!(
        after.header.record.tsc_timestamp.0 > after.header.guest_tsc.0,
        "the record is {:x?}, which is not above TSC {:#x}",
        after.header.record,
        after.header.guest_tsc
    );
    // The saved record, which is ahead of the TSC.
    let mut function = Function::of(&after)?;
    function.record = record;
    ensure_continues(&vm, page, &function)
}
