// SPDX-License-Identifier: GPL-2.0-only

//! vCPUs whose TSCs have different hardware rates: no record is right for all of them, with or
//! without FALLBACK.

use crate::{ensure_no_data, set_exact, set_or_fall_back, Host, VCPUS};
use kvm_clock::get_vm_clock_guest_or_fall_back;
use kvm_clock_guest_selftests::prelude::*;

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new(
            "ENODATA, with and without FALLBACK: one vCPU at another rate",
            |host| refused(host, VCPUS as usize - 1),
        ),
        Case::new(
            "all vCPUs at another rate: ENODATA if KVM emulates it",
            all_at_another_rate,
        ),
    ]
}

/// If the hardware scales, they share a record, as vCPUs at the host's rate do.
fn all_at_another_rate(host: &Host) -> Result<()> {
    if !require::scales(&host.kvm) {
        return refused(host, 0);
    }
    let vm = derived(&host.kvm, VCPUS)?;
    speed_up(&vm, 0)?;
    run_a_little(&vm)?;
    set(&vm, &mut get(&vm)?, MODE_EXACT)
}

/// Makes the vCPUs from `first` on 1 % faster than the host: without hardware scaling KVM then
/// advances their TSCs at every entry, and with it they have another ratio.
fn speed_up(vm: &Vm, first: usize) -> Result<()> {
    let khz = vm.tsc_khz()?;
    set_tsc_khz(vm, first, khz + khz / 100)
}

/// For a VM with a pinned clock see kselftest-tsc-khz.
fn refused(host: &Host, first: usize) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let clock = get(&vm)?;
    speed_up(&vm, first)?;
    ensure_all_refused(&vm, &clock)?;
    run_a_little(&vm)?;
    ensure_all_refused(&vm, &clock)
}

fn ensure_all_refused(vm: &Vm, clock: &VmClock) -> Result<()> {
    ensure_no_data(vm, "GET", |vm| get_vm_clock_guest(vm.fd()).map(drop))?;
    ensure_no_data(vm, "GET with FALLBACK", |vm| {
        get_vm_clock_guest_or_fall_back(vm.fd()).map(drop)
    })?;
    ensure_no_data(vm, "SET", |vm| set_exact(vm, clock))?;
    for (name, mode) in MODES {
        ensure_no_data(vm, &format!("SET {name} with FALLBACK"), |vm| {
            set_or_fall_back(vm, &mut clock.clone(), mode)
        })?;
    }
    for vcpu in vm.vcpus() {
        ensure_no_data(vm, "vCPU GET", |_| get_clock_guest(&vcpu.fd()).map(drop))?;
        ensure_no_data(vm, "vCPU SET", |_| {
            set_clock_guest(&vcpu.fd(), &clock.header.record)
        })?;
    }
    Ok(())
}
