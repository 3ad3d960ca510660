// SPDX-License-Identifier: GPL-2.0-only

//! GET and SET preserve the flag.

use crate::state::{ensure_flag, Clock};
use kvm_clock_guest_selftests::{fixture, prelude::*, tsc_writes::BY_GUEST_ADJUST};

const VCPUS: u32 = 2;
/// How far the guest moves vCPU 1's TSC, ticks.
const TICKS: u64 = 1_000_000;
const CYCLES: u32 = 3;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for (name, clock) in Clock::ALL {
        for (flag, ticks) in [("set", 0), ("clear", TICKS)] {
            cases.push(Case::new(
                format!("{name}: the flag stays {flag} over {CYCLES} cycles of EXACT, new VMs"),
                move |kvm| cycles(kvm, clock, ticks),
            ));
        }
    }
    for (name, mode) in MODES {
        cases.extend([
            Case::new(
                format!("SET {name} of a record without the flag: clear although TSCs are equal"),
                move |kvm| honoured(kvm, mode, 0, false),
            ),
            Case::new(
                format!("SET {name} of a record with the flag: clear where TSCs differ"),
                move |kvm| honoured(kvm, mode, TICKS, true),
            ),
            Case::new(
                format!("SET {name} of a record with the flag: set where TSCs are equal"),
                move |kvm| honoured(kvm, mode, 0, true),
            ),
        ]);
    }
    cases
}

fn cycles(kvm: &Kvm, clock: Clock, ticks: u64) -> Result<()> {
    let mut vm = clock.vm(kvm, VCPUS)?;
    if ticks != 0 {
        (BY_GUEST_ADJUST.add)(&vm, 1, ticks)?;
    }
    ensure_flag(&vm, ticks == 0, clock).context("before")?;
    let before = Clocks {
        pinned: true,
        clock_diff_ns: Some(0),
        ..Clocks::of(&vm)?
    };
    for cycle in 1..=CYCLES {
        let mut saved = get(&vm)?;
        vm = fixture::successor(kvm, vm)?;
        set(&vm, &mut saved, MODE_EXACT)?;
        run_a_little(&vm)?;
        before.ensure_is(&Clocks::of(&vm)?, &format!("in cycle {cycle}"))?;
        ensure_flag(&vm, ticks == 0, Clock::Pinned)?;
    }
    Ok(())
}

/// SET in a new VM. vCPU 1 is `ticks` ahead; `given` is the flag of the record.
fn honoured(kvm: &Kvm, mode: u32, ticks: u64, given: bool) -> Result<()> {
    let source = Clock::Pinned.vm(kvm, VCPUS)?;
    let mut saved = get(&source)?;
    saved.vcpus[1].tsc_offset = saved.vcpus[1].tsc_offset.wrapping_add(ticks);
    let flags = &mut saved.header.record.flags;
    *flags &= !PVCLOCK_TSC_STABLE;
    if given {
        *flags |= PVCLOCK_TSC_STABLE;
    }
    if mode != MODE_EXACT {
        move_to_domain(&mut saved, OTHER_DOMAIN);
    }
    let vm = fixture::successor(kvm, source)?;
    set(&vm, &mut saved, mode)?;
    ensure_flag(&vm, given && ticks == 0, Clock::Pinned)
}
