// SPDX-License-Identifier: GPL-2.0-only

//! The timers of guests of other hypervisors, Hyper-V's synthetic ones and Xen's, fire at their
//! guest time after every mode of SET: not before it, not long after it, and once, or with their
//! period.
//!
//! How far a SET moves the guest depends on the deadline, so that a timer which uses the former
//! clock exceeds all bounds here, however slow the host is.

mod acts;
mod armed;
mod periodic;
mod running;
mod timer;

use acts::{Act, AFTER, BEFORE, SHORT_LIST};
use armed::Armed;
use kvm_clock_guest_selftests::prelude::*;
use timer::Timer;

fn main() -> ExitCode {
    let mut cases = Vec::new();
    for timer in Timer::ALL {
        let all = match timer {
            Timer::HyperVWithPage => SHORT_LIST,
            _ => BEFORE,
        };
        for (clock, is_pinned, rows) in [("pinned", true, all), ("derived", false, SHORT_LIST)] {
            for &(name, ahead_ns, act) in rows {
                cases.push(Case::new(
                    format!("{}, armed before, {name}, {clock}", timer.name()),
                    move |kvm| armed_before(kvm, timer, is_pinned, ahead_ns, act),
                ));
            }
        }
        for &(name, act) in AFTER {
            cases.push(Case::new(
                format!("{}, armed after, {name}", timer.name()),
                move |kvm| armed_after(kvm, timer, act),
            ));
        }
    }
    cases.extend(periodic::cases());
    cases.extend(running::cases());
    ktap::main(require::clock_guest, cases)
}

fn armed_before(kvm: &Kvm, timer: Timer, is_pinned: bool, ahead_ns: u64, act: Act) -> Result<()> {
    let mut armed = Armed::new(kvm, timer, is_pinned)?;
    armed.arm(ahead_ns)?;
    armed.start_timers()?;
    act(&mut armed)?;
    armed.ensure_fires()
}

fn armed_after(kvm: &Kvm, timer: Timer, act: Act) -> Result<()> {
    let mut armed = Armed::new(kvm, timer, true)?;
    act(&mut armed)?;
    armed.save()?;
    armed.arm(acts::NEAR_NS)?;
    armed.ensure_fires()
}
