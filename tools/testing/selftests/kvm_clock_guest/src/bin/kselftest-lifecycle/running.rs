// SPDX-License-Identifier: GPL-2.0-only

//! Unloads and loads the module while vCPUs run; their guest must not notice.

use crate::Host;
use kvm_clock_guest_selftests::{prelude::*, progress::Progress};

const VCPUS: u32 = 2;
const ROUNDS: u32 = 5;
/// Readings of every vCPU without the module, and with it.
const READINGS: u64 = 3;

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new(
            "vCPUs with a pinned record run during unload and load",
            |host: &Host| run_during(host, true),
        ),
        Case::new(
            "vCPUs with a derived clock run during unload and load",
            |host: &Host| run_during(host, false),
        ),
    ]
}

fn run_during(host: &Host, keep: bool) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = if keep { pinned } else { derived }(&kvm, VCPUS)?;
    // Another VM, for which the module was never called.
    let other = derived(&kvm, 1)?;
    let (before, of_other) = (Clocks::of(&vm)?, Clocks::of(&other)?);
    ensure_eq!(before.pinned, keep, "whether the clock is pinned");
    let first = Progress::of(&vm);
    vm.run()?;
    other.run()?;
    for _ in 0..ROUNDS {
        let unloaded = host.module.unload()?;
        Progress::of(&vm).wait(&vm, READINGS)?;
        unloaded.load()?;
        Progress::of(&vm).wait(&vm, READINGS)?;
        let record = get(&vm)?.header.record;
        ensure_eq_hex!(record, before.record, "the record");
    }
    vm.stop()?;
    other.stop()?;
    note!("readings by vCPU: {:?}", Progress::of(&vm).since(&first));
    first.ensure_none_went_back(&vm, true)?;
    before.ensure_unchanged(&vm)?;
    of_other.ensure_unchanged(&other)?;
    set(&vm, &mut get(&vm)?, MODE_EXACT)?;
    before.as_pinned().ensure_unchanged(&vm)
}
