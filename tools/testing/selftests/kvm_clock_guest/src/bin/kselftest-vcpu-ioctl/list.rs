// SPDX-License-Identifier: GPL-2.0-only

//! Numbers and layouts of the series on the kernel list, written down independently of this
//! project's own ones.
//!
//! They are in Rust because a compiled program only shares numbers and bytes with KVM. The module's
//! build (`abi_check.rs`) compares the UAPI header with them.

use std::{io, mem::offset_of, os::fd::AsRawFd};

/// `struct pvclock_vcpu_time_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct TimeInfo {
    pub(crate) version: u32,
    pub(crate) pad0: u32,
    pub(crate) tsc_timestamp: u64,
    pub(crate) system_time: u64,
    pub(crate) tsc_to_system_mul: u32,
    pub(crate) tsc_shift: i8,
    pub(crate) flags: u8,
    pub(crate) pad: [u8; 2],
}

const _: () = {
    assert!(size_of::<TimeInfo>() == 32);
    assert!(offset_of!(TimeInfo, tsc_timestamp) == 8);
    assert!(offset_of!(TimeInfo, tsc_to_system_mul) == 24);
    assert!(offset_of!(TimeInfo, flags) == 29);
};

/// `struct kvm_vcpu_tsc_scale`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct TscScale {
    pub(crate) tsc_ratio: u64,
    pub(crate) tsc_frac_bits: u64,
}

/// `struct kvm_device_attr`.
#[repr(C)]
struct DeviceAttr {
    flags: u32,
    group: u32,
    attr: u64,
    addr: u64,
}

pub(crate) const KVM_SET_CLOCK_GUEST: u64 = 0x4020_aed6;
pub(crate) const KVM_GET_CLOCK_GUEST: u64 = 0x8020_aed7;

/// `KVM_{SET,GET,HAS}_DEVICE_ATTR`.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub(crate) enum Access {
    Set = 0x4018_aee1,
    Get = 0x4018_aee2,
    Has = 0x4018_aee3,
}

pub(crate) const KVM_VCPU_TSC_SCALE: u64 = 1;
pub(crate) const PVCLOCK_TSC_STABLE_BIT: u8 = 1;

/// An ioctl of a vCPU.
///
/// # Safety
///
/// `arg` may be accessed as `request` does, or is inaccessible.
pub(crate) unsafe fn ioctl(fd: &impl AsRawFd, request: u64, arg: usize) -> io::Result<()> {
    // SAFETY: As the caller promises.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, arg) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// `KVM_GET_CLOCK_GUEST`.
pub(crate) fn get_clock_guest(fd: &impl AsRawFd) -> io::Result<TimeInfo> {
    // Values that KVM does not return, to notice fields that it does not write.
    let mut info = TimeInfo {
        version: u32::MAX,
        pad0: u32::MAX,
        pad: [u8::MAX; 2],
        ..TimeInfo::default()
    };
    // SAFETY: KVM writes the 32 bytes of `info`, of which any are a value.
    unsafe { ioctl(fd, KVM_GET_CLOCK_GUEST, (&raw mut info).expose_provenance()) }?;
    Ok(info)
}

/// `KVM_SET_CLOCK_GUEST`.
pub(crate) fn set_clock_guest(fd: &impl AsRawFd, info: &TimeInfo) -> io::Result<()> {
    let address = std::ptr::from_ref(info).expose_provenance();
    // SAFETY: KVM reads the 32 bytes of `info`.
    unsafe { ioctl(fd, KVM_SET_CLOCK_GUEST, address) }
}

/// Attribute `attr` of group `KVM_VCPU_TSC_CTRL`.
///
/// # Safety
///
/// `address` may be accessed as `access` does for the attribute's size, or is inaccessible.
pub(crate) unsafe fn tsc_attr(
    fd: &impl AsRawFd,
    access: Access,
    attr: u64,
    address: usize,
) -> io::Result<()> {
    let attr = DeviceAttr {
        flags: 0,
        group: 0,
        attr,
        addr: address as u64,
    };
    // CAST: the request's number.
    let request = access as u64;
    // SAFETY: KVM reads `attr`, and the caller promises that it may access `address`.
    unsafe { ioctl(fd, request, (&raw const attr).expose_provenance()) }
}
