// SPDX-License-Identifier: GPL-2.0-only

//! Saved clocks, changes of them, and checks of the clocks of a VM.

use clockguest::method::atomic::with_vcpus;
use kvm_clock::{Error, HostId, ModeChoice, Outcome, Policy, SavedClocks};
use kvm_clock_guest_selftests::{host_clock::clock_and_tsc, prelude::*};

/// How far the checks' readings of two clocks may be apart, ns; far below the tests' hours.
const SLACK_NS: i128 = 1_000_000;

/// Saves the clocks of the stopped `vm`.
pub(crate) fn save(vm: &Vm) -> Result<SavedClocks> {
    let host = HostId::read()?;
    Ok(with_vcpus(vm, |vcpus| {
        SavedClocks::save(vm.fd(), vcpus, &host)
    })?)
}

/// Saved clocks of `vm`, changed by `change`.
pub(crate) fn save_changed(vm: &Vm, change: impl FnOnce(&mut VmClock)) -> Result<SavedClocks> {
    let saved = save(vm)?;
    let mut clock = saved.clock()?;
    change(&mut clock);
    Ok(SavedClocks::new(&clock, saved.tsc_khz(), saved.host()))
}

/// Restores clocks in the stopped `vm`.
pub(crate) fn restore(vm: &Vm, saved: &SavedClocks, policy: &Policy) -> Result<Outcome, Error> {
    with_vcpus(vm, |vcpus| saved.restore(vm.fd(), vcpus, policy))
}

/// The policy with this mode.
pub(crate) fn always(mode: kvm_clock::Mode) -> Policy {
    Policy {
        mode: ModeChoice::Always(mode),
        ..Policy::default()
    }
}

/// The policy of a host with this ID.
pub(crate) fn on_host(boot_id: &str) -> Policy {
    Policy {
        host: Some(HostId::new(boot_id)),
        ..Policy::default()
    }
}

/// The guest's TSC at the instant of a reading of TAI, and by how many ns it differs from what mode
/// advance has to make it.
pub(crate) fn advance_error_ns(vm: &Vm, saved: &VmClock) -> Result<i128> {
    let now = clock_and_tsc(libc::CLOCK_TAI)?;
    let transform = vcpu_transform(&vm.vcpus()[0].fd())?;
    let header = &saved.header;
    let khz = i128::from(header.host_tsc_khz);
    let ticks = transform.guest_tsc(now.host_tsc[0]).since(header.guest_tsc);
    let passed_ns = i128::from(ticks) * 1_000_000 / khz;
    Ok(passed_ns - i128::from(now.ns - header.tai_ns))
}

/// Fails unless the guest's TSC is what mode advance has to make it, and kvmclock is the saved
/// function of it, to `kvmclock_ns`.
pub(crate) fn ensure_advanced(vm: &Vm, saved: &VmClock, kvmclock_ns: u32) -> Result<()> {
    let error_ns = advance_error_ns(vm, saved)?;
    ensure!(
        error_ns.abs() < SLACK_NS,
        "the guest's TSC is {error_ns} ns ahead of elapsed TAI"
    );
    ensure_function(vm, saved, kvmclock_ns)
}

/// Fails unless the guest's clocks continue from their saved values: less than a minute passed.
pub(crate) fn ensure_frozen(vm: &Vm, saved: &VmClock, kvmclock_ns: u32) -> Result<()> {
    let transform = vcpu_transform(&vm.vcpus()[0].fd())?;
    let ticks = transform
        .guest_tsc(rdtsc_ordered())
        .since(saved.header.guest_tsc);
    let minute = 60_000 * u64::from(saved.header.host_tsc_khz);
    ensure!(ticks < minute, "the guest's TSC advanced by {ticks} ticks");
    ensure_function(vm, saved, kvmclock_ns)
}

/// Fails unless all TSC offsets have the saved differences, and KVM_GET_CLOCK is the saved function
/// of the guest's TSC, to `within_ns`.
pub(crate) fn ensure_function(vm: &Vm, saved: &VmClock, within_ns: u32) -> Result<()> {
    let (offsets, expected) = (vm.tsc_offsets()?, offsets(saved));
    let diffs = |of: &[TscOffset]| {
        of.iter()
            .map(|offset| offset.since(of[0]))
            .collect::<Vec<_>>()
    };
    let (actual, expected) = (diffs(&offsets), diffs(&expected));
    ensure_eq_hex!(actual, expected, "differences of the TSC offsets");
    let error_ns = kvmclock_error_ns(vm, &saved.header.record)?;
    note!("kvmclock is {error_ns} ns ahead");
    ensure!(
        error_ns.unsigned_abs() <= u64::from(within_ns),
        "kvmclock is {error_ns} ns ahead of the saved function of the TSC, {within_ns} ns reported"
    );
    Ok(())
}

/// KVM_GET_CLOCK minus the value of `record` at the same host TSC, ns.
fn kvmclock_error_ns(vm: &Vm, record: &ClockGuest) -> Result<i64> {
    let transform = vcpu_transform(&vm.vcpus()[0].fd())?;
    let data = get_clock(vm)?;
    ensure!(
        data.flags & kvm_clock::KVM_CLOCK_HOST_TSC != 0,
        "KVM_GET_CLOCK has no host TSC"
    );
    let expected = record.kvmclock_ns(transform.guest_tsc(HostTsc(data.host_tsc)));
    // CAST: The signed difference of values mod 2^64.
    Ok(data.clock.wrapping_sub(expected) as i64)
}
