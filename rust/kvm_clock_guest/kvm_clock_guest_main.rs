// SPDX-License-Identifier: GPL-2.0-only

//! Saves and restores the clocks of a KVM guest atomically, as of one host TSC value.
//!
//! The way of a request: ioctl bytes ([`user`]) -> validated request ([`pvclock::request`]) -> plan
//! ([`pvclock::plan`], pure arithmetic) -> commit (one call into [`kvm`]). Everything that can fail
//! is over when the commit begins. Callers in the kernel come the same way, with bytes that outlive
//! it ([`handover`]). This module has no `unsafe`: that is all in [`kvm`].
//!
//! ABI: `Documentation/virt/kvm/clock-guest.rst`.

mod get;
mod handover;
mod kvm;
#[allow(unexpected_cfgs)]
#[cfg(misuse)]
mod misuse;
// A whole crate to the tools; the module needs not all of it.
#[allow(dead_code, unreachable_pub)]
#[path = "../pvclock/lib.rs"]
mod pvclock;
mod report;
mod set;
#[cfg(CONFIG_KUNIT)]
mod tests;
mod user;
mod vcpu;
mod vcpus;

use self::{
    kvm::{
        ClockGuestOps,
        Registration,
        Vm, //
    },
    pvclock::abi, //
};
use ::kernel::{
    ffi::c_int,
    prelude::*,
    uaccess::UserPtr,
    InPlaceModule, //
};

module! {
    type: KvmClockGuest,
    name: "kvm_clock_guest",
    authors: ["The kvm-clock-guest authors"],
    description: "Atomic save and restore of a KVM guest's TSC and kvmclock",
    license: "GPL v2",
}

#[pin_data]
struct KvmClockGuest {
    #[pin]
    _registration: Registration<Server>,
}

impl InPlaceModule for KvmClockGuest {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _registration <- Registration::new(module),
        })
    }
}

/// The ioctls, by number.
struct Server;

impl ClockGuestOps for Server {
    const CAPABILITIES: u32 = abi::CAP_EXACT
        | abi::CAP_ADVANCE
        | abi::CAP_FREEZE
        | abi::CAP_FALLBACK
        | abi::CAP_VCPU
        | abi::CAP_RESLOPE
        | abi::CAP_STEAL;

    fn vm_ioctl(vm: &Vm, ioctl: u32, arg: UserPtr) -> Result<c_int> {
        match ioctl {
            abi::KVM_GET_VM_CLOCK_GUEST => get::get(vm, arg)?,
            abi::KVM_SET_VM_CLOCK_GUEST => set::set(vm, arg)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    fn vcpu_ioctl(vm: &Vm, index: u32, ioctl: u32, arg: UserPtr) -> Result<c_int> {
        match ioctl {
            abi::KVM_GET_CLOCK_GUEST => vcpu::get(vm, index, arg)?,
            abi::KVM_SET_CLOCK_GUEST => vcpu::set(vm, index, arg)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    fn save(vm: &Vm, to: &mut [u8]) -> Result<u32> {
        handover::save(vm, to)
    }

    fn restore(vm: &Vm, from: &[u8]) -> Result {
        handover::restore(vm, from)
    }
}
