// SPDX-License-Identifier: GPL-2.0-only

//! vCPUs whose TSCs do not run at one hardware rate: no record can serve them all, FALLBACK or not.

use crate::{
    ensure_no_data,
    set_exact,
    set_or_fall_back,
    Host,
    VCPUS, //
};
use anyhow::{
    ensure,
    Context,
    Result, //
};
use clockguest::{
    guest::{
        code::MSR_KVM_SYSTEM_TIME_NEW,
        layout::pvclock_page, //
    },
    vmm::{
        vm::set_msr,
        Vm, //
    },
};
use kvm_clock_guest_selftests::{
    clocks::{
        function,
        pages, //
    },
    fixture::{
        an_hour_ahead,
        derived,
        get,
        run_a_little,
        set, //
    },
    ktap::Case,
    require, //
};
use kvm_clock_ioctls::{
    get_clock_guest,
    get_vm_clock_guest,
    get_vm_clock_guest_or_fall_back,
    set_clock_guest,
    VmClock, //
};
use pvclock::abi::{
    MODE_ADVANCE,
    MODE_EXACT,
    MODE_FREEZE, //
};

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
        Case::new(
            "a vCPU at another rate gets a clock of its own, from the same value",
            from_the_same_value,
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

fn refused(host: &Host, first: usize) -> Result<()> {
    for is_pinned in [false, true] {
        let vm = derived(&host.kvm, VCPUS)?;
        let mut clock = get(&vm)?;
        if is_pinned {
            set(&vm, &mut clock, MODE_EXACT)?;
            run_a_little(&vm)?;
        }
        speed_up(&vm, first)?;
        ensure_all_refused(&vm, &clock)?;
        run_a_little(&vm)?;
        ensure_all_refused(&vm, &clock)?;
    }
    Ok(())
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

/// The other vCPUs stay with the pinned record.
fn from_the_same_value(host: &Host) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let last = VCPUS as usize - 1;
    let mut clock = an_hour_ahead(get(&vm)?);
    set(&vm, &mut clock, MODE_EXACT)?;
    run_a_little(&vm)?;
    speed_up(&vm, last)?;
    // Where the hardware scales KVM_SET_TSC_KHZ asks for no clock update: do what does.
    let vcpu = vm.vcpus()[last].fd();
    set_msr(&vcpu, MSR_KVM_SYSTEM_TIME_NEW, pvclock_page(last) | 1)?;
    drop(vcpu);

    let kvmclock = || vm.fd().get_clock().context("KVM_GET_CLOCK");
    let before = kvmclock()?.clock;
    let reading = run_a_little(&vm)?;
    let after = kvmclock()?.clock;
    let (observed, expected) = (function(pages(&vm)[0]), function(clock.header.record));
    ensure!(
        observed == expected,
        "vCPU 0 has {observed:x?}, expected {expected:x?}"
    );
    let own = &reading.vcpus[last];
    ensure!(
        function(own.record) != expected,
        "vCPU {last} still has the pinned record"
    );
    for sample in own.samples.iter().map(|bracketed| bracketed.sample) {
        ensure!(
            (before..=after).contains(&sample.kvmclock_ns),
            "vCPU {last} read {} ns, KVM_GET_CLOCK said {before} before and {after} after",
            sample.kvmclock_ns
        );
    }
    Ok(())
}
