// SPDX-License-Identifier: GPL-2.0-only

//! Cycles in one mode of `KVM_SET_VM_CLOCK_GUEST`, each judged by what the mode promises.
//!
//! The guest's readings give the TSC error of a cycle: how far the guest's TSC is from where it
//! would be if it had counted on. Exact promises 0. Freeze promises minus the ticks from the save
//! to SET, which the host's own TSC limits from both sides. Advance promises the elapsed TAI, of
//! which the host's TSC has counted more or less; readings of both clocks before and after SET
//! limit that difference. The limits include the kernel's rounding.

use super::Config;
use crate::{
    host::{rdtsc_ordered, ClockAndTsc},
    measure::{compare, Reading},
    method::{atomic, Method, Mode, Saved},
    observe,
    scenario::{stop_and_save, warm_up},
    vmm::Vm,
};
use anyhow::{bail, Context, Result};
use kvm_ioctls::Kvm;
use pvclock::{
    abi::VmClockGuest,
    counter::HostTsc,
    rate::GuestRate,
    tsc::{Scale, TscTransform},
};
use serde::Serialize;
use std::thread::sleep;

/// Readings of TAI at each end of SET; the one in the shortest time counts.
const TAI_READINGS: u32 = 8;

/// The result of cycles in one mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModeSummary {
    /// The mode.
    pub mode: Mode,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Completed cycles.
    pub cycles_done: u32,
    /// Guest TSC rate, kHz.
    pub tsc_khz: u32,
    /// Smallest TSC error of a cycle, ticks.
    pub tsc_error_ticks_min: i64,
    /// Largest TSC error of a cycle, ticks.
    pub tsc_error_ticks_max: i64,
    /// The largest distance of a TSC error from what the mode promises, ticks.
    pub tsc_outside_ticks_max: u64,
    /// The widest limits of a promise, from one to the other, ticks.
    pub uncertainty_ticks_max: u64,
    /// Largest skew of a cycle, ns.
    pub tsc_kvmclock_skew_ns_max: u64,
    /// Whether every cycle preserved every record that the guest read, except for `version`.
    pub record_bit_identical: bool,
    /// Steps back that the guest saw, all kinds.
    pub backwards_steps: u64,
    /// The first cycle that broke a promise.
    pub first_error: Option<String>,
}

/// The host's clocks right before and after `KVM_SET_VM_CLOCK_GUEST`.
#[derive(Clone, Copy)]
struct SetWindow {
    /// `CLOCK_TAI` before it.
    before: ClockAndTsc,
    /// Host TSC right before it.
    tsc_before: HostTsc,
    /// Host TSC right after it.
    tsc_after: HostTsc,
    /// `CLOCK_TAI` after it.
    after: ClockAndTsc,
}

/// The clocks that a cycle saved, as far as they decide what a mode promises.
struct Anchor {
    host_tsc: HostTsc,
    tai_ns: i64,
    transform: TscTransform,
    rate: GuestRate,
}

impl Anchor {
    fn of(header: &VmClockGuest) -> Result<Self> {
        let scale = match (header.tsc_ratio, header.tsc_frac_bits) {
            (0, 0) => Scale::IDENTITY,
            (ratio, bits) => Scale::new(ratio, bits).context("the saved ratio is not one")?,
        };
        Ok(Self {
            host_tsc: header.host_tsc,
            tai_ns: header.tai_ns,
            // Only differences are computed.
            transform: TscTransform {
                scale,
                offset: pvclock::counter::TscOffset(0),
            },
            rate: GuestRate {
                host_khz: header.host_tsc_khz,
                scale,
            },
        })
    }

    /// Guest ticks from the save until `host_tsc`, signed.
    fn ticks_until(&self, host_tsc: HostTsc) -> i64 {
        let (then, now) = (self.host_tsc, host_tsc);
        let ticks = self
            .transform
            .guest_tsc(now)
            .since(self.transform.guest_tsc(then));
        // CAST: The signed difference of values mod 2^64.
        ticks as i64
    }

    /// The guest's ticks in the TAI from the save until `tai_ns`.
    fn ticks_of_tai(&self, tai_ns: i64) -> Option<i64> {
        let ns = u64::try_from(tai_ns.checked_sub(self.tai_ns)?).ok()?;
        self.rate.ticks(ns)?.try_into().ok()
    }

    /// The TSC errors that `mode` allows a SET within `set`, ticks. `None` if TAI went back.
    fn allowed(&self, mode: Mode, set: &SetWindow) -> Option<(i64, i64)> {
        // Two values of the guest's TSC are rounded.
        const ROUNDING: i64 = 1;
        match mode {
            Mode::Exact => Some((0, 0)),
            Mode::Freeze => Some((
                -self.ticks_until(set.tsc_after) - ROUNDING,
                -self.ticks_until(set.tsc_before) + ROUNDING,
            )),
            Mode::Advance => {
                // Both readings of TAI have whole ns; the promise is exact to one tick.
                let rounding = 1 + i64::try_from(self.rate.ticks(1)?).ok()? + 1 + ROUNDING;
                let mut limits: Option<(i64, i64)> = None;
                for at in [set.before, set.after] {
                    let tai = self.ticks_of_tai(at.ns)?;
                    let [tsc_before, tsc_after] = at.host_tsc;
                    let low = tai - self.ticks_until(tsc_after);
                    let high = tai - self.ticks_until(tsc_before);
                    limits = Some(match limits {
                        None => (low, high),
                        Some((a, b)) => (a.min(low), b.max(high)),
                    });
                }
                limits.map(|(low, high)| (low - rounding, high + rounding))
            }
        }
    }
}

/// Runs the cycles of `config` in `mode`, with a guest whose TSC has the rate `tsc_khz`, kHz, or
/// the host's.
pub(super) fn run(
    config: &Config,
    kvm: &Kvm,
    mode: Mode,
    tsc_khz: Option<u32>,
) -> Result<ModeSummary> {
    let vm = match tsc_khz {
        None => Vm::new(kvm, config.vcpus),
        Some(khz) => Vm::at_rate(kvm, config.vcpus, khz),
    }?;
    warm_up(&vm)?;
    let mut summary = ModeSummary::new(mode, config.vcpus);
    let mut run = observe::run(&vm)?;
    let mut previous: Option<(Reading, (i64, i64))> = None;
    for cycle in 0..=config.cycles {
        let (saved, reading) = stop_and_save(&vm, run, Method::Atomic)?;
        let Saved::Atomic(saved) = saved else {
            bail!("method atomic saved the clocks of another one");
        };
        if let Some((before, allowed)) = &previous {
            summary.add(cycle, before, &reading, *allowed);
        }
        if cycle == config.cycles {
            break;
        }
        sleep(config.downtime);
        let allowed = set(&saved, &vm, mode)?;
        previous = Some((reading, allowed));
        run = observe::run(&vm)?;
    }
    Ok(summary)
}

/// Restores `saved` in `mode`; returns the TSC errors that the mode allows, ticks.
fn set(saved: &atomic::Saved, vm: &Vm, mode: Mode) -> Result<(i64, i64)> {
    let anchor = Anchor::of(&saved.0.clock()?.header)?;
    let tai =
        || ClockAndTsc::tightest(libc::CLOCK_TAI, TAI_READINGS).context("cannot read CLOCK_TAI");
    let before = tai()?;
    let tsc_before = rdtsc_ordered();
    saved.set(vm, mode)?;
    let tsc_after = rdtsc_ordered();
    let window = SetWindow {
        before,
        tsc_before,
        tsc_after,
        after: tai()?,
    };
    anchor
        .allowed(mode, &window)
        .context("CLOCK_TAI went back during the pause")
}

impl ModeSummary {
    fn new(mode: Mode, vcpus: u32) -> Self {
        Self {
            mode,
            vcpus,
            cycles_done: 0,
            tsc_khz: 0,
            tsc_error_ticks_min: i64::MAX,
            tsc_error_ticks_max: i64::MIN,
            tsc_outside_ticks_max: 0,
            uncertainty_ticks_max: 0,
            tsc_kvmclock_skew_ns_max: 0,
            record_bit_identical: true,
            backwards_steps: 0,
            first_error: None,
        }
    }

    /// Adds cycle number `cycle`, whose TSC error may be from `allowed.0` to `allowed.1`.
    fn add(&mut self, cycle: u32, before: &Reading, after: &Reading, allowed: (i64, i64)) {
        let found = match compare(before, after) {
            Ok(found) => found,
            Err(inconsistent) => return self.fail(format!("cycle {cycle}: {inconsistent}")),
        };
        self.cycles_done += 1;
        self.tsc_khz = after.tsc_khz;
        let (low, high) = allowed;
        let ticks = found.error.tsc_ticks;
        let outside = low
            .saturating_sub(ticks)
            .max(ticks.saturating_sub(high))
            .max(0);
        let skew = found.error.skew_ns.unsigned_abs();
        let steps = (after.backwards() - before.backwards()).total();
        // The comparison's error is the largest one: of the others it says nothing.
        let shift = |index: usize| {
            let offset = |reading: &Reading| reading.vcpus[index].tsc.offset.0;
            offset(after).wrapping_sub(offset(before))
        };
        let apart = (1..after.vcpus.len()).find(|&index| shift(index) != shift(0));

        self.tsc_error_ticks_min = self.tsc_error_ticks_min.min(ticks);
        self.tsc_error_ticks_max = self.tsc_error_ticks_max.max(ticks);
        self.tsc_outside_ticks_max = self.tsc_outside_ticks_max.max(outside.unsigned_abs());
        self.uncertainty_ticks_max = self.uncertainty_ticks_max.max(high.abs_diff(low));
        self.tsc_kvmclock_skew_ns_max = self.tsc_kvmclock_skew_ns_max.max(skew);
        self.record_bit_identical &= found.records_identical;
        self.backwards_steps += steps;

        if outside != 0 {
            self.fail(format!(
                "cycle {cycle}: TSC off by {ticks} ticks, {outside} beyond {low} to {high}"
            ));
        }
        if skew != 0 || !found.records_identical {
            self.fail(format!(
                "cycle {cycle}: records changed, kvmclock moved by {skew} ns against the TSC"
            ));
        }
        if let Some(index) = apart {
            self.fail(format!(
                "cycle {cycle}: the TSC of vCPU {index} moved otherwise than that of vCPU 0"
            ));
        }
        if steps != 0 {
            self.fail(format!("cycle {cycle}: {steps} steps back"));
        }
    }

    fn fail(&mut self, message: String) {
        self.first_error.get_or_insert(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Saved at host TSC 1,000 and TAI 5 s by a host of 2 GHz, whose guest has half of that.
    fn anchor() -> Anchor {
        let header = VmClockGuest {
            host_tsc: HostTsc(1_000),
            tai_ns: 5_000_000_000,
            host_tsc_khz: 2_000_000,
            tsc_ratio: 1 << 31,
            tsc_frac_bits: 32,
            ..VmClockGuest::default()
        };
        Anchor::of(&header).unwrap()
    }

    /// TAI and TSC 1 s later, by a TSC that is `fast` ticks ahead of TAI.
    fn window(fast: u64) -> SetWindow {
        let at = |ns: i64| ClockAndTsc {
            ns: 6_000_000_000 + ns,
            // CAST: Positive.
            host_tsc: [-20, 20].map(|around| {
                HostTsc((2_000_001_000 + 2 * ns as u64 + fast).wrapping_add_signed(around))
            }),
        };
        let (before, after) = (at(0), at(500));
        SetWindow {
            before,
            tsc_before: before.host_tsc[1],
            tsc_after: after.host_tsc[0],
            after,
        }
    }

    #[test]
    fn exact_allows_no_error() {
        assert_eq!(anchor().allowed(Mode::Exact, &window(9)), Some((0, 0)));
    }

    #[test]
    fn freeze_allows_the_ticks_of_the_pause() {
        let (low, high) = anchor().allowed(Mode::Freeze, &window(0)).unwrap();
        assert_eq!(
            (low, high),
            (-1_000_000_000 - 490 - 1, -1_000_000_000 - 10 + 1)
        );
    }

    #[test]
    fn advance_allows_the_drift_of_the_tsc_against_tai() {
        for fast in [0, 600] {
            let (low, high) = anchor().allowed(Mode::Advance, &window(fast)).unwrap();
            let drift = -(i64::try_from(fast).unwrap() / 2);
            assert_eq!((low, high), (drift - 10 - 4, drift + 10 + 4));
        }
        let back = ClockAndTsc {
            ns: 4_000_000_000,
            ..window(0).before
        };
        let back = SetWindow {
            before: back,
            ..window(0)
        };
        assert_eq!(anchor().allowed(Mode::Advance, &back), None);
    }

    #[test]
    fn each_broken_promise_is_found() {
        use crate::measure::tests::{reading, record, unscaled, START};
        use pvclock::counter::{GuestTsc, TscOffset};
        let at = |offset: u64, ns: u64, later: u64| {
            let record = record(GuestTsc(START.0), 1_000 + ns);
            reading(
                unscaled(TscOffset(offset)),
                record,
                START.wrapping_add(later),
            )
        };
        let first_error = |after: &Reading, allowed| {
            let mut summary = ModeSummary::new(Mode::Freeze, 1);
            summary.add(1, &at(50, 0, 0), after, allowed);
            summary.first_error.unwrap_or_default()
        };
        assert_eq!(first_error(&at(40, 0, 9_000), (-11, -10)), "");
        assert!(first_error(&at(40, 0, 9_000), (-9, -8)).contains("1 beyond -9 to -8"));
        assert!(first_error(&at(40, 0, 9_000), (-12, -11)).contains("1 beyond"));
        assert!(first_error(&at(40, 1, 9_000), (-11, -10)).contains("moved by 1 ns"));
        let mut after = at(40, 0, 9_000);
        after.vcpus[0].backwards.own_tsc = 1;
        assert!(first_error(&after, (-11, -10)).contains("1 steps back"));
    }
}
