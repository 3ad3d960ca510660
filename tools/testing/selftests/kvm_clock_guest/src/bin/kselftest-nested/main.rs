// SPDX-License-Identifier: GPL-2.0-only

//! SET while a guest runs a guest of its own (AMD: SVM): L2's TSC is L1's TSC after SET, plus the
//! offset that L1 chose.

mod guest;
mod l2;
mod svm;

use clockguest::host::Vendor;
use kvm_clock_guest_selftests::{fixture::shift, prelude::*};
use kvm_ioctls::Cap;
use l2::Running;
use std::iter::zip;

/// What L1 adds to its TSC for its guest, by vCPU, ticks.
const L2_OFFSETS: [u64; 2] = [0x0001_2345_6789_abcd, (1u64 << 50).wrapping_neg()];

/// Name, mode, whether L1's offsets change, and the change of the saved clock.
type Row = (&'static str, u32, bool, fn(&mut VmClock));

const ROWS: &[Row] = &[
    ("exact", MODE_EXACT, false, |_| ()),
    ("exact, other TSC in between", MODE_EXACT, true, |clock| {
        shift(clock, 1 << 45);
    }),
    ("advance", MODE_ADVANCE, true, |clock| {
        move_to_other_host(clock);
    }),
    ("freeze", MODE_FREEZE, true, |clock| {
        move_to_domain(clock, OTHER_DOMAIN);
    }),
];

fn main() -> ExitCode {
    let mut cases = Vec::new();
    for &(name, mode, moves, edit) in ROWS {
        cases.push(Case::new(format!("L2 is active, {name}"), move |kvm| {
            set_while_active(kvm, mode, moves, edit)
        }));
    }
    cases.push(Case::new("L2 is active, exact in a new VM", new_vm));
    ktap::main(requirements, cases)
}

fn requirements() -> Result<Kvm> {
    let kvm = require::clock_guest()?;
    if Vendor::loaded() != Some(Vendor::Amd) {
        bail!(Skip("the nested guest is for SVM: kvm_amd".into()));
    }
    if !kvm.check_extension(Cap::NestedState) {
        bail!(Skip(
            "no KVM_CAP_NESTED_STATE: kvm_amd without nested=1".into()
        ));
    }
    Ok(kvm)
}

fn set_while_active(kvm: &Kvm, mode: u32, moves: bool, edit: fn(&mut VmClock)) -> Result<()> {
    let running = Running::new(kvm, &L2_OFFSETS)?;
    let mut clock = running.stop_in_l2()?;
    let before = running.l1_offsets()?;
    edit(&mut clock);
    set(&running.vm, &mut clock, mode)?;
    let after = running.l1_offsets()?;
    let shifts: Vec<_> = zip(&before, &after)
        .map(|(before, after)| after.since(*before))
        .collect();
    ensure!(
        shifts.iter().all(|&shift| shift == shifts[0]) && (shifts[0] != 0) == moves,
        "L1's offsets were {before:x?}, are {after:x?}"
    );
    running.ensure_in_l2()?;
    running.ensure_tscs()
}

fn new_vm(kvm: &Kvm) -> Result<()> {
    let running = Running::new(kvm, &L2_OFFSETS)?;
    let mut clock = running.stop_in_l2()?;
    let before = running.l1_offsets()?;
    let running = running.into_new_vm(kvm)?;
    let fresh = running.l1_offsets()?;
    set(&running.vm, &mut clock, MODE_EXACT)?;
    let after = running.l1_offsets()?;
    ensure!(
        after == before && fresh != before,
        "L1's offsets were {before:x?}, in the new VM {fresh:x?} and after SET {after:x?}"
    );
    running.ensure_in_l2()?;
    running.ensure_tscs()
}
