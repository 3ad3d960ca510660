// SPDX-License-Identifier: GPL-2.0-only

//! SET before the first KVM_RUN, with all requests pending that the creation of vCPUs made.

use crate::hour_old_at_another_rate;
use kvm_clock_guest_selftests::{expect, prelude::*, trace::Trace};

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for (name, mode) in MODES {
        for vcpus in [1, 4] {
            cases.push(Case::new(
                format!("the first KVM_RUN after SET {name}, {vcpus} vCPUs"),
                move |kvm| first_run(kvm, vcpus, mode),
            ));
        }
    }
    cases
}

fn first_run(kvm: &Kvm, vcpus: u32, mode: u32) -> Result<()> {
    let trace = Trace::new()?;
    let vm = Vm::new(kvm, vcpus)?;
    let mut clock = hour_old_at_another_rate(get(&vm)?);
    // So that ADVANCE changes something.
    clock.header.tai_ns -= HOUR_NS;
    set(&vm, &mut clock, mode)?;
    let before = get(&vm)?;
    // Ignore the updates that SET made.
    trace.take()?;

    let reading = settle(&vm)?;
    let updates = trace.take()?;
    note!("{updates:?}");
    ensure!(
        updates.master_on > 0 && updates.records >= vm.vcpus().len(),
        "nothing was pending: {updates:?}"
    );
    let record = function(clock.header.record);
    let after = Clocks::of(&vm)?;
    after.ensure_pinned_to(record)?;
    let offsets = offsets(&before);
    ensure_eq_hex!(after.offsets, offsets, "TSC offsets");
    expect::ensure_reads(&reading, &record, reference_offset(&before))?;
    after.ensure_unchanged(&vm)
}
