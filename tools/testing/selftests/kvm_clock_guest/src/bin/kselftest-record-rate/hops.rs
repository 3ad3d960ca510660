// SPDX-License-Identifier: GPL-2.0-only

//! Hops that each take the record a little further from the TSC's rate. SET fails for the hop that
//! exceeds the tolerance, however small that hop is.

use crate::record::{at_rate, ensure_has_record, for_mode, ppm, VCPUS};
use kvm_clock_guest_selftests::prelude::*;

const HOPS: i64 = 8;
/// Tolerance of a record's rate, ppm.
const TOLERANCE: i64 = 250;
/// How much each hop adds, ppm: the hops within the tolerance are well within it.
const STEPS: [i64; 3] = [185, -185, 60];
/// The first host's guest TSC rate as a fraction of the host's: KVM does not scale for less than
/// the tolerance.
const RATE: (u32, u32) = (7, 10);

pub(crate) fn cases(scales: bool) -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for step in STEPS {
        for (name, mode) in MODES {
            cases.push(Case::new(
                format!("ERANGE SET {name}: every hop changes the record by {step} ppm"),
                move |kvm| record_changes(kvm, mode, step),
            ));
            if scales && mode != MODE_EXACT {
                cases.push(Case::new(
                    format!("ERANGE SET {name}: every hop changes the TSC by {step} ppm"),
                    move |kvm| tsc_changes(kvm, mode, step),
                ));
            }
        }
    }
    cases
}

/// SETs `clock` in `vm`, after `hop` hops of `step` ppm; returns whether that must succeed.
fn hop(vm: &Vm, clock: &mut VmClock, mode: u32, hop: i64, step: i64) -> Result<bool> {
    let difference = hop * step;
    let is_within = difference.abs() <= TOLERANCE;
    if is_within {
        set(vm, clock, mode)?;
        ensure_has_record(vm, clock)?;
    } else {
        ensure_refused(vm, libc::ERANGE, |fd| set_vm_clock_guest(fd, clock))?;
    }
    Ok(is_within)
}

/// The record of a host whose calibration differs has another rate here.
fn record_changes(kvm: &Kvm, mode: u32, step: i64) -> Result<()> {
    let vm = derived(kvm, VCPUS)?;
    for number in 1..=HOPS {
        let mut clock = for_mode(at_rate(get(&vm)?, ppm(step))?, mode);
        if !hop(&vm, &mut clock, mode, number, step)
            .with_context(|| format!("hop {number}, {} ppm", number * step))?
        {
            break;
        }
    }
    Ok(())
}

/// The record's bits do not change, and every host's TSC is `step` ppm faster than the previous
/// host's.
fn tsc_changes(kvm: &Kvm, mode: u32, step: i64) -> Result<()> {
    let (num, den) = RATE;
    let host_khz = Vm::empty(kvm, 1)?.tsc_khz()?;
    let mut khz = f64::from(host_khz) * f64::from(num) / f64::from(den);
    // CAST: a few millions.
    let vm_at = |khz: f64| derived_at_rate(kvm, VCPUS, khz as u32);
    let mut vm = vm_at(khz)?;
    for number in 1..=HOPS {
        let mut clock = for_mode(get(&vm)?, mode);
        if mode == MODE_ADVANCE {
            clock.header.tai_ns -= 1_000_000_000;
        }
        // CAST: a small number.
        khz *= 1.0 + step as f64 / 1e6;
        vm = vm_at(khz)?;
        if !hop(&vm, &mut clock, mode, number, step)
            .with_context(|| format!("hop {number}, {} ppm", number * step))?
        {
            break;
        }
    }
    Ok(())
}
