// SPDX-License-Identifier: GPL-2.0-only

//! Everything that KVM computes from a guest's kvmclock is the same function as the pinned record,
//! after every mode of SET, with vCPUs whose TSCs are equal or differ, and at every rate that the
//! host supports.

mod hyperv;
mod kvmclock;
mod state;
mod xen;

use kvm_clock_guest_selftests::prelude::*;
use state::{Pinned, State};

/// An interface that is computed from kvmclock.
#[derive(Clone, Copy)]
struct Consumer {
    name: &'static str,
    /// Enables it, before SET.
    enable: fn(&Vm) -> Result<()>,
    /// Checks it after SET, before and after the guest ran.
    check: fn(&Vm, &Pinned) -> Result<()>,
}

const CONSUMERS: &[Consumer] = &[
    kvmclock::GET_CLOCK,
    kvmclock::WALL_CLOCK_MSR,
    hyperv::REFERENCE_COUNTER,
    hyperv::REFERENCE_COUNTER_WITH_PAGE,
    hyperv::TSC_PAGE,
    xen::TIME_INFO,
    xen::WALL_CLOCK,
];

fn main() -> ExitCode {
    let scales = require::host_scales();
    let states = State::all(scales);
    let cases = states.into_iter().flat_map(|state| {
        CONSUMERS.iter().map(move |&consumer| {
            Case::new(format!("{}, {}", consumer.name, state.name()), move |kvm| {
                case(kvm, state, consumer)
            })
        })
    });
    ktap::main(require::clock_guest_of_any_rate, cases.collect())
}

fn case(kvm: &Kvm, state: State, consumer: Consumer) -> Result<()> {
    let vm = state.vm(kvm)?;
    (consumer.enable)(&vm)?;
    let pinned = state.set(&vm)?;
    (consumer.check)(&vm, &pinned)
}
