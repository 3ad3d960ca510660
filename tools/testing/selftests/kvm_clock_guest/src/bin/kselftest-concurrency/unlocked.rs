// SPDX-License-Identifier: GPL-2.0-only

//! KVM_GET_CLOCK, which takes no lock, during SETs of a stopped VM: it reports one complete state
//! or another.

use crate::{counts::Counter, observers::Stop, states::States};
use kvm_clock_guest_selftests::{prelude::*, threads};
use std::thread::scope;

/// A reading can only be torn within the about 20 ns in which a record is written.
const SETS: usize = 10_000;
/// Minimum readings of each state, or there was no race.
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
                let data = get_clock(&vm)?;
                seen[states.which_kvmclock(HostTsc(data.host_tsc), data.clock)?].add();
                Ok(())
            })
        });
        let done = (1..=sets)
            .take_while(|_| !stop.is_now())
            .try_for_each(|number| set(&vm, &states, number % states.len()));
        stop.now();
        threads::join([reader], done)
    })?;
    note!("{sets} SETs, readings of each state: {seen:?}");
    ensure!(
        seen.iter().all(|count| count.get() >= READINGS),
        "readings of each state: {seen:?}, expected {READINGS}"
    );
    Ok(())
}

fn set(vm: &Vm, states: &States, which: usize) -> Result<()> {
    set_vm_clock_guest(vm.fd(), &mut states.request(which, 1)).context("KVM_SET_VM_CLOCK_GUEST")
}
