// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The requests of the ioctls that this crate makes, e.g. for a seccomp filter.
//!
//! The numbers are ioctl's second argument on x86-64, as `<linux/kvm.h>` and, for the first four,
//! the uapi header of the `kvm_clock_guest` series define them.

pub use pvclock::abi::{
    KVM_GET_CLOCK_GUEST, KVM_GET_VM_CLOCK_GUEST, KVM_SET_CLOCK_GUEST, KVM_SET_VM_CLOCK_GUEST,
};

/// Asks whether the kernel has a feature; VM descriptor.
pub const KVM_CHECK_EXTENSION: u32 = 0xae03;
/// Sets the TSC rate (kHz) of later vCPUs or, on a vCPU, its own.
pub const KVM_SET_TSC_KHZ: u32 = 0xaea2;
/// Returns the TSC rate (kHz) of a vCPU.
pub const KVM_GET_TSC_KHZ: u32 = 0xaea3;
/// Sets kvmclock; VM descriptor, payload [`ClockData`](crate::ClockData).
pub const KVM_SET_CLOCK: u32 = 0x4030_ae7b;
/// Reads kvmclock; VM descriptor, payload [`ClockData`](crate::ClockData).
pub const KVM_GET_CLOCK: u32 = 0x8030_ae7c;
/// Reads MSRs of a vCPU.
pub const KVM_GET_MSRS: u32 = 0xc008_ae88;
/// Writes an attribute of a vCPU.
pub const KVM_SET_DEVICE_ATTR: u32 = 0x4018_aee1;
/// Reads an attribute of a vCPU.
pub const KVM_GET_DEVICE_ATTR: u32 = 0x4018_aee2;

/// The requests of [`SavedClocks`](crate::SavedClocks), with and without the module. It also calls
/// `clock_gettime()`, which is a system call if the host's clocksource is not the TSC, and unless
/// its [`HostId`](crate::HostId) is given, reads `/proc/sys/kernel/random/boot_id`.
///
/// # Example
///
/// ```
/// for request in kvm_clock::request::SAVED_CLOCKS {
///     println!("ioctl {request:#010x}");
/// }
/// ```
pub const SAVED_CLOCKS: [u32; 10] = [
    KVM_GET_VM_CLOCK_GUEST,
    KVM_SET_VM_CLOCK_GUEST,
    KVM_CHECK_EXTENSION,
    KVM_SET_TSC_KHZ,
    KVM_GET_TSC_KHZ,
    KVM_SET_CLOCK,
    KVM_GET_CLOCK,
    KVM_GET_MSRS,
    KVM_SET_DEVICE_ATTR,
    KVM_GET_DEVICE_ATTR,
];
