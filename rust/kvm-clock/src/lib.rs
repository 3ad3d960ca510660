// SPDX-License-Identifier: GPL-2.0-only

//! The ioctls of the kernel module `kvm_clock_guest` for VMMs that use [kvm-ioctls](kvm_ioctls).
//! They save and restore the TSCs and the kvmclock of a whole VM in one operation.
//!
//! - [`clock_guest_cap`]: the features of this kernel,
//! - [`get_vm_clock_guest`], [`set_vm_clock_guest`]: the clocks of a whole VM,
//! - [`get_clock_guest`], [`set_clock_guest`]: kvmclock alone, through a vCPU,
//! - [`set_tsc_khz`], [`tsc_offset`], [`set_tsc_offset`], [`tsc_scale`]: other TSC interfaces that
//!   kvm-ioctls lacks,
//! - [`abi`]: structures and constants, and the evaluation of pvclock records,
//! - [`bits`]: serde for the structures.
//!
//! `Documentation/virt/kvm/clock-guest.rst` describes the ioctls, their errors, and the order in
//! which a VMM restores a guest; `samples/vmm` is a complete VMM.
//!
//! # Example
//!
//! Save the clocks of a guest, and restore them in another process or on another host:
//!
//! ```no_run
//! use kvm_clock::abi::{MODE_ADVANCE, MODE_EXACT};
//! use kvm_clock::{get_vm_clock_guest, set_tsc_khz, set_vm_clock_guest, VmClock};
//! use kvm_ioctls::{Error, VcpuFd, VmFd};
//!
//! /// The vCPUs are stopped.
//! fn save(vm: &VmFd, vcpus: &[VcpuFd]) -> Result<(u32, VmClock), Error> {
//!     // One call for all vCPUs. Save memory, registers, MSRs and LAPICs as well.
//!     Ok((vcpus[0].get_tsc_khz()?, get_vm_clock_guest(vm)?))
//! }
//!
//! type Vcpus = Vec<VcpuFd>;
//!
//! fn restore(vm: &VmFd, khz: u32, mut clock: VmClock, same_boot: bool) -> Result<Vcpus, Error> {
//!     // 1. Set the TSC rate, then create the vCPUs with the saved IDs.
//!     set_tsc_khz(vm, khz)?;
//!     let ids = clock.vcpus.iter().map(|vcpu| vcpu.vcpu_id.into());
//!     let vcpus: Vec<_> = ids.map(|id| vm.create_vcpu(id)).collect::<Result<_, _>>()?;
//!     // 2. Restore registers and MSRs, including those of kvmclock and MSR_IA32_TSC_ADJUST.
//!     // 3. Restore the clocks, after all calls that change a TSC or kvmclock.
//!     clock.header.mode = if same_boot { MODE_EXACT } else { MODE_ADVANCE };
//!     set_vm_clock_guest(vm, &mut clock)?;
//!     // 4. Restore the guest's timers: KVM_SET_LAPIC, then MSR_IA32_TSC_DEADLINE.
//!     // 5. Notify the guest's watchdogs; this fails for a guest without kvmclock.
//!     vcpus.iter().for_each(|vcpu| vcpu.kvmclock_ctrl().unwrap_or(()));
//!     Ok(vcpus)
//! }
//! ```
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

pub mod bits;
pub mod raw;
mod vcpu;
mod vm;

pub use pvclock::{abi, counter};
pub use vcpu::{get_clock_guest, set_clock_guest, set_tsc_offset, tsc_offset, tsc_scale};
pub use vm::{
    clock_guest_cap, get_vm_clock_guest, get_vm_clock_guest_or_fall_back, set_tsc_khz,
    set_vm_clock_guest, VmClock,
};
