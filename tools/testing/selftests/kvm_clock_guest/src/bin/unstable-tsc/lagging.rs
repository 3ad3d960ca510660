// SPDX-License-Identifier: GPL-2.0-only

//! A CPU comes online whose TSC is behind that of the CPU where a stopped vCPU last was: no clock of
//! any VM jumps.
//!
//! All TSCs are one here. KVM is made to believe that the vCPUs saw a later one.

use crate::{ensure_goes_on, get_or_fall_back, Host, Pinned, VCPUS};
use anyhow::{ensure, Context, Result};
use clockguest::{host::rdtsc_ordered, vmm::Vm};
use kvm_clock_guest_selftests::{
    continued::{kvm_ahead_of_raw, Span},
    fixture::derived,
    host_clock::now_ns,
    hotplug::host_cpus,
    ktap::Case,
    last_host_tsc,
};
use kvm_ioctls::Kvm;
use std::ops::Range;

/// By how much the TSC of a CPU that comes is behind, ticks: some 400 s.
const LAG: u64 = 1 << 40;

/// VMs that do not run while CPUs come.
pub(crate) struct Stopped {
    /// Pinned; all of its vCPUs saw the later TSC.
    all: Pinned,
    /// Pinned; its last vCPU alone saw it.
    last: Pinned,
    /// KVM's own clock.
    derived: Vm,
}

impl Stopped {
    pub(crate) fn new(kvm: &Kvm) -> Result<Self> {
        Ok(Self {
            all: Pinned::new(kvm)?,
            last: Pinned::new(kvm)?,
            derived: derived(kvm, VCPUS)?,
        })
    }
}

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new(
            "a CPU with a lagging TSC comes: a pinned VM",
            |host: &Host| {
                let vm = &host.lagging.all.vm;
                comes(vm, 0..VCPUS as usize)
            },
        ),
        Case::new(
            "a CPU with a lagging TSC comes: a pinned VM, one vCPU of it",
            |host: &Host| comes(&host.lagging.last.vm, VCPUS as usize - 1..VCPUS as usize),
        ),
        Case::new(
            "a CPU with a lagging TSC comes: a VM with KVM's own clock",
            |host: &Host| comes(&host.lagging.derived, 0..VCPUS as usize),
        ),
        Case::new(
            "these pinned VMs run again: their clocks go on",
            |host: &Host| {
                ensure_goes_on(&host.lagging.all).context("all vCPUs")?;
                ensure_goes_on(&host.lagging.last).context("one vCPU")
            },
        ),
    ]
}

/// By how much the clock of GET with FALLBACK is ahead of the raw one.
fn get_ahead_of_raw(vm: &Vm) -> Result<Span> {
    let before = now_ns(libc::CLOCK_MONOTONIC_RAW);
    let kvmclock_ns = get_or_fall_back(vm)?.header.kvmclock_ns;
    let after = now_ns(libc::CLOCK_MONOTONIC_RAW);
    // CAST: Below 292 years.
    let kvmclock_ns = kvmclock_ns as i64;
    Ok(Span {
        least: kvmclock_ns - after,
        most: kvmclock_ns - before,
    })
}

/// Has CPUs come, several times in a row: KVM makes up for a TSC once.
fn comes(vm: &Vm, vcpus: Range<usize>) -> Result<()> {
    const ROUNDS: u32 = 3;
    /// Far below the lag; what the host's two clocks drift apart meanwhile is not KVM's.
    const TOLERANCE_NS: i64 = 100_000_000;

    let cpu = host_cpus()?[0];
    for round in 0..ROUNDS {
        let offsets = get_or_fall_back(vm)?.vcpus;
        let before = [kvm_ahead_of_raw(vm)?, get_ahead_of_raw(vm)?];
        let gone = cpu.go_offline()?;
        last_host_tsc::set(vm, vcpus.clone(), rdtsc_ordered() + LAG)?;
        gone.come_back()?;
        let after = [kvm_ahead_of_raw(vm)?, get_ahead_of_raw(vm)?];
        for (who, before, after) in [
            ("KVM_GET_CLOCK", before[0], after[0]),
            ("GET with FALLBACK", before[1], after[1]),
        ] {
            let jump = Span {
                least: after.least - before.most,
                most: after.most - before.least,
            };
            ensure!(
                jump.least <= TOLERANCE_NS && jump.most >= -TOLERANCE_NS,
                "round {round}: {who} jumped by {jump:?} ns"
            );
        }
        let now = get_or_fall_back(vm)?.vcpus;
        ensure!(
            now == offsets,
            "round {round}: offsets were {offsets:x?}, are {now:x?}"
        );
    }
    Ok(())
}
