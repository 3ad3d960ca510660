// SPDX-License-Identifier: GPL-2.0-only

//! A CPU comes online whose TSC is behind that of the CPU where a stopped vCPU last ran: no VM's
//! clock jumps.
//!
//! All TSCs of the host are equal. The test sets the host TSC that KVM last saw for the vCPUs to a
//! later value.

use crate::{ensure_continues, Host, Pinned, VCPUS};
use kvm_clock_guest_selftests::{
    continued::{ahead_of_raw, kvm_ahead_of_raw, Span},
    host_module,
    hotplug::host_cpus,
    prelude::*,
};
use std::ops::Range;

/// The distance by which the TSC of the new CPU is behind, ticks: some 400 s.
const LAG: u64 = 1 << 40;

/// VMs that do not run while CPUs come online.
pub(crate) struct Stopped {
    /// With a pinned clock; all of its vCPUs saw the later TSC.
    all: Pinned,
    /// With a pinned clock; only its last vCPU saw the later TSC.
    last: Pinned,
    /// With a derived clock.
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
            "a CPU with a lagging TSC comes online: a pinned VM",
            |host: &Host| {
                let vm = &host.lagging.all.vm;
                comes(vm, 0..VCPUS as usize)
            },
        ),
        Case::new(
            "a CPU with a lagging TSC comes online: one vCPU of a pinned VM",
            |host: &Host| comes(&host.lagging.last.vm, VCPUS as usize - 1..VCPUS as usize),
        ),
        Case::new(
            "a CPU with a lagging TSC comes online: a VM with a derived clock",
            |host: &Host| comes(&host.lagging.derived, 0..VCPUS as usize),
        ),
        Case::new(
            "these pinned VMs run again: their clocks continue",
            |host: &Host| {
                ensure_continues(&host.lagging.all).context("all vCPUs")?;
                ensure_continues(&host.lagging.last).context("one vCPU")
            },
        ),
    ]
}

/// How far the clock of GET with FALLBACK is ahead of the raw clock.
fn get_ahead_of_raw(vm: &Vm) -> Result<Span> {
    ahead_of_raw(|| Ok(get_or_fall_back(vm)?.header.kvmclock_ns))
}

/// A CPU comes online several times: KVM compensates each lag once.
fn comes(vm: &Vm, vcpus: Range<usize>) -> Result<()> {
    const ROUNDS: u32 = 3;
    /// Far below the lag, and above the drift of the host's two clocks.
    const TOLERANCE_NS: i64 = 100_000_000;

    let cpu = host_cpus()?[0];
    for round in 0..ROUNDS {
        let offsets = get_or_fall_back(vm)?.vcpus;
        let before = [kvm_ahead_of_raw(vm)?, get_ahead_of_raw(vm)?];
        let gone = cpu.go_offline()?;
        host_module::set_last_host_tsc(vm, vcpus.clone(), rdtsc_ordered().wrapping_add(LAG))?;
        gone.come_back()?;
        let after = [kvm_ahead_of_raw(vm)?, get_ahead_of_raw(vm)?];
        for (ioctl, before, after) in [
            ("KVM_GET_CLOCK", before[0], after[0]),
            ("GET with FALLBACK", before[1], after[1]),
        ] {
            let jump = Span {
                least: after.least - before.most,
                most: after.most - before.least,
            };
            ensure!(
                jump.least <= TOLERANCE_NS && jump.most >= -TOLERANCE_NS,
                "round {round}: {ioctl} jumped by {jump:?} ns"
            );
        }
        let now = get_or_fall_back(vm)?.vcpus;
        ensure_eq_hex!(now, offsets, "round {round}: vCPUs of GET");
    }
    Ok(())
}
