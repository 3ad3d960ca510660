// SPDX-License-Identifier: GPL-2.0-only

//! Safe abstractions over KVM's clock hooks: all `unsafe` of the module lives here.
//!
//! C headers: `arch/x86/include/asm/kvm_clock_guest.h`,
//! [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h).
//!
//! # Lock order
//!
//! Outermost first; each is a guard, and each guard is only to be had from the one before it:
//!
//! 1. `kvm->lock`, a mutex: [`VmGuard`]. The set of vCPUs stands still.
//! 2. `vcpu->mutex` of all vCPUs, in the order of their index: [`HeldVcpus`]. No vCPU runs. User
//!    memory may be accessed here, but no further in, as nothing below sleeps.
//! 3. `hv->hv_lock`, taken and released by KVM inside [`VmGuard::keep`].
//! 4. `kvm->arch.tsc_write_lock`, a raw spinlock with interrupts off: [`ClocksGuard`]. KVM takes it
//!    for itself in [`VmGuard::keep`] and [`HeldVcpus::set_tsc`].

mod abi_check;
mod bindings;
mod clocks;
mod held;
mod instant;
#[cfg(CONFIG_KUNIT)]
pub(crate) mod oracle;
mod registration;
mod vm;

pub(crate) use clocks::{
    is_valid_scale,
    ClocksGuard, //
};
pub(crate) use held::HeldVcpus;
pub(crate) use instant::{
    host_tsc_khz,
    now, //
};
pub(crate) use registration::{
    ClockGuest,
    Registration, //
};
pub(crate) use vm::{
    Vcpu,
    Vm,
    VmGuard, //
};
