// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU that is added later reads the pinned record, and changes no other vCPU's.

use crate::pinned;
use kvm_clock_guest_selftests::{prelude::*, snippet, trace::Trace};

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![Case::new(
        "a hot-added vCPU shares the record, which does not change",
        hot_add,
    )]
}

fn hot_add(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, 2)?;
    let trace = Trace::new()?;
    let before = Clocks::of(&vm)?;
    let mut fd = snippet::add_vcpu(&vm)?;
    let page = snippet::record_in_real_mode(&vm, &mut fd)?;
    let updates = trace.take()?;
    note!("{updates:?}");
    ensure!(updates.records > 0, "KVM wrote no record: {updates:?}");

    let offset = tsc_offset(&fd).context("KVM_VCPU_TSC_OFFSET")?;
    ensure_eq_hex!(offset, before.offsets[0], "the new vCPU's TSC offset");
    let expected = before.pages[0];
    ensure_eq_hex!(function(page), function(expected), "the new vCPU's record");
    before.ensure_unchanged(&vm)
}
