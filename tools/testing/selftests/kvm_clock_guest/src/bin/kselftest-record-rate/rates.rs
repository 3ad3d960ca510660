// SPDX-License-Identifier: GPL-2.0-only

//! Records just within the tolerance, just beyond it, and far beyond it.

use crate::record::{at_rate, ensure_has_record, for_mode, ppm, Start, STARTS, VCPUS};
use kvm_clock_guest_selftests::prelude::*;

/// KVM's own record has an error of up to a kHz, too: 20 ppm of a slow TSC.
const INSIDE: [i64; 2] = [-200, 200];
const OUTSIDE: [i64; 2] = [-300, 300];
/// kvmclock's rate as a fraction of the right one.
const FAR_OFF: [(u64, u64); 4] = [(2, 3), (3, 2), (2, 1), (1, 1 << 14)];

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for start in STARTS {
        for (name, mode) in MODES {
            let start_name = start.0;
            for parts in INSIDE {
                cases.push(Case::new(
                    format!("SET {name} of a record {parts} ppm off, {start_name}"),
                    move |kvm| accepted(kvm, start, mode, parts),
                ));
            }
            for parts in OUTSIDE {
                cases.push(Case::new(
                    format!("ERANGE SET {name}: a record {parts} ppm off, {start_name}"),
                    move |kvm| refused(kvm, start, mode, ppm(parts)),
                ));
            }
            for rate in FAR_OFF {
                cases.push(Case::new(
                    format!(
                        "ERANGE SET {name}: a record at {}/{} of the rate, {start_name}",
                        rate.0, rate.1
                    ),
                    move |kvm| refused(kvm, start, mode, rate),
                ));
            }
        }
    }
    cases
}

fn accepted(kvm: &Kvm, (_, start): Start, mode: u32, parts: i64) -> Result<()> {
    let vm = start(kvm, VCPUS)?;
    let mut clock = for_mode(at_rate(get(&vm)?, ppm(parts))?, mode);
    set(&vm, &mut clock, mode)?;
    ensure_has_record(&vm, &clock)
}

fn refused(kvm: &Kvm, (_, start): Start, mode: u32, rate: (u64, u64)) -> Result<()> {
    let vm = start(kvm, VCPUS)?;
    let mut clock = for_mode(at_rate(get(&vm)?, rate)?, mode);
    ensure_refused(&vm, libc::ERANGE, |fd| set_vm_clock_guest(fd, &mut clock))
}
