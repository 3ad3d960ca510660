// SPDX-License-Identifier: GPL-2.0-only

//! vCPUs whose TSCs do not run at one hardware rate: no record can serve them all, FALLBACK or not.

use crate::{ensure_no_data, set_exact, set_or_fall_back, Host, VCPUS};
use anyhow::{Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::{
    get_clock_guest, get_vm_clock_guest, get_vm_clock_guest_or_fall_back, set_clock_guest, VmClock,
};
use kvm_clock_guest_selftests::{
    fixture::{derived, get, run_a_little, set},
    ktap::Case,
    require,
};
use pvclock::abi::{MODE_ADVANCE, MODE_EXACT, MODE_FREEZE};

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new(
            "ENODATA, FALLBACK or not: one vCPU at another rate",
            |host| refused(host, VCPUS as usize - 1),
        ),
        Case::new(
            "all vCPUs at another rate: ENODATA if KVM imitates it",
            all_at_another_rate,
        ),
    ]
}

/// Where the hardware scales they share a record, as vCPUs of the host's rate do.
fn all_at_another_rate(host: &Host) -> Result<()> {
    if !require::scales(&host.kvm) {
        return refused(host, 0);
    }
    let vm = derived(&host.kvm, VCPUS)?;
    speed_up(&vm, 0)?;
    run_a_little(&vm)?;
    set(&vm, &mut get(&vm)?, MODE_EXACT)
}

/// Has the vCPUs from `first` on run 1 % faster than the host: without hardware scaling KVM then
/// pushes their TSCs forward at every entry, and with it they have another ratio.
fn speed_up(vm: &Vm, first: usize) -> Result<()> {
    let khz = vm.tsc_khz()?;
    for vcpu in &vm.vcpus()[first..] {
        vcpu.fd()
            .set_tsc_khz(khz + khz / 100)
            .context("KVM_SET_TSC_KHZ")?;
    }
    Ok(())
}

/// A pinned VM takes no such rate: kselftest-tsc-khz.
fn refused(host: &Host, first: usize) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let clock = get(&vm)?;
    speed_up(&vm, first)?;
    ensure_all_refused(&vm, &clock)?;
    run_a_little(&vm)?;
    ensure_all_refused(&vm, &clock)
}

fn ensure_all_refused(vm: &Vm, clock: &VmClock) -> Result<()> {
    ensure_no_data(vm, "GET", |vm| get_vm_clock_guest(vm.fd()).map(|_| ()))?;
    ensure_no_data(vm, "GET with FALLBACK", |vm| {
        get_vm_clock_guest_or_fall_back(vm.fd()).map(|_| ())
    })?;
    ensure_no_data(vm, "SET", |vm| set_exact(vm, clock))?;
    for mode in [MODE_EXACT, MODE_ADVANCE, MODE_FREEZE] {
        ensure_no_data(vm, &format!("SET with FALLBACK, mode {mode}"), |vm| {
            set_or_fall_back(vm, &mut clock.clone(), mode)
        })?;
    }
    for vcpu in vm.vcpus() {
        ensure_no_data(vm, "vCPU GET", |_| get_clock_guest(&vcpu.fd()).map(|_| ()))?;
        ensure_no_data(vm, "vCPU SET", |_| {
            set_clock_guest(&vcpu.fd(), &clock.header.record)
        })?;
    }
    Ok(())
}
