// SPDX-License-Identifier: GPL-2.0-only

//! A guest with an armed timer continues in another VM. Whichever of SET, KVM_SET_LAPIC and
//! MSR_IA32_TSC_DEADLINE comes last, the timer fires at its deadline.

use crate::armed::{Armed, Guest};
use kvm_clock_guest_selftests::{
    copy::{set_lapics, set_msrs, without_lapics},
    msr::MSR_IA32_TSC_DEADLINE,
    prelude::*,
};

/// A step of a restore, after registers and memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Set,
    Lapic,
    Deadline,
}

use Step::{Deadline, Lapic, Set};

/// KVM disarms the timer when the LAPIC's mode is not that of a deadline, so the LAPIC comes
/// before it.
const ORDERS: [(&str, [Step; 3]); 3] = [
    ("LAPIC, deadline, SET", [Lapic, Deadline, Set]),
    ("LAPIC, SET, deadline", [Lapic, Set, Deadline]),
    ("SET, LAPIC, deadline", [Set, Lapic, Deadline]),
];

/// How far ahead the timer is armed, and whether the deadline passes before the restore.
const DEADLINES: [(&str, i64, bool); 2] = [
    ("", SECOND_NS, false),
    (", the deadline passed", SECOND_NS / 4, true),
];

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for (order, steps) in ORDERS {
        for (name, ahead_ns, passes) in DEADLINES {
            cases.push(Case::new(
                format!("armed, exact in a new VM: {order}{name}"),
                move |kvm: &Kvm| exact_in_new_vm(kvm, ahead_ns, passes, steps),
            ));
        }
    }
    cases
}

/// Its TSC is a day ahead of the one that the new VM starts with, so that KVM arms the timer for
/// tomorrow until SET.
fn exact_in_new_vm(kvm: &Kvm, ahead_ns: i64, passes: bool, steps: [Step; 3]) -> Result<()> {
    let mut armed = Armed::new(kvm, &Guest::PLAIN, ahead_ns)?;
    if passes {
        armed.sleep_past_deadline()?;
    }
    let new = without_lapics(kvm, &armed.vm)?;
    let old = std::mem::replace(&mut armed.vm, new);
    for step in steps {
        match step {
            Set => armed.set(MODE_EXACT)?,
            Lapic => set_lapics(&old, &armed.vm)?,
            Deadline => set_msrs(&old, &armed.vm, &[MSR_IA32_TSC_DEADLINE])?,
        }
    }
    drop(old);
    armed.ensure_fires()
}
