// SPDX-License-Identifier: GPL-2.0-only

//! GET and SET without a master clock, and on a host whose clocksource is not the TSC: `ENODATA`,
//! or with FALLBACK the best possible result, and its precision.
//!
//! Switches the host's clocksource, which needs root, and restores it.

mod no_master_clock;
mod no_tsc_get;
mod no_tsc_set;
mod other_rate;
mod precision;

use kvm_clock_guest_selftests::{clocksource, prelude::*};
use pvclock::abi::FLAG_FALLBACK;

/// vCPUs of the VMs.
const VCPUS: u32 = 2;

/// KVM, and a clocksource of the host beside the TSC.
struct Host {
    kvm: Kvm,
    other_clocksource: String,
}

fn main() -> ExitCode {
    let cases = [
        no_master_clock::cases(),
        other_rate::cases(),
        precision::cases(),
        no_tsc_get::cases(),
        no_tsc_set::cases(),
    ];
    let requirements = || {
        Ok(Host {
            kvm: require::clock_guest()?,
            other_clocksource: clocksource::other()?,
        })
    };
    ktap::main(requirements, ktap::all(cases))
}

/// `KVM_SET_VM_CLOCK_GUEST` with `mode` and FALLBACK.
fn set_or_fall_back(vm: &Vm, clock: &mut VmClock, mode: u32) -> kvm_clock::Result<()> {
    (clock.header.mode, clock.header.flags) = (mode, FLAG_FALLBACK);
    set_vm_clock_guest(vm.fd(), clock)
}

/// Fails unless GET with FALLBACK reports one instant inside the call, consistent values, and the
/// clock of KVM_GET_CLOCK. Returns them, and the longest possible duration of the call, ns.
fn ensure_valid(vm: &Vm) -> Result<(VmClock, i64)> {
    let (kvmclock_before, before) = (get_clock(vm)?.clock, rdtsc_ordered());
    let clock = get_or_fall_back(vm)?;
    let (after, kvmclock_after) = (rdtsc_ordered(), get_clock(vm)?.clock);

    let header = &clock.header;
    ensure!(
        header.host_tsc.is_between(before, after),
        "the anchor {} is not between {before} and {after}",
        header.host_tsc
    );
    let (least, most) = (kvmclock_before, kvmclock_after);
    ensure!(
        (least..=most).contains(&header.kvmclock_ns),
        "kvmclock_ns is {}, KVM_GET_CLOCK was {least} before and {most} after",
        header.kvmclock_ns
    );
    let guest_tsc = reference_transform(&clock)?.guest_tsc(header.host_tsc);
    ensure_eq!(header.guest_tsc, guest_tsc, "guest_tsc");
    let by_record = header.record.kvmclock_ns(guest_tsc);
    ensure_eq!(header.kvmclock_ns, by_record, "kvmclock_ns by the record");
    let offsets = offsets(&clock);
    let expected = vm.tsc_offsets()?;
    ensure_eq_hex!(offsets, expected, "TSC offsets of GET");
    let took = after.since(before) * 1_000_000 / u64::from(header.host_tsc_khz);
    Ok((clock, i64::try_from(took)? + 1))
}

/// Offsets and the guest's records, which a call that fails must not change.
fn visible(vm: &Vm) -> Result<(Vec<TscOffset>, Vec<ClockGuest>)> {
    Ok((vm.tsc_offsets()?, pages(vm)))
}

/// Fails unless `call`, made while `vm` is stopped, fails with `ENODATA` and changes nothing.
fn ensure_no_data(
    vm: &Vm,
    name: &str,
    call: impl FnOnce(&Vm) -> kvm_clock::Result<()>,
) -> Result<()> {
    let before = visible(vm)?;
    ensure_errno(libc::ENODATA, call(vm)).context(name.to_owned())?;
    let after = visible(vm)?;
    ensure_eq_hex!(after, before, "{name}: offsets and records");
    Ok(())
}

/// SET, mode exact, without FALLBACK.
fn set_exact(vm: &Vm, clock: &VmClock) -> kvm_clock::Result<()> {
    let mut clock = clock.clone();
    (clock.header.mode, clock.header.flags) = (MODE_EXACT, 0);
    set_vm_clock_guest(vm.fd(), &mut clock)
}
