// SPDX-License-Identifier: GPL-2.0-only

//! Records of other rates.

use kvm_clock_guest_selftests::prelude::*;

pub(crate) const VCPUS: u32 = 2;
/// The VM that SET is called on.
pub(crate) type Start = (&'static str, fn(&Kvm, u32) -> Result<Vm>);
pub(crate) const STARTS: [Start; 2] = [("derived", derived), ("pinned", pinned)];

/// A fraction of 1 plus so many parts per million.
pub(crate) fn ppm(parts: i64) -> (u64, u64) {
    (1_000_000u64.saturating_add_signed(parts), 1_000_000)
}

/// `clock` with kvmclock at `num / den` of its rate from the anchor on, by a normalised factor.
pub(crate) fn at_rate(mut clock: VmClock, (num, den): (u64, u64)) -> Result<VmClock> {
    let header = &mut clock.header;
    let record = &mut header.record;
    record.tsc_timestamp = header.guest_tsc;
    record.system_time = header.kvmclock_ns;
    let mut mul = u128::from(record.tsc_to_system_mul) * u128::from(num) / u128::from(den);
    while mul >> 32 != 0 {
        mul >>= 1;
        record.tsc_shift += 1;
    }
    while mul >> 31 == 0 {
        mul <<= 1;
        record.tsc_shift -= 1;
    }
    record.tsc_to_system_mul = u32::try_from(mul)?;
    make_consistent(&mut clock);
    Ok(clock)
}

/// `clock` for a SET with `mode`: unless that is exact, with a host TSC of another domain.
pub(crate) fn for_mode(mut clock: VmClock, mode: u32) -> VmClock {
    clock.header.mode = mode;
    if mode != MODE_EXACT {
        move_to_domain(&mut clock, OTHER_DOMAIN);
    }
    clock
}

/// Fails unless the stopped `vm` has the record of `clock` pinned, and so has its guest when it
/// runs.
pub(crate) fn ensure_has_record(vm: &Vm, clock: &VmClock) -> Result<()> {
    run_a_little(vm)?;
    let header = get(vm)?.header;
    let expected = function(clock.header.record);
    ensure!(
        header.status & STATUS_PINNED != 0 && function(header.record) == expected,
        "SET had {expected:x?}, GET reports {header:x?}"
    );
    for page in pages(vm) {
        ensure_eq_hex!(function(page), expected, "the guest's record");
    }
    Ok(())
}
