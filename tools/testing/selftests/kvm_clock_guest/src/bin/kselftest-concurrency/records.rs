// SPDX-License-Identifier: GPL-2.0-only

//! KVM_SET_CLOCK_GUEST from several threads, through several running vCPUs: all vCPUs have the same
//! one of the records; and SETs of the whole VM fail meanwhile.

use crate::{
    counts::{Counts, Enough},
    observers::{Observers, Stop},
    states::States,
};
use kvm_clock_guest_selftests::{descriptors, prelude::*, progress::Progress, threads};
use std::thread::scope;

/// vCPUs, through each of which one thread SETs.
const VCPUS: u32 = 3;
const STATES: usize = 3;
/// Pause between two SETs of a thread, each of which makes all vCPUs leave the guest.
const PAUSE: Duration = Duration::from_millis(2);

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![Case::new(
        format!("{VCPUS} threads SET the record through as many running vCPUs"),
        set_through_vcpus,
    )]
}

fn set_through_vcpus(kvm: &Kvm) -> Result<()> {
    let enough = Enough::new()?;
    let vm = pinned(kvm, VCPUS)?;
    let states = States::records(&vm, STATES)?;
    set_vm_clock_guest(vm.fd(), &mut states.request(0, VCPUS as usize)).context("the first SET")?;
    states.run_until_read(&vm)?;
    let vcpus = descriptors::of_vcpus(&vm)?;
    let (counts, stop) = (Counts::new(STATES), Stop::default());
    let observers = Observers {
        vm: &vm,
        vcpus: &vcpus,
        states: &states,
        counts: &counts,
        stop: &stop,
    };
    let progress = Progress::of(&vm);
    vm.run()?;
    progress.wait(&vm, 2)?;
    scope(|scope| {
        let stop = &stop;
        let mut threads = Vec::new();
        for (id, vcpu) in (0..).zip(&vcpus) {
            threads.push(scope.spawn(move || set_often(&observers, id, vcpu, stop)));
        }
        threads.push(scope.spawn(move || stop.until(|| observers.get())));
        threads.push(scope.spawn(move || stop.until(|| observers.get_of_vcpus())));
        threads.push(scope.spawn(move || stop.until(|| observers.watch())));
        threads.push(scope.spawn(move || stop.until(|| refused(&observers))));
        let waited = enough.wait(&counts, stop, |least| counts.busy.get() >= least);
        stop.now();
        threads::join(threads, waited)
    })?;
    // All vCPUs continue.
    Progress::of(&vm).wait(&vm, 2)?;
    vm.stop()?;
    note!("{counts:?}");
    ensure_one(&vm, &states)
}

/// SETs the records in turn, as they are for vCPU `id`.
fn set_often(observers: &Observers<'_>, id: u32, vcpu: &VcpuFd, stop: &Stop) -> Result<()> {
    let mut which = id as usize % STATES;
    stop.until(|| {
        set_clock_guest(vcpu, &observers.states.record(which, id))
            .with_context(|| format!("KVM_SET_CLOCK_GUEST of vCPU {id}"))?;
        observers.counts.sets[which].add();
        which = (which + 1) % STATES;
        sleep(PAUSE);
        Ok(())
    })
}

/// No vCPU leaves KVM_RUN.
fn refused(observers: &Observers<'_>) -> Result<()> {
    let mut clock = observers.states.request(0, VCPUS as usize);
    ensure_errno(
        libc::EBUSY,
        set_vm_clock_guest(observers.vm.fd(), &mut clock),
    )
    .context("KVM_SET_VM_CLOCK_GUEST while all vCPUs run")?;
    observers.counts.busy.add();
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
