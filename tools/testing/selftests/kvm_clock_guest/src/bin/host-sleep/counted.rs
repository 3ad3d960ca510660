// SPDX-License-Identifier: GPL-2.0-only

//! The time that the host slept counts: for the kvmclock of every VM, and for the TSC of one with
//! pinned clocks, which stay one function.
//!
//! It needs a host that sleeps for some seconds: `tools/vm/sleep --asleep 8`.

use crate::{
    expected::{all_of, for_each},
    sleep::{sleep_as, HostTsc},
    Host, VCPUS,
};
use anyhow::{bail, ensure, Context, Result};
use clockguest::{observe, vmm::Vm};
use kvm_bindings::KVM_CLOCK_HOST_TSC;
use kvm_clock::tsc_offset;
use kvm_clock_guest_selftests::{
    clocks::pages,
    fixture::{an_hour_ahead, get, reference_transform, run_a_little},
    host_clock::now_ns,
    ktap::{note, Case, Skip},
    last_host_tsc,
    time::SECOND_NS,
};
use pvclock::{
    abi::{PVCLOCK_TSC_STABLE, STATUS_HOST_TSC_STABLE, STATUS_PINNED},
    tsc::TscTransform,
};
use std::{thread, time::Duration};

/// How far off a clock may be after a sleep, whose length the host knows from a clock of whole
/// seconds.
const TOLERANCE_NS: i64 = SECOND_NS + SECOND_NS / 4;
/// The least sleep that shows against the tolerance.
const LEAST_NS: i64 = 5 * SECOND_NS;

pub(crate) fn cases(tsc: HostTsc) -> Vec<Case<Host>> {
    vec![
        Case::new("the sleep counts: VMs that were never SET", move |host| {
            never_set(host, tsc)
        }),
        Case::new("the sleep counts: pinned VMs that run", move |host| {
            running(host, tsc)
        }),
        Case::new(
            "the sleep counts: pinned VMs that are stopped",
            move |host| stopped(host, tsc, |_| Ok(()), 1),
        ),
        Case::new(
            "the sleep counts: pinned VMs that did not run for long",
            move |host| {
                // Every vCPU ioctl makes KVM look at the host's TSC.
                let wait = |_: &Vm| {
                    thread::sleep(Duration::from_secs(5));
                    Ok(())
                };
                stopped(host, tsc, wait, 1)
            },
        ),
        Case::new(
            "the sleep counts: pinned VMs that did not run since the host booted",
            move |host| {
                let age = |vm: &Vm| last_host_tsc::set(vm, 0..VCPUS as usize, 1);
                stopped(host, tsc, age, 1)
            },
        ),
        Case::new(
            "the sleep counts: pinned VMs that are stopped, 2 sleeps in a row",
            move |host| stopped(host, tsc, |_| Ok(()), 2),
        ),
        Case::new("pinned clocks stay stable over the sleep", move |host| {
            stable(host, tsc)
        }),
    ]
}

/// The clocks of a VM at some instant between two readings of CLOCK_BOOTTIME.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    booted_ns: [i64; 2],
    /// By KVM_GET_CLOCK.
    kvmclock_ns: u64,
    guest_tsc: Option<u64>,
}

impl Clocks {
    /// As KVM_GET_CLOCK reports.
    fn kvmclock(vm: &Vm) -> Result<Self> {
        let before = now_ns(libc::CLOCK_BOOTTIME);
        let kvmclock_ns = vm.fd().get_clock().context("KVM_GET_CLOCK")?.clock;
        Ok(Self {
            booted_ns: [before, now_ns(libc::CLOCK_BOOTTIME)],
            kvmclock_ns,
            guest_tsc: None,
        })
    }

    /// The guest TSC as well, as GET reports.
    fn all(vm: &Vm) -> Result<Self> {
        let before = now_ns(libc::CLOCK_BOOTTIME);
        let guest_tsc = get(vm)?.header.guest_tsc;
        Ok(Self {
            booted_ns: [before, before],
            guest_tsc: Some(guest_tsc),
            ..Self::kvmclock(vm)?
        })
    }

    /// Fails unless both clocks grew by as much as CLOCK_BOOTTIME since `earlier`, `sleeps` ago.
    fn ensure_counts(&self, vm: &Vm, earlier: &Self, sleeps: i64, when: &str) -> Result<()> {
        let booted = self.booted_ns[1] - earlier.booted_ns[0];
        // CAST: The sign of a difference mod 2^64 is the order.
        let kvmclock = self.kvmclock_ns.wrapping_sub(earlier.kvmclock_ns) as i64;
        let mut grew = vec![("KVM_GET_CLOCK", kvmclock)];
        if let (Some(now), Some(then)) = (self.guest_tsc, earlier.guest_tsc) {
            // CAST: As above.
            let ticks = now.wrapping_sub(then) as i64;
            let ns = i128::from(ticks) * 1_000_000 / i128::from(vm.tsc_khz()?);
            grew.push(("the guest TSC", i64::try_from(ns)?));
        }
        for (clock, ns) in &grew {
            ensure!(
                (ns - booted).abs() <= sleeps * TOLERANCE_NS,
                "{when}, {clock} grew by {ns} ns, CLOCK_BOOTTIME by {booted} ns; {grew:?}"
            );
        }
        Ok(())
    }
}

/// Has the host sleep for long enough to show.
fn sleep_long(tsc: HostTsc) -> Result<()> {
    let asleep = || now_ns(libc::CLOCK_BOOTTIME) - now_ns(libc::CLOCK_MONOTONIC);
    let before = asleep();
    sleep_as(tsc)?;
    let slept = asleep() - before;
    if slept < LEAST_NS {
        bail!(Skip(format!(
            "the host slept for {slept} ns, not {LEAST_NS}: tools/vm/sleep --asleep 8"
        )));
    }
    Ok(())
}

/// Pinned an hour ahead of any clock of KVM's own, at the rate of time.
fn pinned(host: &Host) -> Result<Vec<Vm>> {
    host.pinning(an_hour_ahead)
}

fn never_set(host: &Host, tsc: HostTsc) -> Result<()> {
    let vms = host.derived()?;
    let before = all_of(&vms, Clocks::kvmclock)?;
    sleep_long(tsc)?;
    for_each(&vms, &before, |vm, before| {
        let at_once = Clocks::kvmclock(vm)?;
        run_a_little(vm)?;
        Clocks::kvmclock(vm)?.ensure_counts(vm, before, 1, "after the guest ran")?;
        // KVM reads its master clock of before until a vCPU runs.
        if let Err(error) = at_once.ensure_counts(vm, before, 1, "before that") {
            note(&format!("{error:#}"));
        }
        Ok(())
    })
}

/// Fails unless GET, and the record of every vCPU at that vCPU's TSC, say exactly what KVM_GET_CLOCK
/// does.
fn ensure_one_function(vm: &Vm, when: &str, ran: bool) -> Result<()> {
    let clock = get(vm)?;
    let relation = reference_transform(&clock)?;
    let mut functions = vec![("GET".to_owned(), clock.header.record, relation)];
    if ran {
        for (vcpu, page) in vm.vcpus().iter().zip(pages(vm)) {
            let offset = tsc_offset(&vcpu.fd()).context("KVM_VCPU_TSC_OFFSET")?;
            let relation = TscTransform { offset, ..relation };
            functions.push((format!("vCPU {}", vcpu.index()), page, relation));
        }
    }
    let data = vm.fd().get_clock().context("KVM_GET_CLOCK")?;
    ensure!(
        data.flags & KVM_CLOCK_HOST_TSC != 0,
        "{when}, KVM_GET_CLOCK reports no host TSC: flags {:#x}",
        data.flags
    );
    for (who, record, relation) in functions {
        let ns = record.kvmclock_ns(relation.guest_tsc(data.host_tsc));
        ensure!(
            ns == data.clock,
            "{when}, {who} says {ns} ns at host TSC {:#x}, KVM_GET_CLOCK {} ns",
            data.host_tsc,
            data.clock
        );
    }
    Ok(())
}

/// Looks at the stopped VMs at once, and when their guests ran.
fn ensure_count(vms: &[Vm], before: &[Clocks], sleeps: i64) -> Result<()> {
    for_each(vms, before, |vm, before| {
        let now = Clocks::all(vm)?;
        ensure_one_function(vm, "before the guest ran", false)?;
        now.ensure_counts(vm, before, sleeps, "before the guest ran")
    })?;
    for_each(vms, before, |vm, before| {
        run_a_little(vm)?;
        ensure_one_function(vm, "after the guest ran", true)?;
        Clocks::all(vm)?.ensure_counts(vm, before, sleeps, "after the guest ran")
    })
}

fn running(host: &Host, tsc: HostTsc) -> Result<()> {
    let vms = pinned(host)?;
    let before = all_of(&vms, Clocks::all)?;
    for vm in &vms {
        observe::run(vm)?;
    }
    sleep_long(tsc)?;
    for vm in &vms {
        vm.stop()?;
    }
    ensure_count(&vms, &before, 1)
}

fn stopped(
    host: &Host,
    tsc: HostTsc,
    prepare: impl Fn(&Vm) -> Result<()>,
    sleeps: i64,
) -> Result<()> {
    let vms = pinned(host)?;
    let before = all_of(&vms, Clocks::all)?;
    for _ in 0..sleeps {
        vms.iter().try_for_each(&prepare)?;
        sleep_long(tsc)?;
    }
    ensure_count(&vms, &before, sleeps)
}

/// GET and the guest's records say that the clock is stable: there is one function, and the host's
/// TSC is good.
fn stable(host: &Host, tsc: HostTsc) -> Result<()> {
    let vms = pinned(host)?;
    sleep_as(tsc)?;
    let ensure_stable = |vm: &Vm, when: &str| {
        let header = get(vm)?.header;
        let status = STATUS_PINNED | STATUS_HOST_TSC_STABLE;
        ensure!(
            header.status == status && header.record.flags & PVCLOCK_TSC_STABLE != 0,
            "{when}, GET reports status {:#x} and flags {:#x}, expected {status:#x} and \
             {PVCLOCK_TSC_STABLE:#x}",
            header.status,
            header.record.flags
        );
        Ok(())
    };
    for vm in &vms {
        ensure_stable(vm, "before the guest ran")?;
        run_a_little(vm)?;
        ensure_stable(vm, "after the guest ran")?;
        for (index, page) in pages(vm).iter().enumerate() {
            ensure!(
                page.flags & PVCLOCK_TSC_STABLE != 0,
                "vCPU {index} reads flags {:#x}",
                page.flags
            );
        }
    }
    Ok(())
}
