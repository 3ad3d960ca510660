// SPDX-License-Identifier: GPL-2.0-only

//! KVM_SET_CLOCK_GUEST from several threads, by several vCPUs, while all of them run: every one has
//! the same record of those that were SET; and no SET of the whole VM comes in between.

use crate::{
    looks::{Looks, Stop},
    states::States,
    tally::{Enough, Tally},
};
use anyhow::{ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::{set_clock_guest, set_vm_clock_guest};
use kvm_clock_guest_selftests::{
    clocks::Clocks,
    descriptors,
    fixture::{get, pinned, run_a_little},
    flat_out::Progress,
    ktap::{note, Case},
    refusal::ensure_errno,
    threads,
};
use kvm_ioctls::{Kvm, VcpuFd};
use std::{
    thread::{scope, sleep},
    time::Duration,
};

/// vCPUs, each of which one thread SETs by.
const VCPUS: u32 = 3;
const STATES: usize = 3;
/// Between two SETs of a thread: every one takes all vCPUs out of the guest.
const PAUSE: Duration = Duration::from_millis(2);

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![Case::new(
        format!("{VCPUS} threads SET the record by as many running vCPUs"),
        set_by_vcpus,
    )]
}

fn set_by_vcpus(kvm: &Kvm) -> Result<()> {
    let enough = Enough::new()?;
    let vm = pinned(kvm, VCPUS)?;
    let states = States::records(&vm, STATES)?;
    set_vm_clock_guest(vm.fd(), &mut states.request(0, VCPUS as usize)).context("the first SET")?;
    while vm
        .view(0)
        .ring()
        .iter()
        .any(|sample| states.which_record(sample.record, 0).is_err())
    {
        run_a_little(&vm)?;
    }
    let vcpus = descriptors::of_vcpus(&vm)?;
    let (tally, stop) = (Tally::new(STATES), Stop::default());
    let looks = Looks {
        vm: &vm,
        vcpus: &vcpus,
        states: &states,
        tally: &tally,
        stop: &stop,
    };
    let progress = Progress::of(&vm);
    vm.run()?;
    progress.wait(&vm, 2)?;
    scope(|scope| {
        let stop = &stop;
        let mut threads = Vec::new();
        for (id, vcpu) in (0..).zip(&vcpus) {
            threads.push(scope.spawn(move || set_often(&looks, id, vcpu, stop)));
        }
        threads.push(scope.spawn(move || stop.until(|| looks.get())));
        threads.push(scope.spawn(move || stop.until(|| looks.get_of_vcpus())));
        threads.push(scope.spawn(move || stop.until(|| looks.watch())));
        threads.push(scope.spawn(move || stop.until(|| refused(&looks))));
        let waited = enough.wait(&tally, stop, |least| tally.busy.get() >= least);
        stop.now();
        threads::join(threads, waited)
    })?;
    // All go on.
    Progress::of(&vm).wait(&vm, 2)?;
    vm.stop()?;
    note(&format!("{tally:?}"));
    ensure_one(&vm, &states)
}

/// SETs one record after the other, as it is for vCPU `id`.
fn set_often(looks: &Looks<'_>, id: u32, vcpu: &VcpuFd, stop: &Stop) -> Result<()> {
    let mut which = id as usize % STATES;
    stop.until(|| {
        set_clock_guest(vcpu, &looks.states.record(which, id))
            .with_context(|| format!("KVM_SET_CLOCK_GUEST of vCPU {id}"))?;
        looks.tally.sets[which].add();
        which = (which + 1) % STATES;
        sleep(PAUSE);
        Ok(())
    })
}

/// No vCPU leaves KVM_RUN.
fn refused(looks: &Looks<'_>) -> Result<()> {
    let mut clock = looks.states.request(0, VCPUS as usize);
    ensure_errno(libc::EBUSY, set_vm_clock_guest(looks.vm.fd(), &mut clock))
        .context("KVM_SET_VM_CLOCK_GUEST while all vCPUs run")?;
    looks.tally.busy.add();
    sleep(PAUSE);
    Ok(())
}

/// Fails unless all clocks of the stopped `vm` are one state.
fn ensure_one(vm: &Vm, states: &States) -> Result<()> {
    run_a_little(vm)?;
    let clocks = Clocks::of(vm)?;
    let which = states.which_record(get(vm)?.header.record, 0)?;
    for (id, page) in (0..).zip(&clocks.pages) {
        let expected = states.record(which, id);
        ensure!(
            states.which_record(*page, id)? == which,
            "vCPU {id} has {page:x?}, the VM is in state {which}: {expected:x?}"
        );
    }
    clocks.ensure_unchanged(vm)
}
