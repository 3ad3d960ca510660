// SPDX-License-Identifier: GPL-2.0-only

//! Factors that KVM never computes: their highest bit is 0.

use crate::record::{for_mode, Start, STARTS, VCPUS};
use kvm_clock_guest_selftests::prelude::*;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    let mut cases = Vec::new();
    for start in STARTS {
        for (name, mode) in MODES {
            let start_name = start.0;
            for shift in [1, 16] {
                cases.push(Case::new(
                    format!(
                        "EINVAL SET {name}: the right rate with `mul` >> {shift}, {start_name}"
                    ),
                    move |kvm| {
                        refused(kvm, start, mode, |mul, by| (mul >> shift, by + shift as i8))
                    },
                ));
            }
            cases.push(Case::new(
                format!("EINVAL SET {name}: `mul` is 2^31 - 1, {start_name}"),
                move |kvm| refused(kvm, start, mode, |_, by| ((1 << 31) - 1, by)),
            ));
        }
    }
    cases
}

/// `change` computes the record's factor and shift from KVM's.
fn refused(
    kvm: &Kvm,
    (_, start): Start,
    mode: u32,
    change: impl Fn(u32, i8) -> (u32, i8),
) -> Result<()> {
    let vm = start(kvm, VCPUS)?;
    let mut clock = get(&vm)?;
    let header = &mut clock.header;
    let record = &mut header.record;
    record.tsc_timestamp = header.guest_tsc;
    record.system_time = header.kvmclock_ns;
    (record.tsc_to_system_mul, record.tsc_shift) =
        change(record.tsc_to_system_mul, record.tsc_shift);
    make_consistent(&mut clock);
    let mut clock = for_mode(clock, mode);
    ensure_refused(&vm, libc::EINVAL, |fd| set_vm_clock_guest(fd, &mut clock))
}
