// SPDX-License-Identifier: GPL-2.0-only

//! The procedures that the series documents, step by step: live update on one host, which restores
//! the offset unchanged, and migration, which computes it from KVM_GET_CLOCK and a time difference.

use crate::{
    get,
    list::{tsc_attr, Access, TscScale, KVM_VCPU_TSC_SCALE},
    record, set, Host, VCPUS,
};
use clockguest::measure::{compare, ClockError};
use kvm_bindings::{kvm_clock_data, KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME};
use kvm_clock_guest_selftests::{fixture, prelude::*};

/// Live updates of a guest.
const CYCLES: u32 = 10;

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new(
            "a program for the list's ioctls: live update, TSC and kvmclock to the bit",
            live_update,
        ),
        Case::new(
            "a program for the list's ioctls: migration, kvmclock the same function of the TSC",
            migration,
        ),
    ]
}

/// (2) The offset of a vCPU, and its scale, which only exists with hardware scaling.
fn offset_and_scale(fd: &VcpuFd) -> Result<(TscOffset, Option<TscScale>)> {
    let mut scale = TscScale::default();
    let address = (&raw mut scale).expose_provenance();
    // SAFETY: KVM writes the 16 bytes of `scale`, of which any are a value.
    let scale = match unsafe { tsc_attr(fd, Access::Get, KVM_VCPU_TSC_SCALE, address) } {
        Ok(()) => Some(scale),
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => None,
        Err(e) => return Err(e).context("KVM_VCPU_TSC_SCALE"),
    };
    Ok((tsc_offset(fd).context("KVM_VCPU_TSC_OFFSET")?, scale))
}

fn scaled(host_tsc: HostTsc, scale: Option<TscScale>) -> u64 {
    scale.map_or(host_tsc.0, |scale| {
        let product = u128::from(host_tsc.0) * u128::from(scale.tsc_ratio);
        // CAST: mod 2^64, as TSC values are.
        (product >> scale.tsc_frac_bits) as u64
    })
}

/// A VM with the memory and registers of `vm`, and no clock yet.
fn successor(host: &Host, vm: Vm) -> Result<Vm> {
    let khz = vm.tsc_khz()?;
    let vm = fixture::successor(&host.kvm, vm)?;
    // (4)
    fixture::set_tsc_khz(&vm, 0, khz)?;
    Ok(vm)
}

/// Restores the offset, then the record of the boot vCPU.
fn live_update(host: &Host) -> Result<()> {
    let mut vm = derived(&host.kvm, VCPUS)?;
    let before = run_a_little(&vm)?;
    let clocks = Clocks::of(&vm)?;
    for cycle in 0..CYCLES {
        let info = get(&vm, 0)?;
        let offsets = vm.tsc_offsets()?;
        vm = successor(host, vm)?;
        for (vcpu, offset) in vm.vcpus().iter().zip(offsets) {
            vm.set_tsc_offset(vcpu.index(), offset)?;
        }
        set(&vm, 0, &info)?;
        let after = run_a_little(&vm)?;
        let found = compare(&before, &after).with_context(|| format!("cycle {cycle}"))?;
        ensure!(
            found.error == ClockError::default()
                && found.offsets_identical
                && found.records_identical,
            "cycle {cycle}: {found:?}, expected no error"
        );
    }
    clocks
        .as_pinned()
        .ensure_is(&Clocks::of(&vm)?, "after all cycles")
}

fn migration(host: &Host) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    // (1) to (3)
    let there = get_clock(&vm)?;
    ensure_has_host_tsc(&there, "of the source")?;
    let khz = i128::from(vm.tsc_khz()?);
    let mut guest_tscs = Vec::new();
    for vcpu in vm.vcpus() {
        let (offset, scale) = offset_and_scale(&vcpu.fd())?;
        let guest_ticks = scaled(HostTsc(there.host_tsc), scale);
        guest_tscs.push(GuestTsc(guest_ticks).wrapping_add(offset.0));
    }
    let info = get(&vm, 0)?;

    let vm = successor(host, vm)?;
    // (5): in the series KVM_GET_CLOCK also reports the pair before the first KVM_RUN; this kernel
    // only reports it for another VM.
    let early = get_clock(&vm)?;
    if early.flags & KVM_CLOCK_HOST_TSC == 0 {
        note!("KVM_GET_CLOCK of a VM that never ran reports no host_tsc");
    }
    let here = get_clock(&host.vms[0])?;
    ensure_has_host_tsc(&here, "of the destination")?;
    // (6), (7)
    let elapsed = i128::from(here.realtime) - i128::from(there.realtime);
    let ticks = elapsed * khz / 1_000_000;
    for (vcpu, guest_tsc) in vm.vcpus().iter().zip(&guest_tscs) {
        let fd = vcpu.fd();
        let (_, scale) = offset_and_scale(&fd)?;
        // CAST: mod 2^64, as TSC values are.
        let advanced = guest_tsc.wrapping_add(ticks as u64);
        let offset = advanced.wrapping_sub(scaled(HostTsc(here.host_tsc), scale));
        set_tsc_offset(&fd, TscOffset(offset.0)).context("KVM_VCPU_TSC_OFFSET")?;
    }
    // (8): it succeeds, so (9) is not needed.
    set(&vm, 0, &info)?;
    for (index, vcpu) in run_a_little(&vm)?.vcpus.iter().enumerate() {
        let (observed, expected) = (vcpu.record, record(&info));
        ensure_eq_hex!(without_version(observed), expected, "vCPU {index}'s record");
    }
    Ok(())
}

fn ensure_has_host_tsc(clock: &kvm_clock_data, of: &str) -> Result<()> {
    const PAIR: u32 = KVM_CLOCK_HOST_TSC | KVM_CLOCK_REALTIME;

    if clock.flags & PAIR != PAIR {
        bail!(
            "KVM_GET_CLOCK {of} has flags {:#x}, needs {PAIR:#x}",
            clock.flags
        );
    }
    Ok(())
}
