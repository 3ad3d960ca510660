// SPDX-License-Identifier: GPL-2.0-only

//! Sums up the cycles of a run, and prints the sum: as JSON, as text, as the demo's table.

use crate::{
    guest::Backwards,
    measure::{compare, ClockError, Reading},
    method::Method,
    scenario::{Config, Scenario},
};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// One cycle.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Cycle {
    /// Counts from 1.
    pub cycle: u32,
    /// From stop to go, ns.
    pub downtime_ns: u64,
    /// Worst TSC error over vCPUs and readings, ticks.
    pub tsc_error_ticks: i64,
    /// Worst kvmclock error, ns.
    pub kvmclock_error_ns: i64,
    /// Worst skew, ns.
    pub tsc_kvmclock_skew_ns: i64,
}

/// All cycles of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// What happened to the VM.
    pub scenario: Scenario,
    /// How its clocks were saved and restored.
    pub method: Method,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Cycles asked for.
    pub cycles: u32,
    /// Cycles done; fewer only after an error.
    pub cycles_done: u32,
    /// Downtime asked for, ns.
    pub downtime_ns: u64,
    /// Longest time from stop to go, ns.
    pub downtime_ns_max: u64,
    /// Guest TSC rate, kHz.
    pub tsc_khz: u32,
    /// Every `KVM_VCPU_TSC_OFFSET` was the same before and after every cycle.
    pub offsets_bit_identical: bool,
    /// Every record that a guest read was the same before and after every cycle, `version` aside.
    pub record_bit_identical: bool,
    /// Largest TSC error of a cycle, ticks.
    pub tsc_error_ticks_max: u64,
    /// Largest kvmclock error of a cycle, ns.
    pub kvmclock_error_ns_max: u64,
    /// Largest skew of a cycle, ns.
    pub tsc_kvmclock_skew_ns_max: u64,
    /// TSC error after the last cycle against the first transform, ticks, signed.
    pub tsc_error_ticks_total: i64,
    /// kvmclock error likewise, ns.
    pub kvmclock_error_ns_total: i64,
    /// Skew likewise, ns.
    pub tsc_kvmclock_skew_ns_total: i64,
    /// Worst precision (ns) that the kernel reported of the clocks it saved; 0: exact, or nothing
    /// was said.
    #[serde(default)]
    pub precision_ns_max: u32,
    /// Steps back that the guest saw, all kinds.
    pub backwards_steps: u64,
    /// The same by kind.
    pub backwards: Backwards,
    /// The first failure: contradictory readings, a failed call, a dead process; and, of a method
    /// that claims to be exact, the first error of a clock.
    pub first_error: Option<String>,
    /// The cycles one by one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_cycle: Vec<Cycle>,
}

/// Takes the readings of a run, the first being the one before the first cycle.
#[derive(Debug)]
pub struct Tally {
    summary: Summary,
    first: Option<Reading>,
    previous: Option<Reading>,
}

impl Tally {
    /// Nothing yet.
    pub fn new(config: &Config) -> Self {
        Self {
            summary: Summary {
                scenario: config.scenario,
                method: config.method,
                vcpus: config.vcpus,
                cycles: config.cycles,
                cycles_done: 0,
                // CAST: `duration::parse()` accepts no more than 64 bits of ns.
                downtime_ns: config.downtime.as_nanos() as u64,
                downtime_ns_max: 0,
                tsc_khz: 0,
                offsets_bit_identical: true,
                record_bit_identical: true,
                tsc_error_ticks_max: 0,
                kvmclock_error_ns_max: 0,
                tsc_kvmclock_skew_ns_max: 0,
                tsc_error_ticks_total: 0,
                kvmclock_error_ns_total: 0,
                tsc_kvmclock_skew_ns_total: 0,
                precision_ns_max: 0,
                backwards_steps: 0,
                backwards: Backwards::default(),
                first_error: None,
                per_cycle: Vec::new(),
            },
            first: None,
            previous: None,
        }
    }

    /// Cycles done so far.
    pub fn cycles_done(&self) -> u32 {
        self.summary.cycles_done
    }

    /// The sum so far.
    pub fn so_far(&self) -> &Summary {
        &self.summary
    }

    /// Takes the reading after a cycle.
    pub fn add(&mut self, reading: Reading) {
        match (self.first.take(), self.previous.take()) {
            (Some(first), Some(previous)) => {
                self.cycle(&first, &previous, &reading);
                self.first = Some(first);
            }
            _ => self.first = Some(reading.clone()),
        }
        self.previous = Some(reading);
    }

    fn cycle(&mut self, first: &Reading, previous: &Reading, reading: &Reading) {
        self.summary.cycles_done += 1;
        self.summary.tsc_khz = reading.tsc_khz;
        let precision_ns = previous.precision_ns.max(reading.precision_ns);
        self.summary.precision_ns_max = self.summary.precision_ns_max.max(precision_ns);

        match compare(previous, reading) {
            Err(contradiction) => {
                self.summary.offsets_bit_identical = false;
                self.summary.record_bit_identical = false;
                self.fail(format!(
                    "cycle {}: {contradiction}",
                    self.summary.cycles_done
                ));
            }
            Ok(found) => {
                self.summary.offsets_bit_identical &= found.offsets_identical;
                self.summary.record_bit_identical &= found.records_identical;
                self.count(found.error, downtime_ns(previous, reading));
            }
        }
        // A contradiction was reported above.
        if let Ok(found) = compare(first, reading) {
            self.summary.tsc_error_ticks_total = found.error.tsc_ticks;
            self.summary.kvmclock_error_ns_total = found.error.kvmclock_ns;
            self.summary.tsc_kvmclock_skew_ns_total = found.error.skew_ns;
        }

        self.summary.backwards = reading.backwards() - first.backwards();
        self.summary.backwards_steps = self.summary.backwards.total();

        let summary = &self.summary;
        if summary.method.is_exact() && !summary.is_as_good_as_reported() {
            self.fail(format!(
                "cycle {}: not exact: TSC off by {} ticks, kvmclock by {} ns, offsets {}, records \
                 {}, {} steps back",
                summary.cycles_done,
                summary.tsc_error_ticks_max,
                summary.kvmclock_error_ns_max,
                identical(summary.offsets_bit_identical),
                identical(summary.record_bit_identical),
                summary.backwards_steps,
            ));
        }
    }

    fn count(&mut self, error: ClockError, downtime_ns: u64) {
        let summary = &mut self.summary;
        let keep_max = |max: &mut u64, value: u64| *max = value.max(*max);
        keep_max(&mut summary.downtime_ns_max, downtime_ns);
        keep_max(
            &mut summary.tsc_error_ticks_max,
            error.tsc_ticks.unsigned_abs(),
        );
        keep_max(
            &mut summary.kvmclock_error_ns_max,
            error.kvmclock_ns.unsigned_abs(),
        );
        keep_max(
            &mut summary.tsc_kvmclock_skew_ns_max,
            error.skew_ns.unsigned_abs(),
        );
        summary.per_cycle.push(Cycle {
            cycle: summary.cycles_done,
            downtime_ns,
            tsc_error_ticks: error.tsc_ticks,
            kvmclock_error_ns: error.kvmclock_ns,
            tsc_kvmclock_skew_ns: error.skew_ns,
        });
    }

    /// Something went wrong; the first such text is kept.
    pub fn fail(&mut self, message: String) {
        self.summary.first_error.get_or_insert(message);
    }

    /// The sum.
    pub fn finish(self) -> Summary {
        self.summary
    }
}

/// Host time from stop to go; both processes are on one host, so its TSC tells.
fn downtime_ns(previous: &Reading, reading: &Reading) -> u64 {
    let ticks = reading.host_run.wrapping_sub(previous.host_stop);
    let ns = u128::from(ticks) * 1_000_000 / u128::from(reading.tsc_khz.max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// What is said of bits that are the same or not.
pub(crate) fn identical(is: bool) -> &'static str {
    if is {
        "bit-identical"
    } else {
        "changed"
    }
}

impl Summary {
    /// Nothing was lost: same bits, no error, no step back.
    pub fn is_exact(&self) -> bool {
        self.offsets_bit_identical
            && self.record_bit_identical
            && self.tsc_error_ticks_max == 0
            && self.kvmclock_error_ns_max == 0
            && self.backwards_steps == 0
    }

    /// It is exact; or the kernel reports a precision, as the host does not keep its time by a stable
    /// TSC, and the guest's TSC is exact. Its kvmclock then follows the host's time.
    fn is_as_good_as_reported(&self) -> bool {
        self.is_exact()
            || self.precision_ns_max != 0
                && self.offsets_bit_identical
                && self.tsc_error_ticks_max == 0
                && self.backwards.own_tsc == 0
    }

    /// Some lines for a reader.
    pub fn to_text(&self, verbose: bool) -> String {
        let mut text = format!(
            "{} by {}: {}/{} cycles, {} vCPUs, downtime {} (longest {}), TSC {} kHz\n",
            self.scenario.name(),
            self.method.name(),
            self.cycles_done,
            self.cycles,
            self.vcpus,
            ns(self.downtime_ns),
            ns(self.downtime_ns_max),
            self.tsc_khz,
        );
        if verbose {
            for cycle in &self.per_cycle {
                let _ = writeln!(
                    text,
                    "  cycle {:3}: down {}, TSC {:+} ticks, kvmclock {:+} ns, skew {:+} ns",
                    cycle.cycle,
                    ns(cycle.downtime_ns),
                    cycle.tsc_error_ticks,
                    cycle.kvmclock_error_ns,
                    cycle.tsc_kvmclock_skew_ns,
                );
            }
        }
        let _ = write!(
            text,
            "  TSC error       worst {} ticks a cycle, {:+} in all; offsets {}\n\
             \x20 kvmclock error  worst {} ns a cycle, {:+} in all; record {}\n\
             \x20 skew            worst {} ns a cycle, {:+} in all\n\
             \x20 backward steps  {} (own TSC {}, own kvmclock {}, across vCPUs {} and {})\n\
             \x20 first error     {}\n",
            self.tsc_error_ticks_max,
            self.tsc_error_ticks_total,
            identical(self.offsets_bit_identical),
            self.kvmclock_error_ns_max,
            self.kvmclock_error_ns_total,
            identical(self.record_bit_identical),
            self.tsc_kvmclock_skew_ns_max,
            self.tsc_kvmclock_skew_ns_total,
            self.backwards_steps,
            self.backwards.own_tsc,
            self.backwards.own_kvmclock,
            self.backwards.cross_tsc,
            self.backwards.cross_kvmclock,
            self.first_error.as_deref().unwrap_or("none"),
        );
        if self.precision_ns_max != 0 {
            let _ = writeln!(text, "  {}", self.said_precision());
        }
        text
    }

    /// What is to be said where the clocks are not exact.
    pub fn said_precision(&self) -> String {
        format!(
            "this host does not keep its time by a stable TSC: the clocks were saved precise to {} ns, as the \
             kernel reports",
            self.precision_ns_max
        )
    }
}

/// ns with the unit that suits them.
fn ns(value: u64) -> String {
    match value {
        0..10_000 => format!("{value} ns"),
        10_000..10_000_000 => format!("{:.1} us", value as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} ms", value as f64 / 1e6),
        _ => format!("{:.1} s", value as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::tests::{reading, record, unscaled, KHZ, START};
    use std::time::Duration;

    fn tally(method: Method) -> Tally {
        Tally::new(&Config {
            scenario: Scenario::Pause,
            method,
            vcpus: 1,
            cycles: 3,
            downtime: Duration::from_millis(50),
            any_kvm: false,
        })
    }

    /// A reading after `cycle` cycles, the TSC being off by `ticks` and kvmclock by `ns`.
    fn after(cycle: u64, ticks: u64, ns: u64) -> Reading {
        let host = START + cycle * 1_000_000_000;
        let mut reading = reading(unscaled(ticks), record(START + ticks, 1_000 + ns), host);
        reading.host_run = host - 500;
        reading.host_stop = host + 500;
        reading
    }

    #[test]
    fn untouched_clocks_are_exact() {
        let mut tally = tally(Method::Atomic);
        (0..4).for_each(|cycle| tally.add(after(cycle, 0, 0)));
        let summary = tally.finish();
        assert!(summary.is_exact());
        assert_eq!((summary.cycles_done, summary.first_error), (3, None));
        let ticks_down = 1_000_000_000 - 1_000;
        assert_eq!(
            summary.downtime_ns_max,
            ticks_down * 1_000_000 / u64::from(KHZ)
        );
    }

    #[test]
    fn errors_add_up() {
        let mut tally = tally(Method::LegacyMsr);
        for (cycle, ns) in [0, 7, 10, 4].into_iter().enumerate() {
            tally.add(after(cycle as u64, 0, ns));
        }
        let summary = tally.finish();
        let of_cycles: Vec<_> = summary
            .per_cycle
            .iter()
            .map(|c| c.kvmclock_error_ns)
            .collect();
        assert_eq!(of_cycles, [7, 3, -6]);
        assert_eq!(summary.kvmclock_error_ns_max, 7);
        assert_eq!(summary.kvmclock_error_ns_total, 4);
        assert!(summary.offsets_bit_identical && !summary.record_bit_identical);
        // An error of a method that does not claim to be exact is a result.
        assert_eq!(summary.first_error, None);
    }

    #[test]
    fn an_exact_method_may_lose_nothing() {
        for (ticks, ns) in [(1, 0), (0, 1)] {
            let mut tally = tally(Method::Atomic);
            tally.add(after(0, 0, 0));
            tally.add(after(1, 0, 0));
            tally.add(after(2, ticks, ns));
            let error = tally.finish().first_error.unwrap();
            assert!(error.starts_with("cycle 2: not exact"), "{error}");
        }
    }

    #[test]
    fn steps_back_count_from_the_first_reading() {
        let mut tally = tally(Method::Atomic);
        for (cycle, own_tsc) in [5, 5, 7].into_iter().enumerate() {
            let mut reading = after(cycle as u64, 0, 0);
            reading.vcpus[0].backwards.own_tsc = own_tsc;
            tally.add(reading);
        }
        let summary = tally.finish();
        assert_eq!(summary.backwards_steps, 2);
        assert!(summary.first_error.is_some());
    }
}
