// SPDX-License-Identifier: GPL-2.0-only

//! The ioctls of the kernel module `kvm_clock_guest`, for a VMM that uses [kvm-ioctls](kvm_ioctls):
//! they save and restore the clocks of a whole VM, its TSCs and its kvmclock, as one.
//!
//! - [`clock_guest_cap`]: what this kernel can do,
//! - [`get_vm_clock_guest`], [`set_vm_clock_guest`]: the clocks of a whole VM,
//! - [`get_clock_guest`], [`set_clock_guest`]: kvmclock alone, by a vCPU,
//! - [`set_tsc_khz`], [`tsc_offset`], [`set_tsc_offset`], [`tsc_scale`]: what else concerns the TSC
//!   and kvm-ioctls does not have,
//! - [`abi`]: the structures and constants, and what kvmclock reads by a record,
//! - [`bits`]: serde for the structures.
//!
//! The ioctls, their errors, and the order in which a VMM restores a guest are described in
//! `Documentation/virt/kvm/clock-guest.rst`; `samples/vmm` is a whole VMM.
//!
//! # Example
//!
//! The clocks' part of saving a guest, and of restoring it in another process or on another host:
//!
//! ```no_run
//! use kvm_clock::abi::{MODE_ADVANCE, MODE_EXACT};
//! use kvm_clock::{get_vm_clock_guest, set_tsc_khz, set_vm_clock_guest, VmClock};
//! use kvm_ioctls::{Error, VcpuFd, VmFd};
//!
//! /// The vCPUs are stopped.
//! fn save(vm: &VmFd, vcpus: &[VcpuFd]) -> Result<(u32, VmClock), Error> {
//!     // Once for all vCPUs; beside it memory, registers, MSRs and LAPICs.
//!     Ok((vcpus[0].get_tsc_khz()?, get_vm_clock_guest(vm)?))
//! }
//!
//! type Vcpus = Vec<VcpuFd>;
//!
//! fn restore(vm: &VmFd, khz: u32, mut clock: VmClock, same_boot: bool) -> Result<Vcpus, Error> {
//!     // 1. The TSC's rate, before there are vCPUs; then these, with the ids they had.
//!     set_tsc_khz(vm, khz)?;
//!     let ids = clock.vcpus.iter().map(|vcpu| vcpu.vcpu_id.into());
//!     let vcpus: Vec<_> = ids.map(|id| vm.create_vcpu(id)).collect::<Result<_, _>>()?;
//!     // 2. Registers and MSRs, the kvmclock MSRs and MSR_IA32_TSC_ADJUST among them.
//!     // 3. The clocks, after all that moves a TSC or kvmclock.
//!     clock.header.mode = if same_boot { MODE_EXACT } else { MODE_ADVANCE };
//!     set_vm_clock_guest(vm, &mut clock)?;
//!     // 4. What is a point in time of the guest: KVM_SET_LAPIC, then MSR_IA32_TSC_DEADLINE.
//!     // 5. The guest's watchdogs are to know; it is refused for a guest without kvmclock.
//!     vcpus.iter().for_each(|vcpu| vcpu.kvmclock_ctrl().unwrap_or(()));
//!     Ok(vcpus)
//! }
//! ```
//!
//! What a saved guest's clocks read needs no KVM: at any host TSC of the host that saved it, vCPU
//! by vCPU. (A ratio comes on top where the host scales, see [`pvclock::tsc`].)
//!
//! ```
//! use kvm_clock::{abi, VmClock};
//!
//! fn clocks(saved: &VmClock, vcpu: usize, host_tsc: u64) -> (u64, u64) {
//!     let ref_id = saved.header.ref_vcpu_id;
//!     let offset = saved.vcpus[vcpu].tsc_offset;
//!     let reference = saved.vcpus.iter().find(|vcpu| vcpu.vcpu_id == ref_id).unwrap();
//!     let record = saved.header.record.shifted_by(offset.wrapping_sub(reference.tsc_offset));
//!     let guest_tsc = host_tsc.wrapping_add(offset);
//!     (guest_tsc, record.kvmclock_ns(guest_tsc))
//! }
//!
//! // Of 2 GHz; vCPU 1's TSC is 7 ticks ahead.
//! let vcpu = |vcpu_id, tsc_offset| abi::ClockGuestVcpu { vcpu_id, tsc_offset, ..Default::default() };
//! let record = abi::ClockGuest { tsc_to_system_mul: 1 << 31, ..Default::default() };
//! let saved = VmClock {
//!     header: abi::VmClockGuest { record, ..Default::default() },
//!     vcpus: vec![vcpu(0, 1_000), vcpu(1, 1_007)],
//! };
//! assert_eq!(clocks(&saved, 0, 3_000), (4_000, 2_000));
//! assert_eq!(clocks(&saved, 1, 3_000), (4_007, 2_000));
//! ```

// The TSC and kvmclock are an x86 guest's.
#![cfg(target_arch = "x86_64")]

pub mod bits;
pub mod raw;
mod vcpu;
mod vm;

pub use pvclock::abi;
pub use vcpu::{get_clock_guest, set_clock_guest, set_tsc_offset, tsc_offset, tsc_scale};
pub use vm::{
    clock_guest_cap, get_vm_clock_guest, get_vm_clock_guest_or_fall_back, set_tsc_khz,
    set_vm_clock_guest, VmClock,
};
