// SPDX-License-Identifier: GPL-2.0-only

//! Mode exact in a VM whose clocks already are the requested ones, or differ in one part: SET must
//! distinguish the two.

use kvm_clock_guest_selftests::prelude::*;

const VCPUS: u32 = 4;

fn main() -> ExitCode {
    ktap::main(
        require::clock_guest,
        vec![
            Case::new("all clocks in place: nothing is written", nothing_to_do),
            Case::new("another TSC offset on one vCPU", one_offset),
            Case::new("another TSC offset on all vCPUs", all_offsets),
            Case::new("another record", another_record),
            Case::new("EINVAL: padding in the array", padding),
            Case::new("EBUSY: one vCPU runs", one_runs),
        ],
    )
}

fn nothing_to_do(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, VCPUS)?;
    let (mut clock, version) = (get(&vm)?, versions(&vm));
    set(&vm, &mut clock, MODE_EXACT)?;
    vm.run()?;
    for index in 0..vm.vcpus().len() {
        wait_in_guest(&vm, index)?;
    }
    vm.stop()?;
    let now = versions(&vm);
    ensure_eq!(now, version, "versions of the records");
    ensure_like(&vm, &clock)
}

fn one_offset(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, VCPUS)?;
    let mut clock = get(&vm)?;
    for (vcpu, saved) in vm.vcpus().iter().zip(clock.vcpus.clone()) {
        let offset = saved.tsc_offset.wrapping_add(1);
        vm.set_tsc_offset(vcpu.index(), offset)?;
        set(&vm, &mut clock, MODE_EXACT)?;
        ensure_like(&vm, &clock)?;
    }
    Ok(())
}

/// KVM then also regards their TSCs as equal.
fn all_offsets(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, VCPUS)?;
    let mut clock = get(&vm)?;
    for (vcpu, saved) in vm.vcpus().iter().zip(&clock.vcpus) {
        let offset = saved.tsc_offset.wrapping_add(1);
        vm.set_tsc_offset(vcpu.index(), offset)?;
    }
    set(&vm, &mut clock, MODE_EXACT)?;
    ensure_like(&vm, &clock)
}

fn another_record(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, VCPUS)?;
    let mut clock = get(&vm)?;
    clock.header.record.system_time += 1;
    clock.header.kvmclock_ns += 1;
    set(&vm, &mut clock, MODE_EXACT)?;
    ensure_like(&vm, &clock)
}

fn padding(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, VCPUS)?;
    for index in 0..vm.vcpus().len() {
        let mut clock = get(&vm)?;
        clock.header.mode = MODE_EXACT;
        clock.vcpus[index].pad = 1;
        ensure_errno(libc::EINVAL, set_vm_clock_guest(vm.fd(), &mut clock))?;
    }
    Ok(())
}

fn one_runs(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, VCPUS)?;
    for vcpu in vm.vcpus() {
        let mut clock = get(&vm)?;
        clock.header.mode = MODE_EXACT;
        vcpu.request_run();
        vcpu.wait_running()?;
        wait_in_guest(&vm, vcpu.index())?;
        let result = set_vm_clock_guest(vm.fd(), &mut clock);
        vm.stop()?;
        ensure_errno(libc::EBUSY, result)?;
    }
    Ok(())
}

/// Fails unless the VM's offsets and record are those of `clock`.
fn ensure_like(vm: &Vm, clock: &VmClock) -> Result<()> {
    let now = get(vm)?;
    let [expected, observed] = [clock, &now].map(|of| (of.header.record, &of.vcpus));
    ensure_eq_hex!(observed, expected, "record and vCPUs");
    Ok(())
}
