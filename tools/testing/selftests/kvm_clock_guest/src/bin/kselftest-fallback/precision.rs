// SPDX-License-Identifier: GPL-2.0-only

//! `precision_ns` on a host that has nothing to add to it.

use crate::{get_or_fall_back, set_or_fall_back, Host, VCPUS};
use anyhow::{ensure, Context, Result};
use kvm_clock_guest_selftests::{
    clocks::Clocks,
    fixture::{derived, get, pinned, set},
    ktap::Case,
};
use pvclock::abi::{MODE_ADVANCE, MODE_EXACT, MODE_FREEZE, STATUS_HOST_TSC_STABLE, STATUS_PINNED};

const MODES: [(&str, u32); 3] = [
    ("exact", MODE_EXACT),
    ("advance", MODE_ADVANCE),
    ("freeze", MODE_FREEZE),
];

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases = vec![Case::new(
        "FALLBACK changes nothing where it is not needed",
        not_needed,
    )];
    for (name, mode) in MODES {
        cases.push(Case::new(
            format!("SET {name} reports the precision that was saved"),
            move |host: &Host| passed_on(host, mode),
        ));
    }
    cases
}

/// The same record, pinned as without it.
fn not_needed(host: &Host) -> Result<()> {
    for vm in [derived(&host.kvm, VCPUS)?, pinned(&host.kvm, VCPUS)?] {
        let before = Clocks::of(&vm)?;
        let mut clock = get_or_fall_back(&vm)?;
        let (with, without) = (&clock.header, get(&vm)?.header);
        ensure!(
            (with.status, with.precision_ns, with.record) == (without.status, 0, without.record),
            "with FALLBACK GET tells {with:x?}, without {without:x?}"
        );
        set_or_fall_back(&vm, &mut clock, MODE_EXACT).context("SET with FALLBACK")?;
        ensure!(
            clock.header.precision_ns == 0,
            "SET adds {} ns",
            clock.header.precision_ns
        );
        Clocks {
            pinned: true,
            ..before
        }
        .ensure_unchanged(&vm)?;
    }
    Ok(())
}

/// A clock that a fallback made no better than this is pinned all the same.
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
            ensure!(
                observed == expected,
                "SET, FALLBACK {fallback}, reports status and precision {observed:x?}, expected \
                 {expected:x?}"
            );
        }
    }
    Ok(())
}
