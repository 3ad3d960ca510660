// SPDX-License-Identifier: GPL-2.0-only

//! The procedures that the series documents, step by step: live update on one host, where the
//! offset is put back as it is, and migration, where it is computed from KVM_GET_CLOCK and a time
//! difference.

use crate::{
    get,
    list::{tsc_attr, Access, TscScale, KVM_VCPU_TSC_SCALE},
    record, set, Host, VCPUS,
};
use anyhow::{bail, ensure, Context, Result};
use clockguest::{
    measure::{compare, ClockError},
    vmm::Vm,
};
use kvm_bindings::{kvm_clock_data, KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME};
use kvm_clock::{set_tsc_offset, tsc_offset};
use kvm_clock_guest_selftests::{
    clocks::Clocks,
    fixture::{derived, run_a_little},
    ktap::{note, Case},
};
use kvm_ioctls::VcpuFd;

/// Times that a guest is carried over.
const CYCLES: u32 = 10;

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new(
            "a program of the series: live update, TSC and kvmclock to the bit",
            live_update,
        ),
        Case::new(
            "a program of the series: migration, kvmclock the same function of the TSC",
            migration,
        ),
    ]
}

/// (2) offset and scale of a vCPU, which without hardware scaling does not exist.
fn offset_and_scale(fd: &VcpuFd) -> Result<(u64, Option<TscScale>)> {
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

fn scaled(host_tsc: u64, scale: Option<TscScale>) -> u64 {
    scale.map_or(host_tsc, |scale| {
        let product = u128::from(host_tsc) * u128::from(scale.tsc_ratio);
        // CAST: mod 2^64, as TSC values are.
        (product >> scale.tsc_frac_bits) as u64
    })
}

fn clock_of(vm: &Vm) -> Result<kvm_clock_data> {
    vm.fd().get_clock().context("KVM_GET_CLOCK")
}

/// A VM with the memory and registers of `vm`, and no clock yet.
fn successor(host: &Host, vm: Vm) -> Result<Vm> {
    let (state, khz) = (vm.save()?, vm.tsc_khz()?);
    drop(vm);
    let vm = Vm::empty(&host.kvm, VCPUS)?;
    vm.load(&state)?;
    for vcpu in vm.vcpus() {
        // (4)
        vcpu.fd().set_tsc_khz(khz).context("KVM_SET_TSC_KHZ")?;
    }
    Ok(vm)
}

/// The same offset, then the record of the boot vCPU.
fn live_update(host: &Host) -> Result<()> {
    let mut vm = derived(&host.kvm, VCPUS)?;
    let before = run_a_little(&vm)?;
    let clocks = Clocks::of(&vm)?;
    for cycle in 0..CYCLES {
        let info = get(&vm, 0)?;
        let offsets = vm.tsc_offsets()?;
        vm = successor(host, vm)?;
        for (vcpu, offset) in vm.vcpus().iter().zip(offsets) {
            set_tsc_offset(&vcpu.fd(), offset).context("KVM_VCPU_TSC_OFFSET")?;
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
    Clocks {
        pinned: true,
        ..clocks
    }
    .ensure_is(&Clocks::of(&vm)?, "after all cycles")
}

fn migration(host: &Host) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    // (1) to (3)
    let there = clock_of(&vm)?;
    ensure_has_host_tsc(&there, "of the source")?;
    let khz = i128::from(vm.tsc_khz()?);
    let mut guest_tscs = Vec::new();
    for vcpu in vm.vcpus() {
        let (offset, scale) = offset_and_scale(&vcpu.fd())?;
        guest_tscs.push(scaled(there.host_tsc, scale).wrapping_add(offset));
    }
    let info = get(&vm, 0)?;

    let vm = successor(host, vm)?;
    // (5): the series lets KVM_GET_CLOCK tell the pair before the first KVM_RUN too; here another
    // VM must be asked.
    let early = clock_of(&vm)?;
    if early.flags & KVM_CLOCK_HOST_TSC == 0 {
        note("KVM_GET_CLOCK of a VM that never ran tells no host_tsc");
    }
    let here = clock_of(&host.vms[0])?;
    ensure_has_host_tsc(&here, "of the destination")?;
    // (6), (7)
    let elapsed = i128::from(here.realtime) - i128::from(there.realtime);
    let ticks = elapsed * khz / 1_000_000;
    for (vcpu, guest_tsc) in vm.vcpus().iter().zip(&guest_tscs) {
        let fd = vcpu.fd();
        let (_, scale) = offset_and_scale(&fd)?;
        // CAST: mod 2^64, as TSC values are.
        let due = guest_tsc.wrapping_add(ticks as u64);
        let offset = due.wrapping_sub(scaled(here.host_tsc, scale));
        set_tsc_offset(&fd, offset).context("KVM_VCPU_TSC_OFFSET")?;
    }
    // (8): accepted, so (9) is not needed.
    set(&vm, 0, &info)?;
    for (index, vcpu) in run_a_little(&vm)?.vcpus.iter().enumerate() {
        let (observed, expected) = (vcpu.record, record(&info));
        ensure!(
            kvm_clock_guest_selftests::clocks::without_version(observed) == expected,
            "vCPU {index} reads {observed:x?}, expected {expected:x?}"
        );
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
