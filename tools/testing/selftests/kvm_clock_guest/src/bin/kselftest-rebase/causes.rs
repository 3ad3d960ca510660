// SPDX-License-Identifier: GPL-2.0-only

//! Events that make KVM recompute clocks.

use clockguest::guest::layout;
use kvm_clock_guest_selftests::{
    affinity::change_cpu,
    clocks::PVCLOCK_GUEST_STOPPED,
    hyperv,
    msr::{
        get_msr, set_msr, ENABLE, MSR_IA32_TSC, MSR_KVM_SYSTEM_TIME, MSR_KVM_SYSTEM_TIME_NEW,
        MSR_KVM_WALL_CLOCK, MSR_KVM_WALL_CLOCK_NEW,
    },
    prelude::*,
    snippet::{self, record_at},
    trace::Updates,
};
use std::sync::atomic::Ordering;

// Parts of a page that `clockguest::guest::layout` leaves free.
const HYPERV_PAGE: u64 = 0x6000;
const OTHER_RECORDS: u64 = 0x6400;
const WALL_CLOCKS: [u64; 2] = [0x6c00, 0x6c40];

/// An event that makes KVM recompute clocks.
pub(crate) struct Cause {
    pub(crate) name: &'static str,
    /// Causes it in a stopped VM.
    pub(crate) make: fn(&Kvm, &Vm) -> Result<()>,
    /// Whether these updates, including those of a run of so many vCPUs, prove it.
    pub(crate) is_proof: fn(Updates, usize) -> bool,
    /// Its effect on a record's flags.
    pub(crate) flags: fn(u8) -> u8,
    /// Whether it moves TSCs.
    pub(crate) moves_tsc: bool,
}

/// Each leaves the VM in a state from which the next one works.
pub(crate) const CAUSES: &[Cause] = &[
    Cause {
        name: "KVM_SET_MSRS of kvmclock's MSR, same value",
        make: |_, vm| for_each_msr(vm, |index, old| vec![(index, old)]),
        is_proof: each_record,
        ..CAUSE
    },
    Cause {
        name: "KVM_SET_MSRS of kvmclock's MSR, off and on",
        make: |_, vm| for_each_msr(vm, |index, old| vec![(index, 0), (index, old)]),
        is_proof: each_record,
        ..CAUSE
    },
    Cause {
        name: "KVM_SET_MSRS of kvmclock's old MSR",
        make: |_, vm| for_each_msr(vm, |_, old| vec![(MSR_KVM_SYSTEM_TIME, old)]),
        is_proof: each_record,
        ..CAUSE
    },
    Cause {
        name: "KVM_SET_MSRS of kvmclock's MSR, another address",
        make: |_, vm| other_address(vm),
        is_proof: |updates, vcpus| updates.records >= 2 * vcpus,
        ..CAUSE
    },
    Cause {
        name: "KVM_SET_MSRS of the wall clock's MSRs",
        make: |_, vm| wall_clock(vm),
        ..CAUSE
    },
    Cause {
        name: "the guest registers kvmclock again",
        make: |_, vm| guest_writes(vm, MSR_KVM_SYSTEM_TIME_NEW),
        is_proof: each_record,
        ..CAUSE
    },
    Cause {
        name: "the guest registers kvmclock with the old MSR",
        make: |_, vm| guest_writes(vm, MSR_KVM_SYSTEM_TIME),
        is_proof: |updates, vcpus| updates.master_off > 0 && updates.records >= vcpus,
        flags: |flags| flags & !PVCLOCK_TSC_STABLE,
        ..CAUSE
    },
    Cause {
        name: "vCPUs change their host CPU, no master clock",
        make: |_, vm| {
            guest_writes(vm, MSR_KVM_SYSTEM_TIME)?;
            change_cpu(vm)
        },
        is_proof: |updates, vcpus| updates.master_on == 0 && updates.records >= 2 * vcpus,
        flags: |flags| flags & !PVCLOCK_TSC_STABLE,
        ..CAUSE
    },
    Cause {
        name: "the guest changes from the old MSR to the new one",
        make: |_, vm| {
            guest_writes(vm, MSR_KVM_SYSTEM_TIME)?;
            run_a_little(vm)?;
            guest_writes(vm, MSR_KVM_SYSTEM_TIME_NEW)
        },
        is_proof: |updates, vcpus| updates.master_on > 0 && updates.records >= 2 * vcpus,
        flags: |flags| flags | PVCLOCK_TSC_STABLE,
        ..CAUSE
    },
    Cause {
        name: "vCPUs change their host CPU",
        make: |_, vm| change_cpu(vm),
        ..CAUSE
    },
    Cause {
        name: "20 master clock updates",
        make: |_, vm| {
            (0..20).try_for_each(|_| {
                update_master_clock(vm)?;
                run_a_little(vm).map(drop)
            })
        },
        is_proof: |updates, vcpus| updates.master_on >= 20 && updates.records >= 20 * vcpus,
        ..CAUSE
    },
    Cause {
        name: "a TSC offset changed and restored",
        make: |_, vm| apart_and_back(vm),
        is_proof: |updates, _| updates.master_off > 0 && updates.master_on > 0,
        ..CAUSE
    },
    Cause {
        name: "KVM_KVMCLOCK_CTRL",
        make: |_, vm| {
            vm.vcpus()
                .iter()
                .try_for_each(|vcpu| vcpu.fd().kvmclock_ctrl().context("KVM_KVMCLOCK_CTRL"))
        },
        is_proof: each_record,
        flags: |flags| flags | PVCLOCK_GUEST_STOPPED,
        ..CAUSE
    },
    Cause {
        name: "a reset of the guest",
        make: reset,
        is_proof: each_record,
        flags: |flags| flags & !PVCLOCK_GUEST_STOPPED,
        ..CAUSE
    },
    Cause {
        name: "KVM_SET_MSRS of the TSC",
        make: |_, vm| set_tscs(vm),
        is_proof: |updates, vcpus| updates.master_on > 0 && updates.records >= vcpus,
        moves_tsc: true,
        ..CAUSE
    },
];

/// The defaults of a cause.
const CAUSE: Cause = Cause {
    name: "",
    make: |_, _| Ok(()),
    is_proof: |_, _| true,
    flags: |flags| flags,
    moves_tsc: false,
};

fn each_record(updates: Updates, vcpus: usize) -> bool {
    updates.records >= vcpus
}

/// Requests a master clock update and nothing else: Hyper-V's TSC page needs one.
pub(crate) fn update_master_clock(vm: &Vm) -> Result<()> {
    let fd = vm.vcpus()[0].fd();
    hyperv::enable(&fd)?;
    hyperv::enable_tsc_page(&fd, HYPERV_PAGE)
}

/// KVM_SET_MSRS with the `writes` for kvmclock's MSR and its value.
fn for_each_msr(vm: &Vm, writes: fn(u32, u64) -> Vec<(u32, u64)>) -> Result<()> {
    for vcpu in vm.vcpus() {
        let fd = vcpu.fd();
        let old = get_msr(&fd, MSR_KVM_SYSTEM_TIME_NEW)?;
        ensure!(old & ENABLE != 0, "kvmclock's MSR is {old:#x}");
        for (index, value) in writes(MSR_KVM_SYSTEM_TIME_NEW, old) {
            set_msr(&fd, index, value)?;
        }
    }
    Ok(())
}

/// The record is the same there. The address is restored, as the guest reads no other.
fn other_address(vm: &Vm) -> Result<()> {
    let address = |index: usize| OTHER_RECORDS + 64 * index as u64;

    for vcpu in vm.vcpus() {
        set_msr(
            &vcpu.fd(),
            MSR_KVM_SYSTEM_TIME_NEW,
            address(vcpu.index()) | ENABLE,
        )?;
    }
    run_a_little(vm)?;
    for (index, page) in pages(vm).into_iter().enumerate() {
        let there = record_at(vm, address(index));
        ensure_eq_hex!(
            function(there),
            function(page),
            "vCPU {index}'s record at another address"
        );
        let own = layout::pvclock_page(index) | ENABLE;
        set_msr(&vm.vcpus()[index].fd(), MSR_KVM_SYSTEM_TIME_NEW, own)?;
    }
    Ok(())
}

/// KVM writes a version, seconds and nanoseconds.
fn wall_clock(vm: &Vm) -> Result<()> {
    let fd = vm.vcpus()[0].fd();
    for (msr, gpa) in [MSR_KVM_WALL_CLOCK, MSR_KVM_WALL_CLOCK_NEW]
        .into_iter()
        .zip(WALL_CLOCKS)
    {
        vm.memory().write(gpa, &[0; 16]);
        set_msr(&fd, msr, gpa)?;
        let seconds = vm.memory().word(gpa).load(Ordering::Acquire) >> 32;
        ensure!(seconds != 0, "KVM wrote no wall clock for MSR {msr:#x}");
    }
    Ok(())
}

fn guest_writes(vm: &Vm, msr: u32) -> Result<()> {
    for index in 0..vm.vcpus().len() {
        snippet::write_msr(vm, index, msr, layout::pvclock_page(index) | ENABLE)?;
    }
    Ok(())
}

/// KVM then stops using the master clock, and uses one again after all offsets were written
/// together.
fn apart_and_back(vm: &Vm) -> Result<()> {
    const APART: u64 = 1 << 30;

    let last = vm.vcpus().last().context("no vCPU")?;
    let offsets = vm.tsc_offsets()?;
    let was = pages(vm)[last.index()];
    let offset = tsc_offset(&last.fd()).context("KVM_VCPU_TSC_OFFSET")?;
    vm.set_tsc_offset(last.index(), offset.wrapping_add(APART))?;
    run_a_little(vm)?;
    let is = pages(vm)[last.index()];
    let expected = ClockGuest {
        tsc_timestamp: was.tsc_timestamp.wrapping_add(APART),
        flags: was.flags & !PVCLOCK_TSC_STABLE,
        ..was
    };
    ensure_eq_hex!(is, expected, "the last vCPU's record");
    for (vcpu, offset) in vm.vcpus().iter().zip(offsets) {
        vm.set_tsc_offset(vcpu.index(), offset)?;
    }
    Ok(())
}

/// The TSC changes, and kvmclock continues.
fn set_tscs(vm: &Vm) -> Result<()> {
    // Days from its value, or KVM assumes that it should not change.
    let value = vm.tsc_offsets()?[0].0.wrapping_neg().wrapping_add(1 << 50);
    vm.vcpus()
        .iter()
        .try_for_each(|vcpu| Ok(set_msr(&vcpu.fd(), MSR_IA32_TSC, value)?))
}

/// As a VMM does it: memory, registers, kvmclock off; the guest then boots and enables kvmclock.
fn reset(kvm: &Kvm, vm: &Vm) -> Result<()> {
    let vcpus = u32::try_from(vm.vcpus().len())?;
    Ok(vm.load(&Vm::new(kvm, vcpus)?.save()?)?)
}
