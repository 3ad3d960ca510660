// SPDX-License-Identifier: GPL-2.0-only

//! MSRs of guests, by their names in Intel's manual and in KVM.

pub use clockguest::{
    guest::code::MSR_KVM_SYSTEM_TIME_NEW,
    vmm::vm::{get_msr, set_msr, MSR_IA32_TSC},
};

/// Guest physical address of the wall clock, for guests of long ago.
pub const MSR_KVM_WALL_CLOCK: u32 = 0x11;
/// Guest physical address of the pvclock record, for guests of long ago.
pub const MSR_KVM_SYSTEM_TIME: u32 = 0x12;
/// What the guest adds to its TSC.
pub const MSR_IA32_TSC_ADJUST: u32 = 0x3b;
/// When the local APIC's timer fires.
pub const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Guest physical address of the wall clock: a write makes KVM write the guest's epoch there.
pub const MSR_KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
/// Guest physical address of `struct kvm_steal_time`, bit 0 enables.
pub const MSR_KVM_STEAL_TIME: u32 = 0x4b56_4d03;
/// Bit 0 of the MSRs that have an address.
pub const ENABLE: u64 = 1;
