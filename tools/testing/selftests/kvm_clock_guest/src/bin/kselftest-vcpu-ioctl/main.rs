// SPDX-License-Identifier: GPL-2.0-only

//! The vCPU ioctls KVM_GET_CLOCK_GUEST and KVM_SET_CLOCK_GUEST and the attribute
//! KVM_VCPU_TSC_SCALE, called as a program written for the series on the kernel list does. Beyond
//! the series, a failed call changes nothing, and the record is restored bit for bit.
//!
//! kselftest-lifecycle tests `ENOTTY` without the module.

mod edge;
mod list;
mod migrate;
mod rates;
mod reads;
mod refuses;
mod scale;
mod writes;

use kvm_clock_guest_selftests::{clocksource, prelude::*};
use list::TimeInfo;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// vCPUs of the VMs.
const VCPUS: u32 = 2;

/// Shared by the cases: a failed call changes nothing, so one VM serves many of them.
struct Host {
    kvm: Kvm,
    /// A VM with a derived clock, and one with a pinned clock.
    vms: [Vm; 2],
    other_clocksource: String,
}

impl Host {
    fn new() -> Result<Self> {
        let kvm = require::clock_guest()?;
        let vms = [derived(&kvm, VCPUS)?, pinned(&kvm, VCPUS)?];
        Ok(Self {
            kvm,
            vms,
            other_clocksource: clocksource::other()?,
        })
    }
}

fn main() -> ExitCode {
    let mut cases = migrate::cases();
    cases.extend(reads::cases());
    cases.extend(writes::cases());
    cases.extend(refuses::cases());
    cases.extend(rates::cases());
    cases.extend(scale::cases());
    ktap::main(Host::new, cases)
}

/// KVM_GET_CLOCK_GUEST of vCPU `index`.
fn get(vm: &Vm, index: usize) -> Result<TimeInfo> {
    list::get_clock_guest(&*vm.vcpus()[index].fd())
        .with_context(|| format!("KVM_GET_CLOCK_GUEST of vCPU {index}"))
}

/// KVM_SET_CLOCK_GUEST of vCPU `index`.
fn set(vm: &Vm, index: usize, info: &TimeInfo) -> Result<()> {
    list::set_clock_guest(&*vm.vcpus()[index].fd(), info)
        .with_context(|| format!("KVM_SET_CLOCK_GUEST of vCPU {index}"))
}

/// Another descriptor of vCPU `index`, to call it while the vCPU runs.
fn second_descriptor(vm: &Vm, index: usize) -> Result<OwnedFd> {
    let fd = vm.vcpus()[index].fd();
    // SAFETY: It is open as long as `fd` lives.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    borrowed.try_clone_to_owned().context("fcntl")
}

/// The record in the type that the other tests use.
fn record(info: &TimeInfo) -> ClockGuest {
    ClockGuest {
        version: info.version,
        pad0: info.pad0,
        tsc_timestamp: GuestTsc(info.tsc_timestamp),
        system_time: info.system_time,
        tsc_to_system_mul: info.tsc_to_system_mul,
        tsc_shift: info.tsc_shift,
        flags: info.flags,
        pad: info.pad,
    }
}
