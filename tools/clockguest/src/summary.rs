// SPDX-License-Identifier: GPL-2.0-only

//! The summary of a run's cycles, as JSON and as text.

use crate::{
    guest::Backwards,
    measure::{compare, ticks_to_ns, ClockError, Reading},
    method::Method,
    report::text::duration,
    scenario::{Config, Scenario},
};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// A cycle.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Cycle {
    /// Its number, from 1.
    pub cycle: u32,
    /// Time from stop to run, ns.
    pub downtime_ns: u64,
    /// Worst TSC error over vCPUs and readings, ticks.
    pub tsc_error_ticks: i64,
    /// Worst kvmclock error, ns.
    pub kvmclock_error_ns: i64,
    /// Worst skew, ns.
    pub tsc_kvmclock_skew_ns: i64,
}

/// The summary of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// The scenario.
    pub scenario: Scenario,
    /// The method.
    pub method: Method,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Requested cycles.
    pub cycles: u32,
    /// Completed cycles; fewer only after an error.
    pub cycles_done: u32,
    /// Requested downtime, ns.
    pub downtime_ns: u64,
    /// Longest time from stop to run, ns.
    pub downtime_ns_max: u64,
    /// Guest TSC rate, kHz.
    pub tsc_khz: u32,
    /// Whether every cycle preserved every `KVM_VCPU_TSC_OFFSET`.
    pub offsets_bit_identical: bool,
    /// Whether every cycle preserved every record that the guest read, except for `version`.
    pub record_bit_identical: bool,
    /// Largest TSC error of a cycle, ticks.
    pub tsc_error_ticks_max: u64,
    /// Largest kvmclock error of a cycle, ns.
    pub kvmclock_error_ns_max: u64,
    /// Largest skew of a cycle, ns.
    pub tsc_kvmclock_skew_ns_max: u64,
    /// Signed TSC error after the last cycle against the first transform, ticks.
    pub tsc_error_ticks_total: i64,
    /// Signed kvmclock error after the last cycle, ns.
    pub kvmclock_error_ns_total: i64,
    /// Signed skew after the last cycle, ns.
    pub tsc_kvmclock_skew_ns_total: i64,
    /// Worst precision that the kernel reported for saved clocks, ns; 0 if exact or unknown.
    #[serde(default)]
    pub precision_ns_max: u32,
    /// Steps back that the guest saw, all kinds.
    pub backwards_steps: u64,
    /// Steps back by kind.
    pub backwards: Backwards,
    /// The first failure: inconsistent readings, a failed call, a dead process; or any clock error
    /// of an exact method.
    pub first_error: Option<String>,
    /// The individual cycles.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_cycle: Vec<Cycle>,
}

/// Summarises the readings of a run, of which the first one precedes the first cycle.
#[derive(Debug)]
pub struct Tally {
    summary: Summary,
    first: Option<Reading>,
    previous: Option<Reading>,
}

impl Tally {
    /// An empty summary.
    pub fn new(config: &Config) -> Self {
        Self {
            summary: Summary {
                scenario: config.scenario,
                method: config.method,
                vcpus: config.vcpus,
                cycles: config.cycles,
                // CAST: `duration::parse()` accepts no more than 64 bits of ns.
                downtime_ns: config.downtime.as_nanos() as u64,
                offsets_bit_identical: true,
                record_bit_identical: true,
                ..Summary::default()
            },
            first: None,
            previous: None,
        }
    }

    /// The number of completed cycles.
    pub fn cycles_done(&self) -> u32 {
        self.summary.cycles_done
    }

    /// The summary so far.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Adds the reading after a cycle.
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
            Err(inconsistent) => {
                self.summary.offsets_bit_identical = false;
                self.summary.record_bit_identical = false;
                self.fail(format!(
                    "cycle {}: {inconsistent}",
                    self.summary.cycles_done
                ));
            }
            Ok(found) => {
                self.summary.offsets_bit_identical &= found.offsets_identical;
                self.summary.record_bit_identical &= found.records_identical;
                self.count(found.error, downtime_ns(previous, reading));
            }
        }
        // Inconsistent readings were reported above.
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

    /// Records a failure; only the first one is kept.
    pub fn fail(&mut self, message: String) {
        self.summary.first_error.get_or_insert(message);
    }

    /// The final summary.
    pub fn finish(self) -> Summary {
        self.summary
    }
}

/// Time from stop to run by the host TSC, which is the same for both processes.
fn downtime_ns(previous: &Reading, reading: &Reading) -> u64 {
    let ticks = reading.host_run.since(previous.host_stop);
    ticks_to_ns(ticks, reading.tsc_khz)
}

/// The result of a comparison, for the user.
pub(crate) fn identical(is: bool) -> &'static str {
    if is {
        "bit-identical"
    } else {
        "changed"
    }
}

impl Summary {
    /// Whether all cycles were exact: same bits, no error, no step back.
    pub fn is_exact(&self) -> bool {
        self.offsets_bit_identical
            && self.record_bit_identical
            && self.tsc_error_ticks_max == 0
            && self.kvmclock_error_ns_max == 0
            && self.backwards_steps == 0
    }

    /// Whether the run is exact; or, without a stable host TSC, the guest's TSC is exact. The
    /// guest's kvmclock then follows the host's time with the precision that the kernel reports.
    fn is_as_good_as_reported(&self) -> bool {
        self.is_exact()
            || self.precision_ns_max != 0
                && self.offsets_bit_identical
                && self.tsc_error_ticks_max == 0
                && self.backwards.own_tsc == 0
    }

    /// A text for the user.
    pub fn to_text(&self, verbose: bool) -> String {
        let mut text = format!(
            "{} with {}: {}/{} cycles, {} vCPUs, downtime {} (longest {}), TSC {} kHz\n",
            self.scenario.name(),
            self.method.name(),
            self.cycles_done,
            self.cycles,
            self.vcpus,
            duration(self.downtime_ns),
            duration(self.downtime_ns_max),
            self.tsc_khz,
        );
        if verbose {
            for cycle in &self.per_cycle {
                let _ = writeln!(
                    text,
                    "  cycle {:3}: down {}, TSC {:+} ticks, kvmclock {:+} ns, skew {:+} ns",
                    cycle.cycle,
                    duration(cycle.downtime_ns),
                    cycle.tsc_error_ticks,
                    cycle.kvmclock_error_ns,
                    cycle.tsc_kvmclock_skew_ns,
                );
            }
        }
        let _ = write!(
            text,
            "  TSC error       worst {} ticks per cycle, {:+} in total; offsets {}\n\
             \x20 kvmclock error  worst {} ns per cycle, {:+} in total; record {}\n\
             \x20 skew            worst {} ns per cycle, {:+} in total\n\
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
            let _ = writeln!(text, "  {}", self.precision_note());
        }
        text
    }

    /// A note about clocks that are not exact.
    pub fn precision_note(&self) -> String {
        format!(
            "this host's TSC is not stable: the kernel saved the clocks precise to {} ns",
            self.precision_ns_max
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::tests::{guest_tsc, reading, record, unscaled, KHZ, START};
    use pvclock::counter::TscOffset;
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

    /// A reading after `cycle` cycles, with a TSC error of `ticks` and a kvmclock error of `ns`.
    fn after(cycle: u64, ticks: u64, ns: u64) -> Reading {
        let host = START.wrapping_add(cycle * 1_000_000_000);
        let offset = TscOffset(ticks);
        let record = record(guest_tsc(offset, START), 1_000 + ns);
        let mut reading = reading(unscaled(offset), record, host);
        reading.host_run = host.wrapping_sub(500);
        reading.host_stop = host.wrapping_add(500);
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
        // An error of a legacy method is a result.
        assert_eq!(summary.first_error, None);
    }

    #[test]
    fn an_error_of_an_exact_method_is_a_failure() {
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
