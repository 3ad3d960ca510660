// SPDX-License-Identifier: GPL-2.0-only

//! At rates that the hardware scales to, however the other vCPUs came by theirs.

use crate::joins::ensure_joins;
use anyhow::{Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::VmClock;
use kvm_clock_guest_selftests::{
    fixture::{get, make_consistent, move_to_domain, set, settle},
    ktap::Case,
    time::HOUR_NS,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{MODE_ADVANCE, MODE_EXACT, MODE_FREEZE};

const VCPUS: u32 = 2;
/// The guest's rate as a fraction of the host's.
const RATE: (u32, u32) = (7, 10);
/// A ratio grows by its 2^14th part, 61 ppm: another calibration of the same TSC.
const CALIBRATION_SHIFT: u32 = 14;
/// A host TSC of another domain, far ahead of any of here.
const OTHER_DOMAIN: u64 = 1 << 60;

/// Who set the rate.
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
                format!("a vCPU joins after SET EXACT of another boot's ratio, {name}"),
                move |kvm| other_ratio(kvm, by, true),
            ),
            Case::new(
                format!("a vCPU joins before the first KVM_RUN, another boot's ratio, {name}"),
                move |kvm| other_ratio(kvm, by, false),
            ),
        ]);
        for (mode_name, mode) in [
            ("EXACT", MODE_EXACT),
            ("ADVANCE", MODE_ADVANCE),
            ("FREEZE", MODE_FREEZE),
        ] {
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
            for vcpu in vm.vcpus() {
                vcpu.fd().set_tsc_khz(khz).context("KVM_SET_TSC_KHZ")?;
            }
            Ok(vm)
        }
    }
}

/// What a host of the same domain, whose calibration differs, saved.
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
    ensure_joins(kvm, &vm)
}

fn same_ratio(kvm: &Kvm, by: By, mode: u32) -> Result<()> {
    let vm = at_rate(kvm, by)?;
    settle(&vm)?;
    let mut clock = get(&vm)?;
    if mode != MODE_EXACT {
        move_to_domain(&mut clock, OTHER_DOMAIN);
        clock.header.tai_ns -= HOUR_NS;
    }
    set(&vm, &mut clock, mode)?;
    settle(&vm)?;
    ensure_joins(kvm, &vm)
}
