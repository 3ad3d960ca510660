// SPDX-License-Identifier: GPL-2.0-only

//! VMs and checks of their flag.

use kvm_clock_guest_selftests::prelude::*;

/// The kind of a VM's clock.
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

/// Runs `vm`. Fails unless the flag is `expected` in every vCPU's page and in GET, which succeeds
/// without FALLBACK, and the kind of the clock is unchanged.
pub(crate) fn ensure_flag(vm: &Vm, expected: bool, clock: Clock) -> Result<()> {
    settle(vm)?;
    let header = get(vm)?.header;
    let is_pinned = header.status & STATUS_PINNED != 0;
    ensure_eq!(
        is_pinned,
        (clock == Clock::Pinned),
        "whether the clock is pinned"
    );
    let in_get = header.record.flags & PVCLOCK_TSC_STABLE;
    ensure_eq!(in_get, flag(expected), "the flag in GET's record");
    ensure_pages_are(vm, expected)
}

/// Runs `vm`. Fails unless the flag is `expected` in every vCPU's page.
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
        flags.iter().all(|&observed| observed == flag(expected)),
        "the pages' flags are {flags:?}, expected {} in all",
        flag(expected)
    );
    Ok(())
}

fn flag(is_set: bool) -> u8 {
    u8::from(is_set) * PVCLOCK_TSC_STABLE
}
