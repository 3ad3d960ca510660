// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU of another rate: its TSC is another function of the host TSC, even with equal offsets.

use crate::state::ensure_pages;
use kvm_clock_guest_selftests::prelude::*;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![
        Case::new("0 in all pages where a vCPU has another rate", |kvm| {
            other_rate(kvm, false)
        }),
        Case::new(
            "0 in all pages where a vCPU has another rate and the same offset",
            |kvm| other_rate(kvm, true),
        ),
    ]
}

/// GET cannot report a record for such a VM.
fn other_rate(kvm: &Kvm, same_offset: bool) -> Result<()> {
    let vm = Vm::new(kvm, 2)?;
    settle(&vm)?;
    let khz = vm.tsc_khz()?;
    let last = vm.vcpus()[1].fd();
    last.set_tsc_khz(khz / 2).context("KVM_SET_TSC_KHZ")?;
    if same_offset {
        let offset = tsc_offset(&vm.vcpus()[0].fd()).context("KVM_VCPU_TSC_OFFSET")?;
        set_tsc_offset(&last, offset).context("KVM_VCPU_TSC_OFFSET")?;
    }
    drop(last);
    ensure_pages(&vm, false)
}
