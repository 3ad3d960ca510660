// SPDX-License-Identifier: GPL-2.0-only

//! Pending clock requests: a SET that fails makes none, and takes none away. They cannot be seen,
//! but what KVM does about them at the next KVM_RUN can.

use crate::{both, request, Host, VCPUS};
use anyhow::{ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::{set_tsc_offset, set_vm_clock_guest, tsc_offset, VmClock};
use kvm_clock_guest_selftests::{
    clocks::pages,
    fixture::{get, make_consistent, wait_in_guest},
    ktap::{note, Case},
    payload::Payload,
    refusal::ensure_errno,
    time::HOUR_NS,
    trace::{Trace, Updates},
};
use pvclock::abi::{MODE_ADVANCE, MODE_EXACT, MODE_FREEZE};

/// pvclock flag that tells the guest it was stopped.
const PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;

/// Makes a sound SET fail; returns the errno.
type Bend = fn(&mut VmClock, &VmClock) -> i32;

/// How far a SET gets, in order: (how it is bent, given what GET says).
const FAILURES: &[(&str, Bend)] = &[
    ("header malformed", |clock, _| {
        clock.header.record.tsc_to_system_mul = 0;
        libc::EINVAL
    }),
    ("array malformed", |clock, _| {
        clock.vcpus[0].pad = 1;
        libc::EINVAL
    }),
    ("rate 1000 ppm off", |clock, _| {
        clock.header.mode = MODE_FREEZE;
        clock.header.host_tsc_khz += clock.header.host_tsc_khz / 1000;
        libc::ERANGE
    }),
    ("anchor an hour ahead", |clock, now| {
        let ticks = u64::from(now.header.host_tsc_khz) * 3_600_000;
        clock.header.host_tsc = now.header.host_tsc + ticks;
        make_consistent(clock);
        libc::ESTALE
    }),
    ("an hour backwards", |clock, now| {
        clock.header.mode = MODE_ADVANCE;
        clock.header.tai_ns = now.header.tai_ns + HOUR_NS;
        libc::ETIME
    }),
];

/// What a VM has pending when SET fails.
struct Pending {
    name: &'static str,
    vm: fn(&Host) -> Result<[Vm; 2]>,
    prepare: fn(&Vm) -> Result<()>,
    /// What is expected of it, lest nothing was pending.
    check: fn(&Vm, Updates) -> Result<()>,
    /// What of it depends on no race.
    certain: fn(Updates) -> Updates,
}

const PENDING: &[Pending] = &[
    Pending {
        name: "nothing",
        vm: |host| both(&host.kvm, VCPUS),
        prepare: |_| Ok(()),
        check: |_, updates| {
            ensure!(updates == Updates::default(), "KVM made {updates:?}");
            Ok(())
        },
        certain: |updates| updates,
    },
    Pending {
        name: "what the creation of vCPUs left",
        vm: |host| Ok([Vm::new(&host.kvm, 1)?, Vm::new(&host.kvm, VCPUS)?]),
        prepare: |_| Ok(()),
        check: |vm, updates| {
            ensure!(
                updates.master_on > 0 && updates.records >= vm.vcpus().len(),
                "KVM made {updates:?}"
            );
            Ok(())
        },
        certain: |updates| updates,
    },
    Pending {
        name: "KVM_KVMCLOCK_CTRL",
        vm: |host| both(&host.kvm, VCPUS),
        prepare: |vm| {
            for vcpu in vm.vcpus() {
                vcpu.fd().kvmclock_ctrl().context("KVM_KVMCLOCK_CTRL")?;
            }
            Ok(())
        },
        check: |vm, updates| {
            ensure!(
                updates.master() == 0 && updates.records == vm.vcpus().len(),
                "KVM made {updates:?}"
            );
            let pages = pages(vm);
            ensure!(
                pages
                    .iter()
                    .all(|page| page.flags & PVCLOCK_GUEST_STOPPED != 0),
                "the guest was not told that it was stopped: {pages:x?}"
            );
            Ok(())
        },
        certain: |updates| updates,
    },
    Pending {
        name: "the loss of the master clock",
        vm: |host| both(&host.kvm, VCPUS),
        prepare: |vm| {
            let fd = vm.vcpus()[1].fd();
            let offset = tsc_offset(&fd).context("KVM_VCPU_TSC_OFFSET")?;
            set_tsc_offset(&fd, offset.wrapping_add(1 << 30)).context("KVM_VCPU_TSC_OFFSET")
        },
        check: |_, updates| {
            ensure!(updates.master_off > 0, "KVM made {updates:?}");
            Ok(())
        },
        // Without a master clock KVM writes records whenever a vCPU changes its host CPU.
        certain: |updates| Updates {
            records: 0,
            ..updates
        },
    },
];

pub(crate) fn cases() -> Vec<Case<Host>> {
    let pending = PENDING.iter().map(|pending| {
        Case::new(
            format!("a SET that fails leaves pending: {}", pending.name),
            move |host| same_as_without(host, pending),
        )
    });
    pending
        .chain([Case::new("a SET that succeeds has all updated", success)])
        .collect()
}

/// KVM makes the very updates that it makes without a SET.
fn same_as_without(host: &Host, pending: &Pending) -> Result<()> {
    let trace = Trace::new()?;
    let control = updates(host, pending, &trace, |_| Ok(()))?;
    note(&format!("without a SET, in either VM: {control:?}"));
    let observed = updates(host, pending, &trace, fail_in_every_way)?;
    ensure!(
        observed == control,
        "KVM made {observed:?}, without a SET {control:?}"
    );
    Ok(())
}

fn fail_in_every_way(vm: &Vm) -> Result<()> {
    for (name, bend) in FAILURES {
        let now = get(vm)?;
        let mut clock = request(vm, MODE_EXACT)?;
        let errno = bend(&mut clock, &now);
        ensure_errno(errno, set_vm_clock_guest(vm.fd(), &mut clock))
            .with_context(|| name.to_string())?;
    }
    let payload = Payload::new(&request(vm, MODE_EXACT)?)?;
    payload.protect_header()?;
    ensure_errno(libc::EFAULT, payload.set(vm.fd())).context("header write-protected")
}

/// The updates that KVM makes in each VM when it runs, `call` having been made before.
fn updates(
    host: &Host,
    pending: &Pending,
    trace: &Trace,
    call: impl Fn(&Vm) -> Result<()>,
) -> Result<Vec<Updates>> {
    let vms = (pending.vm)(host)?;
    vms.iter()
        .map(|vm| {
            (pending.prepare)(vm)?;
            trace.take()?;
            call(vm)?;
            one_by_one(vm)?;
            let updates = trace.take()?;
            (pending.check)(vm, updates)?;
            Ok((pending.certain)(updates))
        })
        .collect()
}

/// Lets one vCPU run after the other, so that the number of updates depends on no race.
fn one_by_one(vm: &Vm) -> Result<()> {
    for vcpu in vm.vcpus() {
        vcpu.request_run();
        let ran = wait_in_guest(vm, vcpu.index());
        vcpu.request_stop();
        vcpu.wait_stopped()?;
        ran?;
    }
    Ok(())
}

fn success(host: &Host) -> Result<()> {
    for vm in &both(&host.kvm, VCPUS)? {
        let mut clock = request(vm, MODE_EXACT)?;
        let trace = Trace::new()?;
        set_vm_clock_guest(vm.fd(), &mut clock).context("KVM_SET_VM_CLOCK_GUEST")?;
        one_by_one(vm)?;
        let updates = trace.take()?;
        ensure!(
            updates.master_on > 0 && updates.master_off == 0 && updates.records >= vm.vcpus().len(),
            "KVM made {updates:?}"
        );
    }
    Ok(())
}
