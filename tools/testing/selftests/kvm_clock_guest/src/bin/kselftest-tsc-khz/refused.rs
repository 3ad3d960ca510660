// SPDX-License-Identifier: GPL-2.0-only

//! The ioctl's result; and it changes nothing.

use crate::{pinned, pinned_before_run, Rate};
use kvm_clock_guest_selftests::{one_clock::ensure_one_clock, prelude::*};

pub(crate) fn cases(start: Rate, others: &[Rate]) -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for &other in others {
        for index in [0, 1] {
            cases.push(Case::new(
                format!("EBUSY: {} on vCPU {index}, {}", other.name, start.name),
                move |kvm| busy(&pinned(kvm, start)?, index, other),
            ));
        }
        cases.push(Case::new(
            format!(
                "EBUSY: {} before the first KVM_RUN, {}",
                other.name, start.name
            ),
            move |kvm| busy_before_run(kvm, start, other),
        ));
    }
    cases.push(Case::new(
        format!("the vCPU's own rate succeeds, {}", start.name),
        move |kvm| own_rate(kvm, start),
    ));
    cases
}

/// Rates of all vCPUs, kHz, and their transforms.
fn rates(vm: &Vm) -> Result<String> {
    let of_vcpu = |index: usize| {
        let fd = vm.vcpus()[index].fd();
        Ok((fd.get_tsc_khz()?, vcpu_transform(&fd)?))
    };
    let all: Vec<_> = (0..vm.vcpus().len()).map(of_vcpu).collect::<Result<_>>()?;
    Ok(format!("{all:x?}"))
}

fn ensure_same_rates(vm: &Vm, before: &str) -> Result<()> {
    let now = rates(vm)?;
    ensure_eq!(now, before, "rates");
    Ok(())
}

fn busy(vm: &Vm, index: usize, other: Rate) -> Result<()> {
    let before = rates(vm)?;
    ensure_changes_nothing(vm, |_| {
        let fd = vm.vcpus()[index].fd();
        let khz = other.of(fd.get_tsc_khz()?)?;
        ensure_errno(libc::EBUSY, fd.set_tsc_khz(khz))
    })?;
    ensure_same_rates(vm, &before)?;
    ensure_one_clock(vm)
}

fn busy_before_run(kvm: &Kvm, start: Rate, other: Rate) -> Result<()> {
    let vm = pinned_before_run(kvm, start)?;
    let before = rates(&vm)?;
    {
        let fd = vm.vcpus()[1].fd();
        let khz = other.of(fd.get_tsc_khz()?)?;
        ensure_errno(libc::EBUSY, fd.set_tsc_khz(khz))?;
    }
    ensure_same_rates(&vm, &before)?;
    let status = get(&vm)?.header.status;
    ensure!(
        status & STATUS_PINNED != 0,
        "the clock is no longer pinned: status {status:#x}"
    );
    Ok(())
}

fn own_rate(kvm: &Kvm, start: Rate) -> Result<()> {
    let vm = pinned(kvm, start)?;
    let before = rates(&vm)?;
    ensure_changes_nothing(&vm, |_| {
        vm.vcpus().iter().try_for_each(|vcpu| {
            let fd = vcpu.fd();
            fd.set_tsc_khz(fd.get_tsc_khz()?).context("KVM_SET_TSC_KHZ")
        })
    })?;
    ensure_same_rates(&vm, &before)?;
    ensure_one_clock(&vm)
}
