// SPDX-License-Identifier: GPL-2.0-only

//! VMs, and the flag in them.

use anyhow::{ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_clock_guest_selftests::{
    clocks::pages,
    fixture::{derived, get, pinned, settle},
};
use kvm_ioctls::Kvm;
use pvclock::abi::{PVCLOCK_TSC_STABLE, STATUS_PINNED};

/// Whose clock a VM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    Derived,
    Pinned,
}

impl Clock {
    pub(crate) const ALL: [(&str, Self); 2] =
        [("derived", Self::Derived), ("pinned", Self::Pinned)];

    /// A stopped VM with such a clock.
    pub(crate) fn vm(self, kvm: &Kvm, vcpus: u32) -> Result<Vm> {
        let vm = match self {
            Self::Derived => derived(kvm, vcpus)?,
            Self::Pinned => pinned(kvm, vcpus)?,
        };
        ensure_flag(&vm, true, self).context("at first")?;
        Ok(vm)
    }
}

/// Lets `vm` run, and fails unless the flag is `expected` in every vCPU's page and in GET, which
/// succeeds without FALLBACK, and the clock is what it was.
pub(crate) fn ensure_flag(vm: &Vm, expected: bool, clock: Clock) -> Result<()> {
    settle(vm)?;
    let header = get(vm)?.header;
    let is_pinned = header.status & STATUS_PINNED != 0;
    ensure!(
        is_pinned == (clock == Clock::Pinned),
        "the clock was {clock:?}, GET's status is {:#x}",
        header.status
    );
    let in_get = header.record.flags & PVCLOCK_TSC_STABLE;
    ensure!(
        in_get == flag(expected),
        "GET's flag is {in_get}, expected {}",
        flag(expected)
    );
    ensure_pages_are(vm, expected)
}

/// Lets `vm` run, and fails unless the flag is `expected` in every vCPU's page.
pub(crate) fn ensure_pages(vm: &Vm, expected: bool) -> Result<()> {
    settle(vm)?;
    ensure_pages_are(vm, expected)
}

fn ensure_pages_are(vm: &Vm, expected: bool) -> Result<()> {
    let flags: Vec<_> = pages(vm)
        .iter()
        .map(|page| page.flags & PVCLOCK_TSC_STABLE)
        .collect();
    ensure!(
        flags.iter().all(|&is| is == flag(expected)),
        "the pages' flags are {flags:?}, expected {} in all",
        flag(expected)
    );
    Ok(())
}

fn flag(is_set: bool) -> u8 {
    u8::from(is_set) * PVCLOCK_TSC_STABLE
}
