// SPDX-License-Identifier: GPL-2.0-only

//! Where no clock is pinned, the ioctl works.

use crate::{pinned, Rate};
use anyhow::{ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_bindings::kvm_clock_data;
use kvm_clock_guest_selftests::{fixture::settle, ktap::Case};
use kvm_ioctls::Kvm;

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
    let clock = vm.fd().get_clock().context("KVM_GET_CLOCK")?.clock;
    let data = kvm_clock_data {
        clock,
        ..kvm_clock_data::default()
    };
    vm.fd().set_clock(&data).context("KVM_SET_CLOCK")?;
    let was = vm.tsc_khz()?;
    let khz = other.of(was)?;
    for vcpu in vm.vcpus() {
        vcpu.fd().set_tsc_khz(khz).context("KVM_SET_TSC_KHZ")?;
    }
    ensure_rate(&vm, khz)?;
    settle(&vm)?;
    ensure_rate(&vm, khz)
}

fn ensure_rate(vm: &Vm, khz: u32) -> Result<()> {
    for vcpu in vm.vcpus() {
        let is = vcpu.fd().get_tsc_khz()?;
        ensure!(
            is == khz,
            "vCPU {}'s rate is {is} kHz, not {khz}",
            vcpu.index()
        );
    }
    Ok(())
}
