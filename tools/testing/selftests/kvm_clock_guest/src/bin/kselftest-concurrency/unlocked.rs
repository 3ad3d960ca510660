// SPDX-License-Identifier: GPL-2.0-only

//! KVM_GET_CLOCK, which takes no lock, while the clocks of a stopped VM are SET: it tells one whole
//! state or another.

use crate::{looks::Stop, states::States, tally::Counter};
use anyhow::{ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::set_vm_clock_guest;
use kvm_clock_guest_selftests::{
    fixture::pinned,
    ktap::{note, option, Case},
    threads,
};
use kvm_ioctls::Kvm;
use std::thread::scope;

/// A reading is torn if it comes within the some 20 ns that a record takes to be written.
const SETS: usize = 10_000;
/// Readings of each state at least, or there was no race.
const READINGS: u64 = 100;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![Case::new("KVM_GET_CLOCK while another thread SETs", whole)]
}

fn whole(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, 1)?;
    let states = States::two(&vm)?;
    set(&vm, &states, 0)?;
    let sets = option("sets", SETS)?;
    let (seen, stop) = ([Counter::default(), Counter::default()], Stop::default());
    scope(|scope| {
        let reader = scope.spawn(|| {
            stop.until(|| {
                let data = vm.fd().get_clock().context("KVM_GET_CLOCK")?;
                seen[states.which_kvmclock(data.host_tsc, data.clock)?].add();
                Ok(())
            })
        });
        let done = (1..=sets)
            .take_while(|_| !stop.is_now())
            .try_for_each(|number| set(&vm, &states, number % states.len()));
        stop.now();
        threads::join([reader], done)
    })?;
    note(&format!("{sets} SETs, readings of each state: {seen:?}"));
    ensure!(
        seen.iter().all(|count| count.get() >= READINGS),
        "readings of each state: {seen:?}, expected {READINGS}"
    );
    Ok(())
}

fn set(vm: &Vm, states: &States, which: usize) -> Result<()> {
    set_vm_clock_guest(vm.fd(), &mut states.request(which, 1)).context("KVM_SET_VM_CLOCK_GUEST")
}
