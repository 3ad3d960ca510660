// SPDX-License-Identifier: GPL-2.0-only

//! A guest with an armed timer continues in another VM.

use crate::armed::{Armed, Guest};
use kvm_clock_guest_selftests::{copy::into_new_vm, msr::MSR_IA32_TSC_DEADLINE, prelude::*};

/// Its TSC is a day ahead of the one that the new VM starts with, so that KVM arms the timer for
/// tomorrow until SET.
pub(crate) fn exact_in_new_vm(kvm: &Kvm) -> Result<()> {
    let mut armed = Armed::new(kvm, &Guest::PLAIN, SECOND_NS)?;
    armed.vm = into_new_vm(kvm, &armed.vm, &[MSR_IA32_TSC_DEADLINE])?;
    armed.set(MODE_EXACT)?;
    armed.ensure_fires()
}
