// SPDX-License-Identifier: GPL-2.0-only

//! Safe abstractions over KVM's clock hook: all `unsafe` of the module lives here.
//!
//! KVM's structures are opaque: what the module sees of a VM's clocks is the [`State`] that
//! [`VmGuard::read`] returns, and what it can do to them is to commit another one as a whole.
//!
//! C header: `arch/x86/include/asm/kvm_clock_guest.h`
//!
//! # Lock order
//!
//! Outermost first; each guard comes from the one before it, and borrows from it:
//!
//! 1. `kvm->lock`, a mutex: [`VmGuard`]. The set of vCPUs stands still.
//! 2. `vcpu->mutex` of all vCPUs, in the order of their index: [`LockedVcpus`]. No vCPU runs.
//!
//! User memory may be accessed with both held. KVM takes `hv->hv_lock` and
//! `kvm->arch.tsc_write_lock` for itself within [`VmGuard::read`] and the two commits.

mod abi_check;
mod bindings;
#[cfg(CONFIG_KUNIT)]
pub(crate) mod oracle;
mod payload;
mod registration;
mod state;
mod vm;

pub(crate) use payload::Payload;
pub(crate) use registration::{
    ClockGuestOps,
    Registration, //
};
pub(crate) use state::{
    State,
    VmClock, //
};
pub(crate) use vm::{
    Vm,
    VmGuard, //
};
