// SPDX-License-Identifier: GPL-2.0-only

//! kvmclock of every VM counts the time that the host slept, and so does the TSC of a VM with a
//! pinned clock; both stay one function.
//!
//! It needs a host that sleeps for some seconds: `tools/vm/host sleep --asleep 8`.

use crate::{
    expected::{all_of, for_each},
    sleep::{sleep_as, TscInSleep},
    Host, VCPUS,
};
use kvm_clock_guest_selftests::{
    expect::get_clock_and_host_tsc, host_clock::now_ns, host_module, prelude::*,
};
use std::thread;

/// The error of a clock after a sleep, whose length the host measures in whole seconds.
const TOLERANCE_NS: i64 = SECOND_NS + SECOND_NS / 4;
/// The shortest sleep that exceeds the tolerance.
const LEAST_NS: i64 = 5 * SECOND_NS;

pub(crate) fn cases(tsc: TscInSleep) -> Vec<Case<Host>> {
    vec![
        Case::new(
            "clocks count the sleep: VMs that were never SET",
            move |host| never_set(host, tsc),
        ),
        Case::new("clocks count the sleep: pinned VMs that run", move |host| {
            running(host, tsc)
        }),
        Case::new(
            "clocks count the sleep: pinned VMs that are stopped",
            move |host| stopped(host, tsc, |_| Ok(()), 1),
        ),
        Case::new(
            "clocks count the sleep: pinned VMs that did not run for long",
            move |host| {
                // Every vCPU ioctl makes KVM read the host TSC.
                let wait = |_: &Vm| {
                    thread::sleep(Duration::from_secs(5));
                    Ok(())
                };
                stopped(host, tsc, wait, 1)
            },
        ),
        Case::new(
            "clocks count the sleep: pinned VMs that did not run since the host booted",
            move |host| {
                let age =
                    |vm: &Vm| host_module::set_last_host_tsc(vm, 0..VCPUS as usize, HostTsc(1));
                stopped(host, tsc, age, 1)
            },
        ),
        Case::new(
            "clocks count the sleep: pinned VMs that are stopped, 2 sleeps in a row",
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
    guest_tsc: Option<GuestTsc>,
}

impl Clocks {
    /// As KVM_GET_CLOCK reports.
    fn kvmclock(vm: &Vm) -> Result<Self> {
        let before = now_ns(libc::CLOCK_BOOTTIME);
        let kvmclock_ns = get_clock(vm)?.clock;
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

    /// Fails unless both clocks grew as much as CLOCK_BOOTTIME since `earlier`, `sleeps` ago.
    fn ensure_counts(&self, vm: &Vm, earlier: &Self, sleeps: i64, when: &str) -> Result<()> {
        let booted = self.booted_ns[1] - earlier.booted_ns[0];
        // CAST: The sign of a difference mod 2^64 is the order.
        let kvmclock = self.kvmclock_ns.wrapping_sub(earlier.kvmclock_ns) as i64;
        let mut grew = vec![("KVM_GET_CLOCK", kvmclock)];
        if let (Some(now), Some(then)) = (self.guest_tsc, earlier.guest_tsc) {
            // CAST: As above.
            let ticks = now.since(then) as i64;
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

/// Suspends the host, and skips the case if it did not sleep long enough.
fn sleep_long(tsc: TscInSleep) -> Result<()> {
    let asleep = || now_ns(libc::CLOCK_BOOTTIME) - now_ns(libc::CLOCK_MONOTONIC);
    let before = asleep();
    sleep_as(tsc)?;
    let slept = asleep() - before;
    if slept < LEAST_NS {
        bail!(Skip(format!(
            "the host slept for {slept} ns, not {LEAST_NS}: tools/vm/host sleep --asleep 8"
        )));
    }
    Ok(())
}

/// VMs whose clocks are pinned an hour ahead.
fn pinned(host: &Host) -> Result<Vec<Vm>> {
    host.pinning(an_hour_ahead)
}

fn never_set(host: &Host, tsc: TscInSleep) -> Result<()> {
    let vms = host.derived()?;
    let before = all_of(&vms, Clocks::kvmclock)?;
    sleep_long(tsc)?;
    for_each(&vms, &before, |vm, before| {
        let immediately = Clocks::kvmclock(vm)?;
        run_a_little(vm)?;
        Clocks::kvmclock(vm)?.ensure_counts(vm, before, 1, "after the guest ran")?;
        // KVM uses its former master clock until a vCPU runs.
        if let Err(error) = immediately.ensure_counts(vm, before, 1, "before that") {
            note!("{error:#}");
        }
        Ok(())
    })
}

/// Fails unless GET, and the record of every vCPU at that vCPU's TSC, are exactly KVM_GET_CLOCK.
fn ensure_one_function(vm: &Vm, when: &str, ran: bool) -> Result<()> {
    let clock = get(vm)?;
    let transform = reference_transform(&clock)?;
    let mut functions = vec![("GET".to_owned(), clock.header.record, transform)];
    if ran {
        for (vcpu, page) in vm.vcpus().iter().zip(pages(vm)) {
            let transform = vcpu_transform(&vcpu.fd())?;
            functions.push((format!("vCPU {}", vcpu.index()), page, transform));
        }
    }
    let data = get_clock_and_host_tsc(vm).context(when.to_owned())?;
    for (name, record, transform) in functions {
        let ns = record.kvmclock_ns(transform.guest_tsc(HostTsc(data.host_tsc)));
        ensure_eq!(data.clock, ns, "{when}, KVM_GET_CLOCK against {name}, ns");
    }
    Ok(())
}

/// Checks the stopped VMs immediately, and after their guests ran.
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

fn running(host: &Host, tsc: TscInSleep) -> Result<()> {
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
    tsc: TscInSleep,
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

/// GET and the guest's records have the stable flag: there is one function, and the host TSC is
/// stable.
fn stable(host: &Host, tsc: TscInSleep) -> Result<()> {
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
