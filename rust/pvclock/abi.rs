// SPDX-License-Identifier: (GPL-2.0-only WITH Linux-syscall-note) OR Apache-2.0 OR BSD-3-Clause

//! The ioctl ABI, as integers: what crosses between the VMM and the module.
//!
//! Mirrors `arch/x86/include/uapi/asm/kvm.h`; the module's build compares every size and offset
//! here with bindgen's view of that header.
//!
//! All structures are plain fixed-width integers with explicit padding, so that every bit pattern
//! is a value and no byte leaks from one side to the other.

use super::counter::{
    GuestTsc,
    HostTsc,
    TscOffset, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

/// `KVM_CHECK_EXTENSION` number of the capability; far outside KVM's sequence until upstream
/// assigns one.
// TODO[CAPN]: Use the assigned number.
pub const KVM_CAP_VM_CLOCK_GUEST: u32 = 0xd6d9;

/// Capability bit: [`KVM_GET_VM_CLOCK_GUEST`], and [`KVM_SET_VM_CLOCK_GUEST`] with [`MODE_EXACT`].
pub const CAP_EXACT: u32 = 1 << 0;
/// Capability bit: [`KVM_SET_VM_CLOCK_GUEST`] with [`MODE_ADVANCE`].
pub const CAP_ADVANCE: u32 = 1 << 1;
/// Capability bit: [`KVM_SET_VM_CLOCK_GUEST`] with [`MODE_FREEZE`].
pub const CAP_FREEZE: u32 = 1 << 2;
/// Capability bit: both VM ioctls with [`FLAG_FALLBACK`].
pub const CAP_FALLBACK: u32 = 1 << 3;
/// Capability bit: [`KVM_GET_CLOCK_GUEST`] and [`KVM_SET_CLOCK_GUEST`].
pub const CAP_VCPU: u32 = 1 << 4;
/// Capability bit: [`KVM_SET_VM_CLOCK_GUEST`] with [`FLAG_RESLOPE`].
pub const CAP_RESLOPE: u32 = 1 << 5;
/// Capability bit: [`VmClockGuest::paused_ns`] and [`ClockGuestVcpu::steal_ns`].
pub const CAP_STEAL: u32 = 1 << 6;

/// SET mode: same host TSC domain; put the relation back bit for bit.
pub const MODE_EXACT: u32 = 1;
/// SET mode: another domain; the guest TSC continues by the TAI elapsed since the anchor.
pub const MODE_ADVANCE: u32 = 2;
/// SET mode: the guest TSC continues, now, from its value at the anchor; hides the pause.
pub const MODE_FREEZE: u32 = 3;

/// SET flag: allow [`MODE_ADVANCE`] to move the guest TSC backwards (`ETIME` otherwise).
pub const FLAG_ALLOW_BACKWARDS: u32 = 1 << 0;
/// SET flag: accept a TSC rate beyond the tolerance (`ERANGE` otherwise).
pub const FLAG_ALLOW_RATE_MISMATCH: u32 = 1 << 1;
/// GET and SET flag: without a master clock or a stable host TSC, do the best that is possible and
/// report its precision in [`VmClockGuest::precision_ns`] (`ENODATA` otherwise).
pub const FLAG_FALLBACK: u32 = 1 << 2;
/// SET flag: if the record's slope is not that of the guest's TSC on this host, continue kvmclock
/// from its value at the anchor with the slope of this host's TSC.
pub const FLAG_RESLOPE: u32 = 1 << 3;
/// All SET flags this build knows.
pub const FLAGS_KNOWN: u32 =
    FLAG_ALLOW_BACKWARDS | FLAG_ALLOW_RATE_MISMATCH | FLAG_FALLBACK | FLAG_RESLOPE;

/// Status bit: SET made the VM's clock, and no master clock update derives it anew.
pub const STATUS_PINNED: u32 = 1 << 0;
/// Status bit: KVM considers the host TSC stable: the host keeps time by it, and trusts it.
pub const STATUS_HOST_TSC_STABLE: u32 = 1 << 1;
/// All status bits this build knows.
pub const STATUS_KNOWN: u32 = STATUS_PINNED | STATUS_HOST_TSC_STABLE;

/// pvclock flag: readings of different vCPUs are comparable (`PVCLOCK_TSC_STABLE_BIT`).
pub const PVCLOCK_TSC_STABLE: u8 = 1 << 0;

const KVMIO: u32 = 0xae;

/// Linux's `_IOC()` for x86: direction (2 bits), size (14), type (8), number (8).
const fn ioc(dir: u32, nr: u32, size: usize) -> u32 {
    // CAST: sizes here are far below 2^14, asserted below.
    (dir << 30) | ((size as u32) << 16) | (KVMIO << 8) | nr
}

const IOC_WRITE: u32 = 1;
const IOC_READ: u32 = 2;
const IOC_READ_WRITE: u32 = IOC_READ | IOC_WRITE;

/// Reads the clocks of a whole VM; VM fd, payload [`VmClockGuest`].
///
/// The number always has the size of the first version of the payload; [`VmClockGuest::size`] is
/// the size of the caller's.
pub const KVM_GET_VM_CLOCK_GUEST: u32 = ioc(IOC_READ_WRITE, 0xd8, size_of::<VmClockGuest>());
/// Writes the clocks of a whole VM; VM fd, payload [`VmClockGuest`], see
/// [`KVM_GET_VM_CLOCK_GUEST`].
pub const KVM_SET_VM_CLOCK_GUEST: u32 = ioc(IOC_READ_WRITE, 0xd9, size_of::<VmClockGuest>());
/// Writes the record of a vCPU, and with it kvmclock of its VM; vCPU fd, payload [`ClockGuest`].
pub const KVM_SET_CLOCK_GUEST: u32 = ioc(IOC_WRITE, 0xd6, size_of::<ClockGuest>());
/// Reads the record of a vCPU; vCPU fd, payload [`ClockGuest`].
pub const KVM_GET_CLOCK_GUEST: u32 = ioc(IOC_READ, 0xd7, size_of::<ClockGuest>());

/// Attribute of a vCPU in group `KVM_VCPU_TSC_CTRL`: its scaling ratio, [`VcpuTscScale`],
/// read-only.
pub const KVM_VCPU_TSC_SCALE: u64 = 1;

/// The pvclock record in the form the guest sees it: `struct pvclock_vcpu_time_info`.
///
/// At guest TSC `g` (ticks) it reads `system_time + (((g - tsc_timestamp) << tsc_shift) *
/// tsc_to_system_mul >> 32)` ns; see [`super::record`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ClockGuest {
    /// Odd while the guest's copy is being written. Ignored by SET, 0 from GET.
    pub version: u32,
    /// Must be 0.
    pub pad0: u32,
    /// Guest TSC at which `system_time` holds.
    pub tsc_timestamp: GuestTsc,
    /// kvmclock (ns) at `tsc_timestamp`.
    pub system_time: u64,
    /// ns per shifted tick, in units of 2^-32; at least 2^31.
    pub tsc_to_system_mul: u32,
    /// Left shift of ticks before the multiplication (right shift if negative), -31..=31.
    pub tsc_shift: i8,
    /// [`PVCLOCK_TSC_STABLE`] or 0 from GET; SET takes that bit and ignores the others.
    pub flags: u8,
    /// Must be 0.
    pub pad: [u8; 2],
}

/// One vCPU of a [`VmClockGuest`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ClockGuestVcpu {
    /// The id given to `KVM_CREATE_VCPU` (the APIC id on x86).
    pub vcpu_id: u32,
    /// Must be 0.
    pub pad: u32,
    /// L1 TSC offset: what `KVM_VCPU_TSC_OFFSET` reads.
    pub tsc_offset: TscOffset,
    /// Steal time (ns) that an earlier SET added and that the guest's steal clock does not show
    /// yet, as the vCPU has not run since.
    pub steal_ns: u64,
}

/// Value of [`KVM_VCPU_TSC_SCALE`]: `struct kvm_vcpu_tsc_scale`.
///
/// The guest's TSC is `((host TSC * tsc_ratio) >> tsc_frac_bits) + offset`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VcpuTscScale {
    /// Fixed-point ratio of guest ticks to host ticks.
    pub tsc_ratio: u64,
    /// Its fraction bits.
    pub tsc_frac_bits: u64,
}

/// The clocks of a whole VM: `struct kvm_vm_clock_guest`, argument of both VM ioctls.
///
/// Everything after `vcpus` holds at host TSC `host_tsc`, the anchor. What GET returned is, with
/// `mode` chosen, what SET takes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VmClockGuest {
    /// In: size of the caller's structure in bytes. Out: what the kernel knows.
    pub size: u32,
    /// In: `FLAG_*`; of these, GET takes [`FLAG_FALLBACK`] alone.
    pub flags: u32,
    /// SET in: `MODE_*`. Must be 0 for GET.
    pub mode: u32,
    /// Out: `STATUS_*`. SET accepts the known bits and looks at none.
    pub status: u32,
    /// In: elements at `vcpus`. Out: vCPUs of the VM (also with `E2BIG`).
    pub nr_vcpus: u32,
    /// The vCPU that `guest_tsc` and `record` speak of.
    pub ref_vcpu_id: u32,
    /// User address of an array of [`ClockGuestVcpu`].
    pub vcpus: u64,

    /// Anchor: the host TSC at which everything below is true.
    pub host_tsc: HostTsc,
    /// L1 TSC of the reference vCPU at the anchor.
    pub guest_tsc: GuestTsc,
    /// kvmclock (ns) at the anchor.
    pub kvmclock_ns: u64,
    /// `CLOCK_TAI` (ns) at the anchor, by this host's clock.
    pub tai_ns: i64,
    /// `CLOCK_MONOTONIC_RAW` (ns) at the anchor.
    pub monotonic_raw_ns: i64,
    /// TAI - UTC (s) as this host knows it. Below 10 it does not: see [`super::plan::knows_tai`].
    pub tai_offset_s: i32,

    /// Host TSC rate (kHz) as this host calibrated it.
    pub host_tsc_khz: u32,
    /// Scaling ratio of the guest TSC, fixed point with `tsc_frac_bits`; 0 = no hardware scaling.
    pub tsc_ratio: u64,
    /// Fraction bits of `tsc_ratio`; 0 = no hardware scaling.
    pub tsc_frac_bits: u32,
    /// Out: how far guest TSC or kvmclock may be from what they should be, ns, 0 = exact; from SET
    /// the sum of what it was given and what it added. Not 0 only with [`FLAG_FALLBACK`].
    pub precision_ns: u32,

    /// The record of the reference vCPU.
    pub record: ClockGuest,

    /// SET out, also with `ERANGE`: guest TSC rate here minus the saved one, Hz.
    pub rate_diff_hz: i64,

    /// SET in: how long the vCPUs did not run, ns; each vCPU's steal clock shows it once, with
    /// [`ClockGuestVcpu::steal_ns`]. [`MODE_FREEZE`] ignores it. 0 from GET.
    pub paused_ns: u64,
}

const _: () = {
    assert!(size_of::<ClockGuest>() == 32);
    assert!(size_of::<ClockGuestVcpu>() == 24);
    assert!(size_of::<VmClockGuest>() == 144);
    // No implicit padding is left for the compiler to insert: `IntoBytes` would not derive.
    assert!(KVM_GET_VM_CLOCK_GUEST == 0xc090_aed8);
    assert!(KVM_SET_VM_CLOCK_GUEST == 0xc090_aed9);
    assert!(KVM_SET_CLOCK_GUEST == 0x4020_aed6);
    assert!(KVM_GET_CLOCK_GUEST == 0x8020_aed7);
};
