// SPDX-License-Identifier: GPL-2.0-only

//! What else KVM computes from a guest's kvmclock is the same function as the pinned record,
//! after every mode of SET, with vCPUs whose TSCs agree or differ, and at every rate that the host
//! can give.
//!
//! Where an interface does not tell the host TSC at which it was read, the record is made one that
//! hardly moves while it is.

mod hyperv;
mod kvmclock;
mod state;
mod xen;

use anyhow::Result;
use clockguest::vmm::Vm;
use kvm_clock_guest_selftests::{
    ktap::{self, note, Case},
    require,
};
use kvm_ioctls::Kvm;
use state::{Pinned, State};
use std::process::ExitCode;

/// Something that tells the time by kvmclock.
#[derive(Clone, Copy)]
struct Consumer {
    name: &'static str,
    /// Switches it on, before SET.
    enable: fn(&Vm) -> Result<()>,
    /// Looks at it after SET, before and after the guest ran.
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
    let scales = require::vendor_kvm().is_ok_and(|kvm| require::scales(&kvm));
    let states = State::all(scales);
    let cases = states.into_iter().flat_map(|state| {
        CONSUMERS.iter().map(move |&consumer| {
            Case::new(format!("{}, {}", consumer.name, state.name()), move |kvm| {
                case(kvm, state, consumer)
            })
        })
    });
    ktap::main(
        || {
            let kvm = require::clock_guest()?;
            if !scales {
                note(
                    "the TSC of this host's guests cannot be scaled: rates other than its are left \
                     out",
                );
            }
            Ok(kvm)
        },
        cases.collect(),
    )
}

fn case(kvm: &Kvm, state: State, consumer: Consumer) -> Result<()> {
    let vm = state.vm(kvm)?;
    (consumer.enable)(&vm)?;
    let pinned = state.set(&vm)?;
    (consumer.check)(&vm, &pinned)
}
