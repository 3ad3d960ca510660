// SPDX-License-Identifier: GPL-2.0-only

//! Between guests of different TSC rates: ERANGE, with the difference to the Hz, unless the VMM
//! allows it or it is within KVM's own tolerance.

use crate::{moved::ensure_moved_as_one, tsc::move_to_domain, Host, Rate, RATES, VCPUS};
use kvm_clock_guest_selftests::{expect::rate, prelude::*};
use pvclock::abi::{FLAG_ALLOW_RATE_MISMATCH, FLAG_RESLOPE};
use pvclock_reference::arithmetic;

/// The other host's TSC at the anchor.
const DOMAIN: HostTsc = HostTsc(u64::MAX - 1_000_000_007);

/// Parts per million within and beyond the tolerance.
const WITHIN_PPM: u32 = 100;
const BEYOND_PPM: u32 = 300;

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases = Vec::new();
    for (index, rate) in RATES.iter().enumerate() {
        cases.extend([
            Case::new(
                format!("ERANGE and the difference in Hz, from {}", rate.name),
                move |host| refused(host, index),
            ),
            Case::new(
                format!("another rate is allowed, from {}", rate.name),
                move |host| allowed(host, index),
            ),
            Case::new(
                format!("a difference of some ppm, from {}", rate.name),
                move |host| nearly(host, index),
            ),
        ]);
    }
    cases
}

/// Guest TSC rate of `header`, Hz, rounded down.
fn hz(header: &VmClockGuest) -> i128 {
    arithmetic::hz(rate(header)).into()
}

/// The clocks of a VM at `RATES[index]`, as if saved on another host, except for mode exact.
fn saved(host: &Host, index: usize, mode: u32) -> Result<VmClock> {
    let mut clock = get(&RATES[index].derived(host)?)?;
    if mode != MODE_EXACT {
        move_to_domain(&mut clock, DOMAIN);
    }
    clock.header.mode = mode;
    Ok(clock)
}

/// Fails unless SET reported how far the rate of `vm` exceeds that of `clock`.
fn ensure_rate_diff(vm: &Vm, clock: &VmClock) -> Result<()> {
    let expected = hz(&get(vm)?.header) - hz(&clock.header);
    ensure_eq!(
        i128::from(clock.header.rate_diff_hz),
        expected,
        "rate_diff_hz"
    );
    Ok(())
}

fn refused(host: &Host, index: usize) -> Result<()> {
    let mut clocks = Vec::new();
    for (_, mode) in MODES {
        clocks.push(saved(host, index, mode)?);
    }
    for (other, rate) in others(host, index) {
        let vm = if other % 2 == 0 {
            rate.derived(host)?
        } else {
            rate.pinned(host)?
        };
        ensure_out_of_range(&vm, &mut clocks).with_context(|| format!("to {}", rate.name))?;
    }
    Ok(())
}

/// Fails unless SET of `clocks` fails, reports the difference and changes nothing.
fn ensure_out_of_range(vm: &Vm, clocks: &mut [VmClock]) -> Result<()> {
    ensure_changes_nothing(vm, |fd| {
        for clock in clocks {
            // A value that the kernel does not write.
            clock.header.rate_diff_hz = i64::MIN;
            ensure_errno(libc::ERANGE, set_vm_clock_guest(fd, clock))
                .with_context(|| format!("mode {}", clock.header.mode))?;
            ensure_rate_diff(vm, clock)?;
        }
        Ok(())
    })
}

/// The rates other than `RATES[index]`.
fn others(host: &Host, index: usize) -> impl Iterator<Item = (usize, &'static Rate)> + '_ {
    RATES
        .iter()
        .enumerate()
        .filter(move |(_, rate)| rate.khz(host) != RATES[index].khz(host))
}

/// The record cannot be used unchanged. With RESLOPE, kvmclock continues from its value, with the
/// slope of a TSC of another rate.
fn allowed(host: &Host, index: usize) -> Result<()> {
    for (_, rate) in others(host, index) {
        let mut clock = saved(host, index, MODE_FREEZE)?;
        let vm = rate.derived(host)?;
        clock.header.flags = FLAG_ALLOW_RATE_MISMATCH;
        ensure_out_of_range(&vm, &mut [clock.clone()])
            .with_context(|| format!("to {}, without RESLOPE", rate.name))?;
        clock.header.flags = FLAG_ALLOW_RATE_MISMATCH | FLAG_RESLOPE;
        ensure_resloped(&vm, &mut clock).with_context(|| format!("to {}", rate.name))?;
        ensure_rate_diff(&vm, &clock)?;
    }
    Ok(())
}

/// SET of `saved` in mode freeze: all TSCs move alike, and the record's slope changes.
fn ensure_resloped(vm: &Vm, saved: &mut VmClock) -> Result<()> {
    let clocks = Clocks::of(vm)?;
    let (guest_tsc, kvmclock_ns) = (saved.header.guest_tsc, saved.header.kvmclock_ns);
    let rounding_ns = arithmetic::rounding_ns(&saved.header.record);
    set(vm, saved, MODE_FREEZE)?;
    ensure_eq!(saved.header.precision_ns, rounding_ns, "precision_ns");
    let header = get(vm)?.header;
    let record = header.record;
    ensure_eq_hex!(
        (record.tsc_timestamp, record.system_time),
        (guest_tsc, kvmclock_ns),
        "TSC timestamp and system time"
    );
    // CAST: A few GHz.
    let is_close = record.factor().is_close_to(hz(&header) as u64, 1);
    ensure!(is_close, "the TSC has {} Hz, {record:x?}", hz(&header));
    let moved = VmClock {
        header: VmClockGuest {
            record,
            ..saved.header
        },
        ..saved.clone()
    };
    ensure_moved_as_one(vm, &clocks, &moved)
}

/// A rate within the tolerance is accepted; mode exact restores the saved ratio.
fn nearly(host: &Host, index: usize) -> Result<()> {
    let khz = RATES[index].khz(host);
    for (ppm, is_within) in [(WITHIN_PPM, true), (BEYOND_PPM, false)] {
        for (_, mode) in MODES {
            let vm = derived_at_rate(&host.kvm, VCPUS, khz + khz / (1_000_000 / ppm))?;
            let mut clock = saved(host, index, mode)?;
            let ratio = clock.header.tsc_ratio;
            // KVM does not scale for that little.
            if get(&vm)?.header.tsc_ratio == ratio {
                ensure!(
                    is_within && khz == host.khz,
                    "{ppm} ppm faster than {khz} kHz is the same ratio"
                );
                note!("{ppm} ppm from the host's rate is not scaled");
            }
            if !is_within {
                ensure_out_of_range(&vm, &mut [clock]).with_context(|| format!("{ppm} ppm"))?;
                continue;
            }
            let offsets = vm.tsc_offsets()?;
            set(&vm, &mut clock, mode).with_context(|| format!("{ppm} ppm"))?;
            ensure!(
                vm.tsc_offsets()? != offsets,
                "mode {mode}, {ppm} ppm: SET changed no offset"
            );
            if mode != MODE_EXACT {
                ensure_rate_diff(&vm, &clock)?;
            }
        }
    }
    Ok(())
}
