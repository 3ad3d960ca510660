// SPDX-License-Identifier: GPL-2.0-only

//! What GET and SET do where KVM has no master clock, and where the host does not keep its time by
//! its TSC: `ENODATA`, or with FALLBACK the best that is possible, and how good that is.
//!
//! Switches the host's clocksource, which needs root, and puts it back.

mod no_master_clock;
mod no_tsc_get;
mod no_tsc_set;
mod other_rate;
mod precision;

use anyhow::{ensure, Context, Result};
use clockguest::{host::rdtsc_ordered, vmm::Vm};
use kvm_clock::{get_vm_clock_guest_or_fall_back, set_vm_clock_guest, VmClock};
use kvm_clock_guest_selftests::{
    clocks::pages, clocksource, fixture::reference_transform, ktap, refusal::ensure_errno, require,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{ClockGuest, FLAG_FALLBACK, MODE_EXACT};
use std::process::ExitCode;
use vmm_sys_util::errno;

/// vCPUs of the VMs.
const VCPUS: u32 = 2;

/// KVM, and a clocksource of the host beside the TSC.
struct Host {
    kvm: Kvm,
    other_clocksource: String,
}

fn main() -> ExitCode {
    let mut cases = no_master_clock::cases();
    cases.extend(other_rate::cases());
    cases.extend(precision::cases());
    cases.extend(no_tsc_get::cases());
    cases.extend(no_tsc_set::cases());
    ktap::main(
        || {
            Ok(Host {
                kvm: require::clock_guest()?,
                other_clocksource: clocksource::other()?,
            })
        },
        cases,
    )
}

/// `KVM_GET_VM_CLOCK_GUEST` with FALLBACK.
fn get_or_fall_back(vm: &Vm) -> Result<VmClock> {
    get_vm_clock_guest_or_fall_back(vm.fd()).context("KVM_GET_VM_CLOCK_GUEST with FALLBACK")
}

/// `KVM_SET_VM_CLOCK_GUEST` with `mode` and FALLBACK.
fn set_or_fall_back(vm: &Vm, clock: &mut VmClock, mode: u32) -> errno::Result<()> {
    (clock.header.mode, clock.header.flags) = (mode, FLAG_FALLBACK);
    set_vm_clock_guest(vm.fd(), clock)
}

/// What GET with FALLBACK tells: one instant inside the call, consistent in itself, and the clock
/// that KVM_GET_CLOCK tells. What it returns took so many ns at most.
fn ensure_sound(vm: &Vm) -> Result<(VmClock, i64)> {
    let kvmclock = || vm.fd().get_clock().context("KVM_GET_CLOCK");
    let (kvmclock_before, before) = (kvmclock()?.clock, rdtsc_ordered());
    let clock = get_or_fall_back(vm)?;
    let (after, kvmclock_after) = (rdtsc_ordered(), kvmclock()?.clock);

    let header = &clock.header;
    ensure!(
        (before..=after).contains(&header.host_tsc),
        "the anchor {} is not between {before} and {after}",
        header.host_tsc
    );
    let (least, most) = (kvmclock_before, kvmclock_after);
    ensure!(
        (least..=most).contains(&header.kvmclock_ns),
        "kvmclock_ns is {}, KVM_GET_CLOCK said {least} before and {most} after",
        header.kvmclock_ns
    );
    let guest_tsc = reference_transform(&clock)?.guest_tsc(header.host_tsc);
    ensure!(
        header.guest_tsc == guest_tsc,
        "guest_tsc is {}, by the offset it is {guest_tsc}",
        header.guest_tsc
    );
    let by_record = header.record.kvmclock_ns(guest_tsc);
    ensure!(
        header.kvmclock_ns == by_record,
        "kvmclock_ns is {}, by the record it is {by_record}",
        header.kvmclock_ns
    );
    let offsets: Vec<_> = clock.vcpus.iter().map(|vcpu| vcpu.tsc_offset).collect();
    let expected = vm.tsc_offsets()?;
    ensure!(
        offsets == expected,
        "the offsets told are {offsets:x?}, they are {expected:x?}"
    );
    let took = (after - before) * 1_000_000 / u64::from(header.host_tsc_khz);
    Ok((clock, i64::try_from(took)? + 1))
}

/// Offsets and the guest's records: what a call that is refused is to leave alone, where GET is
/// too.
fn seen(vm: &Vm) -> Result<(Vec<u64>, Vec<ClockGuest>)> {
    Ok((vm.tsc_offsets()?, pages(vm)))
}

/// Fails unless `call`, made while `vm` is stopped, gives `ENODATA` and changes nothing.
fn ensure_no_data(vm: &Vm, name: &str, call: impl FnOnce(&Vm) -> errno::Result<()>) -> Result<()> {
    let before = seen(vm)?;
    ensure_errno(libc::ENODATA, call(vm)).context(name.to_owned())?;
    let after = seen(vm)?;
    ensure!(
        before == after,
        "{name}: offsets and records were {before:x?}, are {after:x?}"
    );
    Ok(())
}

/// SET, mode exact, without FALLBACK.
fn set_exact(vm: &Vm, clock: &VmClock) -> errno::Result<()> {
    let mut clock = clock.clone();
    (clock.header.mode, clock.header.flags) = (MODE_EXACT, 0);
    set_vm_clock_guest(vm.fd(), &mut clock)
}
