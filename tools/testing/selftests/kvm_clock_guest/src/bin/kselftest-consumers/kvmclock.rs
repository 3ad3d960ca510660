// SPDX-License-Identifier: GPL-2.0-only

//! KVM's own: `KVM_GET_CLOCK`, and the wall clock MSR.

use crate::{state::Pinned, Consumer};
use kvm_clock_guest_selftests::{
    expect::get_clock_and_host_tsc, msr::set_msr, msr::MSR_KVM_WALL_CLOCK_NEW, prelude::*,
};
use std::sync::atomic::Ordering;

pub(crate) const GET_CLOCK: Consumer = Consumer {
    name: "KVM_GET_CLOCK",
    enable: |_| Ok(()),
    check: |vm, pinned| {
        get_clock(vm, pinned)?;
        run_a_little(vm)?;
        get_clock(vm, pinned)
    },
};

pub(crate) const WALL_CLOCK_MSR: Consumer = Consumer {
    name: "wall clock MSR",
    enable: |_| Ok(()),
    check: |vm, pinned| {
        let write = || {
            Ok(set_msr(
                &vm.vcpus()[0].fd(),
                MSR_KVM_WALL_CLOCK_NEW,
                WALL_CLOCK,
            )?)
        };
        ensure_epoch(vm, pinned, WALL_CLOCK, write)?;
        run_a_little(vm)?;
        ensure_epoch(vm, pinned, WALL_CLOCK, write)
    },
};

/// In a page that `clockguest::guest::layout` leaves free.
const WALL_CLOCK: u64 = 0x7000;

/// It reports its host TSC, so record and clock are equal to the ns.
fn get_clock(vm: &Vm, pinned: &Pinned) -> Result<()> {
    const CALLS: usize = 100;

    for _ in 0..CALLS {
        let data = get_clock_and_host_tsc(vm)?;
        let ns = pinned.ns(HostTsc(data.host_tsc));
        ensure_eq!(data.clock, ns, "KVM_GET_CLOCK, ns");
    }
    Ok(())
}

/// Fails unless `write` makes KVM write the guest's epoch, UTC minus kvmclock, to `gpa`.
///
/// The pinned clock gains on UTC, so that the epoch moves a little between two GETs; it was read
/// between them.
pub(crate) fn ensure_epoch(
    vm: &Vm,
    pinned: &Pinned,
    gpa: u64,
    write: impl FnOnce() -> Result<()>,
) -> Result<()> {
    /// All clocks are rounded down to a ns: 1 ns; UTC moves by fractions of a ns when the host's
    /// timekeeping corrects its rate: another.
    const ROUNDING_NS: i64 = 2;

    // A scaled TSC is rounded down to a tick.
    let tolerance_ns = ROUNDING_NS + i64::from(1_000_000_u32.div_ceil(vm.tsc_khz()?));
    let before = epoch_ns(vm, pinned)?;
    write()?;
    let after = epoch_ns(vm, pinned)?;
    // struct pvclock_wall_clock: version, sec, nsec, each of 32 bits.
    let word = |gpa| vm.memory().word(gpa).load(Ordering::Acquire);
    let (sec, nsec) = (word(gpa) >> 32, word(gpa + 8) & u64::from(u32::MAX));
    let observed = i64::try_from(sec)? * SECOND_NS + i64::try_from(nsec)?;
    let (least, most) = (before.min(after), before.max(after));
    note!(
        "epoch {} ns after the first of two GETs, {} ns in between",
        observed - before,
        after - before
    );
    ensure!(
        (least - tolerance_ns..=most + tolerance_ns).contains(&observed),
        "epoch is {observed} ns, from the record {before} ns before and {after} ns after"
    );
    Ok(())
}

/// UTC at which the pinned clock was 0, ns.
fn epoch_ns(vm: &Vm, pinned: &Pinned) -> Result<i64> {
    let header = get(vm)?.header;
    let utc_ns = header.tai_ns - i64::from(header.tai_offset_s) * SECOND_NS;
    Ok(utc_ns - i64::try_from(pinned.ns(header.host_tsc))?)
}
