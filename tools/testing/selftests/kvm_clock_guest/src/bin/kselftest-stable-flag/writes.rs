// SPDX-License-Identifier: GPL-2.0-only

//! Writes that make TSCs different, and equal again.

use crate::state::{ensure_flag, ensure_pages, Clock};
use kvm_clock_guest_selftests::{
    prelude::*,
    tsc_writes::{TscWrite, BY_GUEST_ADJUST, BY_OFFSET, TSC_WRITES},
};

const VCPUS: u32 = 3;
/// A small write, ticks: less than a ms.
const LITTLE: u64 = 1_000_000;
/// A large write, ticks: KVM does not treat it as an attempt to make TSCs equal.
const FAR: u64 = 1 << 40;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for (name, clock) in Clock::ALL {
        for write in TSC_WRITES {
            cases.push(Case::new(
                format!("{name}: {} on the last vCPU clears the flag", write.name),
                move |kvm| apart(kvm, clock, write),
            ));
        }
        for &write in to_the_tick(clock) {
            for (which, index) in [("vCPU 0", 0), ("vCPU 1", 1)] {
                for (distance, ticks) in [("1 tick", 1), ("1,000,000 ticks", LITTLE)] {
                    cases.push(Case::new(
                        format!(
                            "{name}: {} on {which} by {distance} clears the flag, and back sets it",
                            write.name
                        ),
                        move |kvm| there_and_back(kvm, clock, write, index, ticks),
                    ));
                }
            }
            cases.push(Case::new(
                format!(
                    "{name}: {} on all other vCPUs sets the flag again",
                    write.name
                ),
                move |kvm| all_follow(kvm, clock, write),
            ));
        }
    }
    cases
}

/// The writes that restore a TSC to the tick. A VMM's writes end the master clock, which a derived
/// clock needs.
fn to_the_tick(clock: Clock) -> &'static [TscWrite] {
    match clock {
        Clock::Derived => &[BY_GUEST_ADJUST],
        Clock::Pinned => &[BY_OFFSET, BY_GUEST_ADJUST],
    }
}

fn apart(kvm: &Kvm, clock: Clock, write: TscWrite) -> Result<()> {
    let vm = clock.vm(kvm, VCPUS)?;
    (write.add)(&vm, vm.vcpus().len() - 1, FAR)?;
    ensure_equal(&vm, false)?;
    if clock == Clock::Derived && !write.by_guest {
        // Without a master clock GET needs FALLBACK.
        return ensure_pages(&vm, false);
    }
    ensure_flag(&vm, false, clock)
}

fn there_and_back(
    kvm: &Kvm,
    clock: Clock,
    write: TscWrite,
    index: usize,
    ticks: u64,
) -> Result<()> {
    let vm = clock.vm(kvm, VCPUS)?;
    (write.add)(&vm, index, ticks)?;
    ensure_equal(&vm, false)?;
    ensure_flag(&vm, false, clock).context("apart")?;
    (write.add)(&vm, index, ticks.wrapping_neg())?;
    ensure_equal(&vm, true)?;
    ensure_flag(&vm, true, clock).context("together again")
}

fn all_follow(kvm: &Kvm, clock: Clock, write: TscWrite) -> Result<()> {
    let vm = clock.vm(kvm, VCPUS)?;
    let last = vm.vcpus().len() - 1;
    for index in 0..=last {
        (write.add)(&vm, index, LITTLE)?;
        ensure_equal(&vm, index == last)?;
        ensure_flag(&vm, index == last, clock)
            .with_context(|| format!("after the write on vCPU {index}"))?;
    }
    Ok(())
}

/// Fails unless the equality of the offsets is `expected`.
fn ensure_equal(vm: &Vm, expected: bool) -> Result<()> {
    let offsets = vm.tsc_offsets()?;
    let equal = offsets.iter().all(|offset| *offset == offsets[0]);
    ensure_eq!(equal, expected, "whether TSC offsets are equal");
    Ok(())
}
