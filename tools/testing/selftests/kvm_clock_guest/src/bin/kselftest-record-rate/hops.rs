// SPDX-License-Identifier: GPL-2.0-only

//! Hop after hop: each takes the record a little further from the TSC's rate. SET refuses the hop
//! that takes it beyond the tolerance, however small that hop is.

use crate::record::{at_rate, ensure_has_record, for_mode, ppm, MODES, VCPUS};
use anyhow::{Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::{set_vm_clock_guest, VmClock};
use kvm_clock_guest_selftests::{
    fixture::{derived, get, set, settle},
    ktap::Case,
    refusal::ensure_refused,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{MODE_ADVANCE, MODE_EXACT};

const HOPS: i64 = 8;
/// What a record may be off, ppm.
const TOLERANCE: i64 = 250;
/// What each hop adds, ppm: all hops but those beyond the tolerance are well within it.
const STEPS: [i64; 3] = [185, -185, 60];
/// The first host's guest TSC rate as a fraction of the host's: KVM does not scale for less than
/// the tolerance.
const RATE: (u32, u32) = (7, 10);

pub(crate) fn cases(scales: bool) -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for step in STEPS {
        for (name, mode) in MODES {
            cases.push(Case::new(
                format!("ERANGE SET {name}: the record goes off by {step} ppm with every hop"),
                move |kvm| record_goes_off(kvm, mode, step),
            ));
            if scales && mode != MODE_EXACT {
                cases.push(Case::new(
                    format!("ERANGE SET {name}: the TSC goes off by {step} ppm with every hop"),
                    move |kvm| tsc_goes_off(kvm, mode, step),
                ));
            }
        }
    }
    cases
}

/// SETs `clock` in `vm`, after `hop` hops of `step` ppm; returns whether that may be done.
fn hop(vm: &Vm, clock: &mut VmClock, mode: u32, hop: i64, step: i64) -> Result<bool> {
    let off = hop * step;
    let is_within = off.abs() <= TOLERANCE;
    if is_within {
        set(vm, clock, mode)?;
        ensure_has_record(vm, clock)?;
    } else {
        ensure_refused(vm, libc::ERANGE, |fd| set_vm_clock_guest(fd, clock))?;
    }
    Ok(is_within)
}

/// As the record of a host whose calibration differs is one of another rate here.
fn record_goes_off(kvm: &Kvm, mode: u32, step: i64) -> Result<()> {
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

/// The record's bits stay what the first host made them, and every host's TSC is `step` ppm faster
/// than that of the host before.
fn tsc_goes_off(kvm: &Kvm, mode: u32, step: i64) -> Result<()> {
    let (num, den) = RATE;
    let host_khz = Vm::empty(kvm, 1)?.tsc_khz()?;
    let mut khz = f64::from(host_khz) * f64::from(num) / f64::from(den);
    let vm_at = |khz: f64| -> Result<Vm> {
        // CAST: a few millions.
        let vm = Vm::at_rate(kvm, VCPUS, khz as u32)?;
        settle(&vm)?;
        Ok(vm)
    };
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
