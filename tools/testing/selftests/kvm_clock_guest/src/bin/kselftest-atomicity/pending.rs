// SPDX-License-Identifier: GPL-2.0-only

//! Pending clock requests: a SET that fails adds none and removes none. They are invisible, but
//! their effects at the next KVM_RUN are not.

use crate::{both, request, Host, VCPUS};
use kvm_clock_guest_selftests::{
    clocks::PVCLOCK_GUEST_STOPPED,
    payload::Payload,
    prelude::*,
    trace::{Trace, Updates},
};

/// Makes a valid SET fail; returns the errno.
type Mutation = fn(&mut VmClock, &VmClock) -> i32;

/// Failures in the order of SET's checks; the second argument is what GET reports.
const FAILURES: &[(&str, Mutation)] = &[
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
        clock.header.host_tsc = now.header.host_tsc.wrapping_add(ticks);
        make_consistent(clock);
        libc::ESTALE
    }),
    ("an hour backwards", |clock, now| {
        clock.header.mode = MODE_ADVANCE;
        clock.header.tai_ns = now.header.tai_ns + HOUR_NS;
        libc::ETIME
    }),
];

/// The pending requests of a VM when SET fails.
struct Pending {
    name: &'static str,
    vm: fn(&Host) -> Result<[Vm; 2]>,
    prepare: fn(&Vm) -> Result<()>,
    /// Checks that there were pending requests.
    check: fn(&Vm, Updates) -> Result<()>,
    /// The part that depends on no race.
    certain: fn(Updates) -> Updates,
}

const PENDING: &[Pending] = &[
    Pending {
        name: "nothing",
        vm: |host| both(&host.kvm, VCPUS),
        prepare: |_| Ok(()),
        check: |_, updates| {
            ensure_eq!(updates, Updates::default(), "updates");
            Ok(())
        },
        certain: |updates| updates,
    },
    Pending {
        name: "the requests of vCPU creation",
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
                "the stopped flag is not set: {pages:x?}"
            );
            Ok(())
        },
        certain: |updates| updates,
    },
    Pending {
        name: "the loss of the master clock",
        vm: |host| both(&host.kvm, VCPUS),
        prepare: |vm| {
            let offset = vm.tsc_offsets()?[1];
            Ok(vm.set_tsc_offset(1, offset.wrapping_add(1 << 30))?)
        },
        check: |_, updates| {
            ensure!(updates.master_off > 0, "KVM made {updates:?}");
            Ok(())
        },
        // Without a master clock, KVM writes records whenever a vCPU changes its host CPU.
        certain: |updates| Updates {
            records: 0,
            ..updates
        },
    },
];

pub(crate) fn cases() -> Vec<Case<Host>> {
    let pending = PENDING.iter().map(|pending| {
        Case::new(
            format!(
                "a SET that fails does not change pending requests: {}",
                pending.name
            ),
            move |host| same_as_without(host, pending),
        )
    });
    pending
        .chain([Case::new("a SET that succeeds updates all clocks", success)])
        .collect()
}

/// KVM makes the same updates as without a SET.
fn same_as_without(host: &Host, pending: &Pending) -> Result<()> {
    let trace = Trace::new()?;
    let control = updates(host, pending, &trace, |_| Ok(()))?;
    note!("without a SET, in either VM: {control:?}");
    let observed = updates(host, pending, &trace, fail_in_every_way)?;
    ensure_eq!(observed, control, "updates with and without a SET");
    Ok(())
}

fn fail_in_every_way(vm: &Vm) -> Result<()> {
    for (name, mutate) in FAILURES {
        let now = get(vm)?;
        let mut clock = request(vm, MODE_EXACT)?;
        let errno = mutate(&mut clock, &now);
        ensure_errno(errno, set_vm_clock_guest(vm.fd(), &mut clock))
            .with_context(|| name.to_string())?;
    }
    let payload = Payload::new(&request(vm, MODE_EXACT)?)?;
    payload.protect_header()?;
    ensure_errno(libc::EFAULT, payload.set(vm.fd())).context("header write-protected")
}

/// The updates that KVM makes in each VM when it runs after `call`.
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

/// Lets vCPUs run one by one, so that the number of updates depends on no race.
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
