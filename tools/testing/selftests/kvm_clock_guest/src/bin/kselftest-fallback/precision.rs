// SPDX-License-Identifier: GPL-2.0-only

//! `precision_ns` on a host that adds nothing to it.

use crate::{set_or_fall_back, Host, VCPUS};
use kvm_clock_guest_selftests::prelude::*;

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases = vec![Case::new(
        "FALLBACK has no effect if it is not needed",
        not_needed,
    )];
    for (name, mode) in MODES {
        cases.push(Case::new(
            format!("SET {name} reports the saved precision"),
            move |host: &Host| passed_on(host, mode),
        ));
    }
    cases
}

/// The same record is pinned as without it.
fn not_needed(host: &Host) -> Result<()> {
    for vm in [derived(&host.kvm, VCPUS)?, pinned(&host.kvm, VCPUS)?] {
        let before = Clocks::of(&vm)?;
        let mut clock = get_or_fall_back(&vm)?;
        let (with, without) = (&clock.header, get(&vm)?.header);
        ensure_eq_hex!(
            (with.status, with.precision_ns, with.record),
            (without.status, 0, without.record),
            "GET with FALLBACK and without"
        );
        set_or_fall_back(&vm, &mut clock, MODE_EXACT).context("SET with FALLBACK")?;
        ensure_eq!(clock.header.precision_ns, 0, "precision that SET adds, ns");
        before.as_pinned().ensure_unchanged(&vm)?;
    }
    Ok(())
}

/// A clock that was saved with a fallback is pinned nevertheless.
fn passed_on(host: &Host, mode: u32) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    for saved_ns in [0, 1, 12_345, u32::MAX] {
        for fallback in [false, true] {
            let mut clock = get(&vm)?;
            clock.header.precision_ns = saved_ns;
            if fallback {
                set_or_fall_back(&vm, &mut clock, mode).context("SET with FALLBACK")?;
            } else {
                set(&vm, &mut clock, mode)?;
            }
            let observed = (clock.header.status, clock.header.precision_ns);
            let expected = (STATUS_PINNED | STATUS_HOST_TSC_STABLE, saved_ns);
            ensure_eq_hex!(
                observed,
                expected,
                "SET's status and precision, FALLBACK {fallback}"
            );
        }
    }
    Ok(())
}
