// SPDX-License-Identifier: GPL-2.0-only

//! The guest TSC at the time of SET is the saved one.

use crate::{moved::Moved, DOMAINS, VCPUS};
use kvm_clock_guest_selftests::prelude::*;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![
        Case::new("freeze", |kvm| freeze(&derived(kvm, VCPUS)?, |_| ())),
        Case::new("freeze, record pinned before", |kvm| {
            freeze(&pinned(kvm, VCPUS)?, |_| ())
        }),
        Case::new("freeze ignores the time of day", |kvm| {
            freeze(&derived(kvm, VCPUS)?, |header| {
                header.tai_ns = i64::MAX;
                header.tai_offset_s = i32::MIN;
            })
        }),
    ]
}

fn freeze(vm: &Vm, edit: fn(&mut VmClockGuest)) -> Result<()> {
    for &domain in DOMAINS {
        let moved = Moved::new(vm)?;
        let mut saved = get(vm)?;
        move_to_domain(&mut saved, domain);
        edit(&mut saved.header);

        let host_before = rdtsc_ordered();
        set(vm, &mut saved, MODE_FREEZE)?;
        let host_after = rdtsc_ordered();

        let after = moved.ensure_one_clock(&saved)?;
        let transform = reference_transform(&after)?;
        let saved_tsc = saved.header.guest_tsc;
        // CAST: the signed differences of values mod 2^64.
        let window = [host_before, host_after]
            .map(|host_tsc| transform.guest_tsc(host_tsc).since(saved_tsc) as i64);
        note!("guest TSC was {window:?} ticks ahead of the saved one before and after SET");
        ensure!(
            window[0] <= 0 && window[1] >= 0,
            "guest TSC was not the saved one during SET: {window:?} ticks ahead before and after"
        );
        ensure_eq_hex!(after.header.record, saved.header.record, "the record");
    }
    Ok(())
}
