// SPDX-License-Identifier: GPL-2.0-only

//! At scaled rates, in whatever way the other vCPUs' rates were set.

use crate::joins::ensure_joins;
use kvm_clock_guest_selftests::prelude::*;

const VCPUS: u32 = 2;
/// The guest's rate as a fraction of the host's.
const RATE: (u32, u32) = (7, 10);
/// A ratio grows by its 2^14th part, 61 ppm: another calibration of the same TSC.
const CALIBRATION_SHIFT: u32 = 14;
/// How the rate was set.
#[derive(Clone, Copy)]
enum By {
    Vm,
    EachVcpu,
}

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for (name, by) in [
        ("KVM_SET_TSC_KHZ of the VM", By::Vm),
        ("KVM_SET_TSC_KHZ of each vCPU", By::EachVcpu),
    ] {
        cases.extend([
            Case::new(
                format!("a vCPU joins after SET exact of another boot's ratio, {name}"),
                move |kvm| other_ratio(kvm, by, true),
            ),
            Case::new(
                format!("a vCPU joins before the first KVM_RUN, another boot's ratio, {name}"),
                move |kvm| other_ratio(kvm, by, false),
            ),
        ]);
        for (mode_name, mode) in MODES {
            cases.push(Case::new(
                format!("a vCPU joins after SET {mode_name} of this boot's ratio, {name}"),
                move |kvm| same_ratio(kvm, by, mode),
            ));
        }
    }
    cases
}

/// A VM at [`RATE`] that has not run yet.
fn at_rate(kvm: &Kvm, by: By) -> Result<Vm> {
    let (num, den) = RATE;
    let vm = Vm::new(kvm, VCPUS)?;
    let khz = u32::try_from(u64::from(vm.tsc_khz()?) * u64::from(num) / u64::from(den))?;
    match by {
        By::Vm => Ok(Vm::at_rate(kvm, VCPUS, khz)?),
        By::EachVcpu => {
            set_tsc_khz(&vm, 0, khz)?;
            Ok(vm)
        }
    }
}

/// `clock` as saved on a host of the same domain whose calibration differs.
fn of_other_boot(mut clock: VmClock) -> VmClock {
    clock.header.tsc_ratio += clock.header.tsc_ratio >> CALIBRATION_SHIFT;
    make_consistent(&mut clock);
    clock
}

fn other_ratio(kvm: &Kvm, by: By, runs: bool) -> Result<()> {
    let vm = at_rate(kvm, by)?;
    if runs {
        settle(&vm)?;
    }
    let mut clock = of_other_boot(get(&vm)?);
    set(&vm, &mut clock, MODE_EXACT)?;
    if runs {
        settle(&vm)?;
    }
    ensure_joins(&vm)
}

fn same_ratio(kvm: &Kvm, by: By, mode: u32) -> Result<()> {
    let vm = at_rate(kvm, by)?;
    settle(&vm)?;
    let mut clock = get(&vm)?;
    if mode != MODE_EXACT {
        move_to_other_host(&mut clock);
    }
    set(&vm, &mut clock, mode)?;
    settle(&vm)?;
    ensure_joins(&vm)
}
