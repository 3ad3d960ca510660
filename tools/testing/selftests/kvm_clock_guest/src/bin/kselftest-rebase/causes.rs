// SPDX-License-Identifier: GPL-2.0-only

//! What makes KVM compute clocks anew.

use crate::host_cpu::change_cpu;
use anyhow::{ensure, Context, Result};
use clockguest::{
    guest::{code::MSR_KVM_SYSTEM_TIME_NEW, layout},
    vmm::{
        vm::{get_msr, set_msr, MSR_IA32_TSC},
        Vm,
    },
};
use kvm_clock::{set_tsc_offset, tsc_offset};
use kvm_clock_guest_selftests::{
    clocks::{function, pages},
    fixture::run_a_little,
    hyperv, snippet,
    trace::Updates,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{ClockGuest, PVCLOCK_TSC_STABLE};
use std::sync::atomic::Ordering;

/// `MSR_KVM_WALL_CLOCK` and `MSR_KVM_SYSTEM_TIME`, as guests of long ago know them.
const MSR_KVM_WALL_CLOCK: u32 = 0x11;
const MSR_KVM_SYSTEM_TIME: u32 = 0x12;
const MSR_KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
/// Enables kvmclock, in `MSR_KVM_SYSTEM_TIME*`.
const ENABLE: u64 = 1;
/// pvclock flag that tells the guest it was stopped.
const PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;

// Parts of a page that `clockguest::guest::layout` leaves free.
const HYPERV_PAGE: u64 = 0x6000;
const OTHER_RECORDS: u64 = 0x6400;
const WALL_CLOCKS: [u64; 2] = [0x6c00, 0x6c40];

/// Something that makes KVM compute clocks anew.
pub(crate) struct Cause {
    pub(crate) name: &'static str,
    /// Does it to a stopped VM.
    pub(crate) make: fn(&Kvm, &Vm) -> Result<()>,
    /// Whether these updates, with as many vCPUs, prove it; a run of the VM included.
    pub(crate) is_proof: fn(Updates, usize) -> bool,
    /// What becomes of a record's flags.
    pub(crate) flags: fn(u8) -> u8,
    /// Whether it moves TSCs.
    pub(crate) moves_tsc: bool,
}

/// Each leaves the VM as the next may find it.
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
        name: "the guest registers kvmclock by the old MSR",
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
        name: "the guest goes from the old MSR to the new one",
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
                run_a_little(vm).map(|_| ())
            })
        },
        is_proof: |updates, vcpus| updates.master_on >= 20 && updates.records >= 20 * vcpus,
        ..CAUSE
    },
    Cause {
        name: "a TSC offset apart and back",
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

/// What a cause is unless it says otherwise.
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

/// Requests a master clock update and nothing else: KVM wants it for Hyper-V's TSC page.
pub(crate) fn update_master_clock(vm: &Vm) -> Result<()> {
    let fd = vm.vcpus()[0].fd();
    hyperv::enable(&fd)?;
    hyperv::enable_tsc_page(&fd, HYPERV_PAGE)
}

/// KVM_SET_MSRS of what `writes` makes of kvmclock's MSR and its value.
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

/// The record is the same there; and back, for the guest knows of no other place.
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
        let word = |offset| {
            let word = vm.memory().word(address(index) + offset);
            word.load(Ordering::Acquire)
        };
        let words = [0, 8, 16, 24].map(word);
        let there: ClockGuest = zerocopy::transmute!(words);
        ensure!(
            function(there) == function(page),
            "vCPU {index}'s record is {there:x?} at another address, was {page:x?}"
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

/// KVM loses the master clock over it, and takes another when all offsets were written together.
fn apart_and_back(vm: &Vm) -> Result<()> {
    const APART: u64 = 1 << 30;

    let last = vm.vcpus().last().context("no vCPU")?;
    let offsets = vm.tsc_offsets()?;
    let was = pages(vm)[last.index()];
    let offset = tsc_offset(&last.fd()).context("KVM_VCPU_TSC_OFFSET")?;
    set_tsc_offset(&last.fd(), offset.wrapping_add(APART)).context("KVM_VCPU_TSC_OFFSET")?;
    run_a_little(vm)?;
    let is = pages(vm)[last.index()];
    let expected = ClockGuest {
        tsc_timestamp: was.tsc_timestamp.wrapping_add(APART),
        flags: was.flags & !PVCLOCK_TSC_STABLE,
        ..was
    };
    ensure!(
        is == expected,
        "with its TSC {APART:#x} ticks ahead, the last vCPU's record is {is:x?}, not {expected:x?}"
    );
    for (vcpu, offset) in vm.vcpus().iter().zip(offsets) {
        set_tsc_offset(&vcpu.fd(), offset).context("KVM_VCPU_TSC_OFFSET")?;
    }
    Ok(())
}

/// The TSC is another then, and kvmclock goes on.
fn set_tscs(vm: &Vm) -> Result<()> {
    // Days from what it is, or else KVM thinks that it should not change.
    let value = vm.tsc_offsets()?[0].wrapping_neg().wrapping_add(1 << 50);
    vm.vcpus()
        .iter()
        .try_for_each(|vcpu| Ok(set_msr(&vcpu.fd(), MSR_IA32_TSC, value)?))
}

/// As a VMM does it: memory, registers, kvmclock off; the guest then boots and enables it.
fn reset(kvm: &Kvm, vm: &Vm) -> Result<()> {
    let vcpus = u32::try_from(vm.vcpus().len())?;
    Ok(vm.load(&Vm::new(kvm, vcpus)?.save()?)?)
}
