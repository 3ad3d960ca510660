// SPDX-License-Identifier: GPL-2.0-only

//! What a number of moves did to a guest's clocks.

use super::{
    message::{ClockShift, Restored},
    parts::{own_error_ticks, Anchor},
    truth::Counter,
};
use crate::{
    guest::Backwards,
    measure::{compare, compare_across, Reading},
    method::{Method, Mode, Saved},
    summary::identical,
};
use kvm_clock::VmClock;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Parts per million by which the rate that a guest's TSC continues at may be wrong while it is down:
/// what Linux disciplines a clock by at most.
const RATE_PPM: f64 = 500.0;

/// Ticks by which the operation itself may be off.
const OWN_TICKS: f64 = 1.0;

/// Ticks of error that may be left unexplained: conversions between host TSCs and guest TSC are floored.
const REST_TICKS: f64 = 4.0;

/// Where a guest went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To the other host.
    There,
    /// Back to this one.
    Back,
}

/// One move to another host. Positive errors are of clocks that are ahead.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Move {
    /// Where to.
    pub direction: Direction,
    /// From saved clocks to a running guest, by the destination's clock, ns.
    pub downtime_ns: i64,
    /// What put the clocks back.
    pub procedure: String,
    /// TSC error, ticks, worst over vCPUs and readings; where ground truth is known.
    pub tsc_error_ticks: Option<i64>,
    /// kvmclock error, ns, likewise.
    pub kvmclock_error_ns: Option<i64>,
    /// What of the TSC error the operation itself made, ticks; where SET was traced, or, of a legacy
    /// method, the rest.
    pub own_error_ticks: Option<f64>,
    /// What of it the hosts' clocks made, ticks; where ground truth is known, and the method goes by
    /// them.
    pub clocks_error_ticks: Option<f64>,
    /// What came on top until the guest read its TSC, as it runs at another rate here, ticks.
    pub rate_error_ticks: Option<f64>,
    /// kvmclock against the guest's TSC, ns.
    pub tsc_kvmclock_skew_ns: i64,
    /// How far the other host's clock was ahead, and how well that is known; if it was measured.
    pub clock_difference: Option<ClockShift>,
    /// Bound of the clocks' part by what is known of the clocks, ticks; if it was measured.
    pub clocks_bound_ticks: Option<f64>,
    /// How far the clocks may be from what was asked for, ns, as the kernel has it.
    pub precision_ns: Option<u32>,
    /// Guest TSC rate there minus the saved one, Hz.
    pub rate_diff_hz: Option<i64>,
    /// What was lost as a host has no module.
    pub lost: Option<String>,
    /// The guest reads the same records, `version` aside.
    pub record_bit_identical: bool,
    /// The TSC offsets are the same.
    pub offsets_bit_identical: bool,
}

/// A guest that could not move.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Aborted {
    /// Why.
    pub why: String,
    /// What became of it, for a human.
    pub guest: String,
    /// It goes on where it was with the same offsets and records, and no error of any clock; `None` if
    /// it was never stopped, or does not go on.
    pub exact: Option<bool>,
}

/// All moves of a guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// How the clocks were to be saved and restored.
    pub method: Method,
    /// How the clocks were carried over, method atomic.
    pub mode: Mode,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Guest TSC rate, kHz.
    pub tsc_khz: u32,
    /// Moves asked for.
    pub moves: u32,
    /// Moves done.
    pub moves_done: u32,
    /// Largest TSC error of a move, ticks; where ground truth is known.
    pub tsc_error_ticks_max: Option<u64>,
    /// Largest own error of a move, ticks; where it was traced.
    pub own_error_ticks_max: Option<f64>,
    /// Largest error of the hosts' clocks in a move, ticks.
    pub clocks_error_ticks_max: Option<f64>,
    /// Largest bound of that, ticks.
    pub clocks_bound_ticks_max: Option<f64>,
    /// Largest kvmclock error of a move, ns.
    pub kvmclock_error_ns_max: Option<u64>,
    /// Largest skew of a move, ns.
    pub tsc_kvmclock_skew_ns_max: u64,
    /// Longest downtime, ns.
    pub downtime_ns_max: i64,
    /// The record was the same throughout.
    pub record_bit_identical: bool,
    /// Steps back that the guest saw.
    pub backwards_steps: u64,
    /// The same by kind.
    pub backwards: Backwards,
    /// Why it ended early.
    pub aborted: Option<Aborted>,
    /// What went wrong first: a contradiction, or, of method atomic, anything that was lost.
    pub first_error: Option<String>,
    /// The moves one by one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_move: Vec<Move>,
}

/// What is known of one move.
#[derive(Debug)]
pub(super) struct Evidence<'a> {
    pub(super) direction: Direction,
    pub(super) before: &'a Reading,
    pub(super) after: &'a Reading,
    pub(super) saved: &'a Saved,
    pub(super) shift: Option<ClockShift>,
    pub(super) restored: &'a Restored,
    /// TAI - UTC of the host before, s.
    pub(super) tai_offset_s: i32,
    pub(super) downtime_ns: i64,
    /// TSCs of the hosts before and after, if the two are emulated, or one.
    pub(super) counters: Option<(Counter, Counter)>,
}

impl Summary {
    pub(super) fn new(method: Method, mode: Mode, vcpus: u32, moves: u32) -> Self {
        Self {
            method,
            mode,
            vcpus,
            tsc_khz: 0,
            moves,
            moves_done: 0,
            tsc_error_ticks_max: None,
            own_error_ticks_max: None,
            clocks_error_ticks_max: None,
            clocks_bound_ticks_max: None,
            kvmclock_error_ns_max: None,
            tsc_kvmclock_skew_ns_max: 0,
            downtime_ns_max: 0,
            record_bit_identical: true,
            backwards_steps: 0,
            backwards: Backwards::default(),
            aborted: None,
            first_error: None,
            per_move: Vec::new(),
        }
    }

    /// Takes a move.
    pub(super) fn add(&mut self, evidence: &Evidence<'_>) {
        self.moves_done += 1;
        let number = self.moves_done;
        let before = evidence.before;
        let after = evidence.after;
        self.tsc_khz = after.tsc_khz;
        self.backwards = self.backwards + (after.backwards() - before.backwards());
        self.backwards_steps = self.backwards.total();

        let compared = match evidence.counters {
            Some((was, is)) => compare_across(before, after, |tsc| is.to(was, tsc)),
            None => compare(before, after),
        };
        let found = match compared {
            Ok(found) => found,
            Err(contradiction) => return self.fail(format!("move {number}: {contradiction}")),
        };
        let known = evidence.counters.is_some();
        let tsc_error_ticks = known.then_some(found.error.tsc_ticks);
        let khz = f64::from(after.tsc_khz);
        let by_time = evidence.goes_by_time();
        let at_once = evidence.error_at_once_ticks();
        let clocks_error_ticks = evidence.clocks_error_ticks();
        let own_error_ticks = match evidence.saved {
            Saved::Atomic(saved) => evidence.own_error_ticks(&saved.0),
            Saved::LegacyOffset(_) => at_once.zip(clocks_error_ticks).map(|(all, of)| all - of),
            // It knows no time of day, so whatever is wrong is its own.
            Saved::LegacyMsr(_) => tsc_error_ticks.map(|all| all as f64),
        };
        let one = Move {
            direction: evidence.direction,
            downtime_ns: evidence.downtime_ns,
            procedure: evidence.restored.procedure.clone(),
            tsc_error_ticks,
            kvmclock_error_ns: known.then_some(found.error.kvmclock_ns),
            own_error_ticks,
            clocks_error_ticks,
            rate_error_ticks: tsc_error_ticks
                .zip(at_once)
                .map(|(all, then)| all as f64 - then),
            tsc_kvmclock_skew_ns: found.error.skew_ns,
            clock_difference: evidence.shift,
            clocks_bound_ticks: evidence.shift.filter(|_| by_time).map(|shift| {
                let rate_ns = evidence.downtime_ns as f64 * RATE_PPM / 1e6;
                (shift.uncertainty_ns as f64 + rate_ns) * khz / 1e6
            }),
            precision_ns: evidence.restored.precision_ns,
            rate_diff_hz: evidence.restored.rate_diff_hz,
            lost: evidence.restored.lost.clone(),
            record_bit_identical: found.records_identical,
            offsets_bit_identical: found.offsets_identical,
        };
        if let Some(unexplained) = unexplained(at_once, &one) {
            self.fail(format!("move {number}: {unexplained}"));
        }
        if let Some(lost) = self.lost_by(&one) {
            self.fail(format!("move {number}: {lost}"));
        }
        self.count(one);
    }

    /// What method atomic promises and did not keep.
    fn lost_by(&self, one: &Move) -> Option<String> {
        if self.method != Method::Atomic || one.lost.is_some() {
            return None;
        }
        let over = |value: Option<f64>, bound: f64| value.filter(|value| value.abs() > bound);
        if !one.record_bit_identical {
            return Some("the record changed".into());
        }
        if one.tsc_kvmclock_skew_ns != 0 {
            return Some(format!(
                "kvmclock was set against the TSC by {} ns",
                one.tsc_kvmclock_skew_ns
            ));
        }
        if let Some(ticks) = over(one.own_error_ticks, OWN_TICKS) {
            return Some(format!("SET was off by {ticks:.1} ticks"));
        }
        if let (Some(ticks), Some(bound)) = (one.clocks_error_ticks, one.clocks_bound_ticks) {
            if ticks.abs() > bound {
                return Some(format!(
                    "the hosts' clocks contributed {ticks:.0} ticks, but were known to {bound:.0}"
                ));
            }
        }
        if self.mode == Mode::Exact && !one.offsets_bit_identical {
            return Some("a TSC offset changed".into());
        }
        (self.backwards_steps > 0).then(|| format!("{} steps back", self.backwards_steps))
    }

    fn count(&mut self, one: Move) {
        let max = |max: Option<f64>, value: Option<f64>| match (max, value) {
            (Some(a), Some(b)) => Some(a.max(b.abs())),
            (a, b) => a.or(b.map(f64::abs)),
        };
        let max_of = |a: Option<u64>, b: Option<i64>| a.max(b.map(i64::unsigned_abs));
        self.tsc_error_ticks_max = max_of(self.tsc_error_ticks_max, one.tsc_error_ticks);
        self.kvmclock_error_ns_max = max_of(self.kvmclock_error_ns_max, one.kvmclock_error_ns);
        self.own_error_ticks_max = max(self.own_error_ticks_max, one.own_error_ticks);
        self.clocks_error_ticks_max = max(self.clocks_error_ticks_max, one.clocks_error_ticks);
        self.clocks_bound_ticks_max = max(self.clocks_bound_ticks_max, one.clocks_bound_ticks);
        self.tsc_kvmclock_skew_ns_max = self
            .tsc_kvmclock_skew_ns_max
            .max(one.tsc_kvmclock_skew_ns.unsigned_abs());
        self.downtime_ns_max = self.downtime_ns_max.max(one.downtime_ns);
        self.record_bit_identical &= one.record_bit_identical;
        self.per_move.push(one);
    }

    /// Something went wrong; the first such text is kept.
    pub(super) fn fail(&mut self, message: String) {
        self.first_error.get_or_insert(message);
    }

    /// Some lines for a reader.
    pub fn to_text(&self, verbose: bool) -> String {
        let mut text = format!(
            "{} of {} moves by {} ({}), {} vCPUs, TSC {} kHz, longest downtime {:.1} ms\n",
            self.moves_done,
            self.moves,
            self.method.name(),
            self.mode.name(),
            self.vcpus,
            self.tsc_khz,
            self.downtime_ns_max as f64 / 1e6,
        );
        if verbose {
            for (one, number) in self.per_move.iter().zip(1..) {
                let _ = writeln!(text, "  move {number:3}: {}", one.to_text());
            }
        }
        let _ = write!(
            text,
            "  TSC error       worst {} ticks: by the operation {}, by the hosts' clocks {} (bound {})\n\
             \x20 kvmclock error  worst {} ns; against the TSC {} ns; record {}\n\
             \x20 backward steps  {}\n",
            or_unknown(self.tsc_error_ticks_max),
            or_unknown(self.own_error_ticks_max.map(tenths)),
            or_unknown(self.clocks_error_ticks_max.map(tenths)),
            or_unknown(self.clocks_bound_ticks_max.map(|ticks| format!("{ticks:.0}"))),
            or_unknown(self.kvmclock_error_ns_max),
            self.tsc_kvmclock_skew_ns_max,
            identical(self.record_bit_identical),
            self.backwards_steps,
        );
        let mut lost: Vec<_> = self
            .per_move
            .iter()
            .filter_map(|one| one.lost.as_ref())
            .collect();
        lost.dedup();
        for lost in lost {
            let _ = writeln!(text, "  lost            {lost}");
        }
        if let Some(aborted) = &self.aborted {
            let _ = writeln!(
                text,
                "  aborted         {}\n  guest           {}",
                aborted.why, aborted.guest
            );
        }
        let _ = writeln!(
            text,
            "  first error     {}",
            self.first_error.as_deref().unwrap_or("none")
        );
        text
    }
}

impl Move {
    fn to_text(&self) -> String {
        format!(
            "{}, down {:.1} ms, TSC {} ticks = {} by SET, {} by the clocks (known to {}), {} by the rates; \
             kvmclock against it {:+} ns; {}, rate {} Hz",
            match self.direction {
                Direction::There => "there",
                Direction::Back => "back ",
            },
            self.downtime_ns as f64 / 1e6,
            or_unknown(self.tsc_error_ticks.map(|ticks| format!("{ticks:+}"))),
            or_unknown(self.own_error_ticks.map(tenths)),
            or_unknown(self.clocks_error_ticks.map(tenths)),
            or_unknown(self.clocks_bound_ticks.map(|ticks| format!("{ticks:.0}"))),
            or_unknown(self.rate_error_ticks.map(tenths)),
            self.tsc_kvmclock_skew_ns,
            self.procedure,
            or_unknown(self.rate_diff_hz.map(|hz| format!("{hz:+}"))),
        )
    }
}

/// The parts of an error do not add up to `at_once`, what it was right after SET, ticks.
fn unexplained(at_once: Option<f64>, one: &Move) -> Option<String> {
    let (all, own, clocks) = (at_once?, one.own_error_ticks?, one.clocks_error_ticks?);
    let rest = all - own - clocks;
    (rest.abs() > REST_TICKS).then(|| {
        format!(
            "{all:.1} ticks of error are {own:.1} of SET and {clocks:.1} of the clocks: {rest:.1} are \
             not explained"
        )
    })
}

fn tenths(ticks: f64) -> String {
    format!("{ticks:.1}")
}

fn or_unknown(value: Option<impl ToString>) -> String {
    value.map_or("unknown".into(), |value| value.to_string())
}

impl Evidence<'_> {
    /// Whether the clocks were put back by the time of day.
    fn goes_by_time(&self) -> bool {
        match self.saved {
            Saved::Atomic(_) => self.restored.mode == Some(Mode::Advance),
            Saved::LegacyOffset(_) => true,
            Saved::LegacyMsr(_) => false,
        }
    }

    /// Of the reference vCPU.
    fn own_error_ticks(&self, saved: &VmClock) -> Option<f64> {
        // vCPU ids are indices here.
        let tsc = self.after.vcpus.get(saved.header.ref_vcpu_id as usize)?.tsc;
        let (mode, at) = (self.restored.mode?, self.restored.set_at?);
        own_error_ticks(saved, mode, self.shift, at, tsc)
    }

    /// TSC error at the instant of SET, ticks.
    fn error_at_once_ticks(&self) -> Option<f64> {
        let (was, is) = self.counters?;
        let at = self.restored.set_at?;
        let before = self.before.vcpus.first()?.tsc.transform().ok()?;
        let after = self.after.vcpus.first()?.tsc.transform().ok()?;
        let (due, have) = (
            before.guest_tsc(is.to(was, at.host_tsc)),
            after.guest_tsc(at.host_tsc),
        );
        // CAST: The sign of the wrapped difference.
        Some(have.wrapping_sub(due) as i64 as f64)
    }

    fn clocks_error_ticks(&self) -> Option<f64> {
        if !self.goes_by_time() {
            return None;
        }
        let (was, is) = self.counters?;
        let at = self.restored.set_at?;
        let before = self.before.vcpus.first()?.tsc;
        Anchor::of(self.saved, self.tai_offset_s)?.clocks_error_ticks(
            self.shift,
            at,
            is.to(was, at.host_tsc),
            before,
        )
    }
}
