// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU that comes later reads the pinned record, and disturbs nobody's.

use crate::pinned;
use anyhow::{ensure, Context, Result};
use kvm_clock::tsc_offset;
use kvm_clock_guest_selftests::{
    clocks::{function, Clocks},
    halting,
    ktap::{note, Case},
    trace::Trace,
};
use kvm_ioctls::Kvm;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![Case::new(
        "a hot-added vCPU leaves and shares the record",
        hot_add,
    )]
}

fn hot_add(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, 2)?;
    let trace = Trace::new()?;
    let before = Clocks::of(&vm)?;
    let mut fd = halting::add_vcpu(kvm, &vm)?;
    let page = halting::record(&vm, &mut fd)?;
    let updates = trace.take()?;
    note(&format!("{updates:?}"));
    ensure!(updates.records > 0, "KVM wrote no record: {updates:?}");

    let offset = tsc_offset(&fd).context("KVM_VCPU_TSC_OFFSET")?;
    ensure!(
        offset == before.offsets[0],
        "the new vCPU's TSC offset is {offset:#x}, the others' are {:x?}",
        before.offsets
    );
    let expected = before.pages[0];
    ensure!(
        function(page) == function(expected),
        "the new vCPU reads {page:x?}, the others {expected:x?}"
    );
    before.ensure_unchanged(&vm)
}
