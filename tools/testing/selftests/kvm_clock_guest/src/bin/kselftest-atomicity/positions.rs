// SPDX-License-Identifier: GPL-2.0-only

//! Each position in the array, and each vCPU that may run.

use crate::{ensure_done, request, Host, MODES, VCPUS};
use kvm_clock_guest_selftests::{payload::Payload, prelude::*};

/// No vCPU has this id.
const UNKNOWN: u32 = 0x7fff;

/// A change of one position of a valid array.
type Mutation = fn(&mut Vec<ClockGuestVcpu>, usize);

const MUTATIONS: &[(&str, Mutation)] = &[
    ("padding not 0", |vcpus, at| vcpus[at].pad = 1),
    ("unknown vCPU", |vcpus, at| vcpus[at].vcpu_id = UNKNOWN),
    ("highest possible id", |vcpus, at| {
        vcpus[at].vcpu_id = u32::MAX
    }),
    ("duplicate", |vcpus, at| {
        vcpus[at] = vcpus[(at + 1) % vcpus.len()]
    }),
    ("missing", |vcpus, at| {
        vcpus.remove(at);
    }),
    ("extra duplicate", |vcpus, at| vcpus.insert(at, vcpus[at])),
    ("extra unknown vCPU", |vcpus, at| {
        let vcpu_id = UNKNOWN;
        vcpus.insert(
            at,
            ClockGuestVcpu {
                vcpu_id,
                ..vcpus[at]
            },
        );
    }),
];

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mutated_cases = MUTATIONS.iter().map(|&(name, mutate)| {
        Case::new(
            format!("EINVAL SET: {name}, at each position"),
            move |host| each(|at, mode| mutated(host, mutate, at, mode)),
        )
    });
    mutated_cases
        .chain([
            Case::new("EFAULT SET: array ends at each position", |host| {
                each(|at, mode| cut(host, at, mode))
            }),
            Case::new("EBUSY SET: each vCPU alone in KVM_RUN", |host| {
                each(|at, mode| busy(host, at, mode))
            }),
            // Otherwise the cases above might fail for another reason.
            Case::new("SET succeeds with an array in any order", any_order),
        ])
        .collect()
}

/// Calls `case` for all positions, and for all modes.
fn each(case: impl Fn(usize, u32) -> Result<()>) -> Result<()> {
    for at in 0..VCPUS as usize {
        let (name, mode) = MODES[at % MODES.len()];
        case(at, mode).with_context(|| format!("position {at}, mode {name}"))?;
    }
    Ok(())
}

fn mutated(host: &Host, mutate: Mutation, at: usize, mode: u32) -> Result<()> {
    for vm in &host.vms {
        let mut clock = request(vm, mode)?;
        mutate(&mut clock.vcpus, at);
        make_consistent(&mut clock);
        ensure_refused(vm, libc::EINVAL, |fd| set_vm_clock_guest(fd, &mut clock))?;
    }
    Ok(())
}

fn cut(host: &Host, at: usize, mode: u32) -> Result<()> {
    for vm in &host.vms {
        let payload = Payload::with_array_cut(&request(vm, mode)?, at)?;
        ensure_refused(vm, libc::EFAULT, |fd| payload.set(fd))?;
    }
    Ok(())
}

fn busy(host: &Host, at: usize, mode: u32) -> Result<()> {
    for vm in &host.vms {
        let before = Clocks::of(vm)?;
        let mut clock = request(vm, mode)?;
        vm.vcpus()[at].request_run();
        let refused = wait_in_guest(vm, at)
            .and_then(|()| ensure_errno(libc::EBUSY, set_vm_clock_guest(vm.fd(), &mut clock)));
        vm.stop()?;
        refused?;
        before.ensure_unchanged(vm)?;
    }
    Ok(())
}

fn any_order(host: &Host) -> Result<()> {
    const ORDERS: [fn(&mut VmClock); 3] = [
        |_| (),
        |clock| clock.vcpus.reverse(),
        |clock| clock.vcpus.rotate_left(2),
    ];
    for vm in &crate::both(&host.kvm, VCPUS)? {
        for order in ORDERS {
            for (name, mode) in MODES {
                let before = Clocks::of(vm)?;
                let mut clock = request(vm, mode)?;
                order(&mut clock);
                set_vm_clock_guest(vm.fd(), &mut clock)
                    .with_context(|| format!("KVM_SET_VM_CLOCK_GUEST, mode {name}"))?;
                ensure_done(vm, &before, &clock)?;
            }
        }
    }
    Ok(())
}
