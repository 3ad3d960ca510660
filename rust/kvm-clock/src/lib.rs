// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saves and restores the TSCs and the kvmclock of a KVM guest in one operation.
//!
//! [`SavedClocks`] is all that a VMM needs: [`save`](SavedClocks::save) with the vCPUs stopped,
//! [`prepare`](SavedClocks::prepare) before the new VM's vCPUs are created, and
//! [`restore`](SavedClocks::restore), which chooses the mode, reacts to what this host refuses by a
//! [`Policy`], and returns an [`Outcome`]: what it did, and what the guest has lost. On a host with
//! the kernel module `kvm_clock_guest` it uses the module's ioctls, on another host the older ones.
//!
//! Descriptors are anything with [`AsRawFd`](std::os::fd::AsRawFd), such as those of any version of
//! kvm-ioctls.
//!
//! ```no_run
//! use kvm_clock::{Error, HostId, Policy, SavedClocks, Vcpu};
//! use kvm_ioctls::{Kvm, VcpuFd, VmFd};
//!
//! /// The vCPUs are stopped.
//! fn save(vm: &VmFd, vcpus: &[VcpuFd]) -> Result<SavedClocks, Error> {
//!     // Save memory, registers, MSRs and LAPICs as well.
//!     SavedClocks::save(vm, &Vcpu::numbered(vcpus), &HostId::read()?)
//! }
//!
//! fn restore(kvm: &Kvm, saved: &SavedClocks) -> Result<(), Box<dyn std::error::Error>> {
//!     // 1. The TSC rate, then the vCPUs.
//!     let vm = kvm.create_vm()?;
//!     saved.prepare(&vm)?;
//!     let vcpus = [vm.create_vcpu(0)?, vm.create_vcpu(1)?];
//!     // 2. Restore registers and MSRs, including those of kvmclock and MSR_IA32_TSC_ADJUST.
//!     // 3. The clocks, after all calls that change a TSC or kvmclock.
//!     let outcome = saved.restore(&vm, &Vcpu::numbered(&vcpus), &Policy::default())?;
//!     if let Some(lost) = outcome.lost() {
//!         eprintln!("guest clocks: {lost}");
//!     }
//!     // 4. Restore the guest's timers: KVM_SET_LAPIC, then MSR_IA32_TSC_DEADLINE.
//!     // 5. Notify the guest's watchdogs; this fails for a guest without kvmclock.
//!     vcpus.iter().for_each(|vcpu| vcpu.kvmclock_ctrl().unwrap_or(()));
//!     Ok(())
//! }
//! ```
//!
//! # The raw layer
//!
//! A function for each ioctl, with its errnos:
//!
//! - [`clock_guest_cap`], [`check_extension`]: the features of this kernel,
//! - [`get_vm_clock_guest`], [`set_vm_clock_guest`]: the clocks of a whole VM,
//! - [`get_clock_guest`], [`set_clock_guest`]: kvmclock alone, through a vCPU,
//! - [`set_tsc_khz`], [`tsc_khz`], [`tsc_offset`], [`set_tsc_offset`], [`tsc_scale`],
//!   [`guest_tsc`], [`get_clock`], [`set_clock`]: KVM's other TSC and clock interfaces,
//! - [`abi`]: structures and constants, and the evaluation of pvclock records,
//! - [`request`]: the requests' numbers, for seccomp filters,
//! - `bits`, with the feature `serde`: serde for the structures.
//!
//! `Documentation/virt/kvm/clock-guest.rst` describes the ioctls, and `clock-guest-vmm.rst` this
//! crate; `samples/vmm` is a complete VMM. Without the feature `std`, the crate has [`abi`],
//! [`counter`], [`request`] and [`Errno`], and needs no allocator.
//!
//! Compute the clocks of a saved vCPU at any TSC value of the host that saved it, without KVM. (If
//! the host scales, [`pvclock::tsc`] also applies the ratio.)
//!
//! ```
//! use kvm_clock::{abi, counter::{GuestTsc, HostTsc, TscOffset}, VmClock};
//!
//! fn clocks(saved: &VmClock, vcpu: usize, host_tsc: HostTsc) -> (GuestTsc, u64) {
//!     let ref_id = saved.header.ref_vcpu_id;
//!     let offset = saved.vcpus[vcpu].tsc_offset;
//!     let reference = saved.vcpus.iter().find(|vcpu| vcpu.vcpu_id == ref_id).unwrap();
//!     let record = saved.header.record.shifted_by(offset.since(reference.tsc_offset));
//!     let guest_tsc = GuestTsc(host_tsc.0).wrapping_add(offset.0);
//!     (guest_tsc, record.kvmclock_ns(guest_tsc))
//! }
//!
//! // At 2 GHz; the TSC of vCPU 1 is 7 ticks ahead.
//! let vcpu = |vcpu_id, tsc_offset| {
//!     abi::ClockGuestVcpu { vcpu_id, tsc_offset, ..Default::default() }
//! };
//! let record = abi::ClockGuest { tsc_to_system_mul: 1 << 31, ..Default::default() };
//! let saved = VmClock {
//!     header: abi::VmClockGuest { record, ..Default::default() },
//!     vcpus: vec![vcpu(0, TscOffset(1_000)), vcpu(1, TscOffset(1_007))],
//! };
//! assert_eq!(clocks(&saved, 0, HostTsc(3_000)), (GuestTsc(4_000), 2_000));
//! assert_eq!(clocks(&saved, 1, HostTsc(3_000)), (GuestTsc(4_007), 2_000));
//! ```

// The TSC and kvmclock are an x86 guest's.
#![cfg(target_arch = "x86_64")]
#![cfg_attr(not(feature = "std"), no_std)]

#[cfg(all(feature = "serde", feature = "std"))]
pub mod bits;
mod errno;
#[cfg(feature = "std")]
mod error;
#[cfg(feature = "std")]
mod host;
#[cfg(feature = "std")]
mod legacy;
#[cfg(feature = "std")]
mod outcome;
#[cfg(feature = "std")]
mod policy;
#[cfg(feature = "std")]
pub mod raw;
pub mod request;
#[cfg(feature = "std")]
mod restore;
#[cfg(feature = "std")]
mod saved;
#[cfg(feature = "std")]
mod vcpu;
#[cfg(feature = "std")]
mod vm;

pub use errno::{Errno, Result};
pub use pvclock::{abi, counter};

#[cfg(feature = "std")]
pub use {
    error::Error,
    host::{HostCheck, HostId},
    outcome::{Loss, Outcome, Procedure},
    policy::{Mode, ModeChoice, NoModule, OtherRate, Otherwise, Policy},
    saved::{Prepared, SavedClocks, Vcpu},
    vcpu::{
        get_clock_guest, guest_tsc, set_clock_guest, set_tsc_offset, tsc_khz, tsc_offset, tsc_scale,
    },
    vm::{
        check_extension, clock_guest_cap, get_clock, get_vm_clock_guest,
        get_vm_clock_guest_or_fall_back, set_clock, set_tsc_khz, set_vm_clock_guest, ClockData,
        VmClock, KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME,
    },
};
