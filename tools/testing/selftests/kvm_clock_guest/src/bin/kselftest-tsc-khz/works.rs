// SPDX-License-Identifier: GPL-2.0-only

//! Without a pinned clock the ioctl works.

use crate::{pinned, Rate};
use kvm_clock_guest_selftests::prelude::*;

pub(crate) fn cases(start: Rate, others: &[Rate]) -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for &other in others {
        cases.push(Case::new(
            format!("works after KVM_SET_CLOCK: {}, {}", other.name, start.name),
            move |kvm| after_set_clock(kvm, start, other),
        ));
    }
    cases
}

fn after_set_clock(kvm: &Kvm, start: Rate, other: Rate) -> Result<()> {
    let vm = pinned(kvm, start)?;
    set_clock(&vm, get_clock(&vm)?.clock)?;
    let khz = other.of(vm.tsc_khz()?)?;
    set_tsc_khz(&vm, 0, khz)?;
    ensure_rate(&vm, khz)?;
    settle(&vm)?;
    ensure_rate(&vm, khz)
}

fn ensure_rate(vm: &Vm, khz: u32) -> Result<()> {
    for vcpu in vm.vcpus() {
        let actual = vcpu.fd().get_tsc_khz()?;
        ensure_eq!(actual, khz, "vCPU {}'s rate, kHz", vcpu.index());
    }
    Ok(())
}
