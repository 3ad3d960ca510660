// SPDX-License-Identifier: GPL-2.0-only

//! Saves and restores the clocks of a KVM guest in one operation, true at one host TSC.
//!
//! The way of a request: ioctl bytes ([`user`]) -> validated request ([`pvclock::request`]) -> plan
//! ([`pvclock::plan`], pure arithmetic) -> commit (guards of [`kvm`]). Everything that can fail is
//! over when the commit begins. This module has no `unsafe`: that is all in [`kvm`].
//!
//! ABI: `Documentation/virt/kvm/clock-guest.rst`.

mod kvm;
// A whole crate to the tools; the module needs not all of it.
#[allow(dead_code, unreachable_pub)]
#[path = "pvclock/lib.rs"]
mod pvclock;

#[path = "kvm_clock_guest/get.rs"]
mod get;
#[path = "kvm_clock_guest/record.rs"]
mod record;
#[path = "kvm_clock_guest/resume.rs"]
mod resume;
#[path = "kvm_clock_guest/set.rs"]
mod set;
#[path = "kvm_clock_guest/state.rs"]
mod state;
#[cfg(CONFIG_KUNIT)]
#[path = "kvm_clock_guest/tests.rs"]
mod tests;
#[path = "kvm_clock_guest/user.rs"]
mod user;
#[path = "kvm_clock_guest/vcpu.rs"]
mod vcpu;

use self::{
    kvm::{
        ClockGuest,
        Registration,
        Vcpu,
        Vm, //
    },
    pvclock::abi, //
};
use ::kernel::{
    ffi::c_int,
    prelude::*,
    uaccess::UserPtr, //
};

module! {
    type: KvmClockGuest,
    name: "kvm_clock_guest",
    authors: ["The kvm-clock-guest authors"],
    description: "Atomic save and restore of a KVM guest's TSC and kvmclock",
    license: "GPL v2",
}

struct KvmClockGuest {
    _registration: Registration<Server>,
}

impl ::kernel::Module for KvmClockGuest {
    fn init(module: &'static ThisModule) -> Result<Self> {
        Ok(Self {
            _registration: Registration::new(module)?,
        })
    }
}

/// The ioctls, by number.
struct Server;

impl ClockGuest for Server {
    const CAPABILITIES: u32 =
        abi::CAP_EXACT | abi::CAP_ADVANCE | abi::CAP_FREEZE | abi::CAP_FALLBACK | abi::CAP_VCPU;

    fn vm_ioctl(vm: &Vm, ioctl: u32, arg: UserPtr) -> Result<c_int> {
        match ioctl {
            abi::KVM_GET_VM_CLOCK_GUEST => get::get(vm, arg)?,
            abi::KVM_SET_VM_CLOCK_GUEST => set::set(vm, arg)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    fn vcpu_ioctl(vcpu: &Vcpu, ioctl: u32, arg: UserPtr) -> Result<c_int> {
        match ioctl {
            abi::KVM_GET_CLOCK_GUEST => vcpu::get(vcpu, arg)?,
            abi::KVM_SET_CLOCK_GUEST => vcpu::set(vcpu, arg)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}
