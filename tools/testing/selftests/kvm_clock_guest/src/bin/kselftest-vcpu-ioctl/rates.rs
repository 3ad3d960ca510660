// SPDX-License-Identifier: GPL-2.0-only

//! Records for TSC rates just inside the tolerance, and just outside it.

use crate::{
    get,
    list::TimeInfo,
    refuses::{ensure_accepted, ensure_refused},
    Host, VCPUS,
};
use kvm_clock_guest_selftests::prelude::*;
use pvclock::rate::Factor;

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("ERANGE SET: a rate 2 kHz off, but not 1 kHz", by_khz),
        Case::new("ERANGE SET: one step of mul beyond 1 kHz", by_mul),
    ]
}

/// With the factor that KVM computes from a rate.
fn by_khz(host: &Host) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let khz = u64::from(vm.tsc_khz()?);
    let now = get(&vm, 0)?;
    for (error, accepted) in [(-2, false), (-1, true), (0, true), (1, true), (2, false)] {
        let factor = Factor::of_hz(khz.saturating_add_signed(error) * 1000).context("no factor")?;
        let info = TimeInfo {
            tsc_to_system_mul: factor.mul,
            tsc_shift: factor.shift,
            ..now
        };
        if accepted {
            ensure_accepted(&vm, &info)
        } else {
            ensure_refused(&vm, libc::ERANGE, &info)
        }
        .with_context(|| format!("{error} kHz from {khz} kHz"))?;
    }
    Ok(())
}

/// The least and the largest `mul` for a rate that is, in whole kHz, within 1 kHz of the vCPU's: a
/// record counts
/// `2^(32 - shift) / mul` ticks per ns.
fn by_mul(host: &Host) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let khz = u128::from(vm.tsc_khz()?);
    let now = get(&vm, 0)?;
    let up = u32::from(now.tsc_shift.min(0).unsigned_abs());
    let down = u32::from(now.tsc_shift.max(0).unsigned_abs());
    // Ticks in a ms, times mul.
    let (ticks, per) = (1_000_000u128 << (32 + up), 1u128 << down);
    // floor(ticks / (mul * per)) >= khz - 1, and <= khz + 1, i.e. ticks / (mul * per) < khz + 2.
    let largest = ticks / (per * (khz - 1));
    let least = ticks / (per * (khz + 2)) + 1;
    for (mul, accepted) in [
        (least - 1, false),
        (least, true),
        (largest, true),
        (largest + 1, false),
    ] {
        let info = TimeInfo {
            tsc_to_system_mul: u32::try_from(mul)?,
            ..now
        };
        if accepted {
            ensure_accepted(&vm, &info)
        } else {
            ensure_refused(&vm, libc::ERANGE, &info)
        }
        .with_context(|| format!("mul {mul} of {least} to {largest}, {khz} kHz"))?;
    }
    Ok(())
}
