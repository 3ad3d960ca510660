// SPDX-License-Identifier: GPL-2.0-only

//! The clock errors of a series of moves.

use super::{
    attribution::{restore_error_ticks, Anchor},
    ground_truth::EmulatedTsc,
    message::ClockShift,
    source::Moved,
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

/// The largest rate error of the hosts' clocks while the guest is down, parts per million: Linux
/// disciplines a clock by up to this.
const RATE_PPM: f64 = 500.0;

/// The largest error that the restore itself may add, ticks.
const RESTORE_TICKS: f64 = 1.0;

/// The largest unexplained error, ticks: conversions between host TSCs and guest TSC are floored.
const REST_TICKS: f64 = 4.0;

/// The direction of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To the other host.
    There,
    /// Back to this one.
    Back,
}

/// A move to another host. Errors are positive if the guest's clock is ahead.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Move {
    /// Its direction.
    pub direction: Direction,
    /// From saving the clocks to running the guest, in the destination's time, ns.
    pub downtime_ns: i64,
    /// The system calls that restored the clocks.
    pub procedure: String,
    /// Worst TSC error over vCPUs and readings, ticks; if ground truth is known.
    pub tsc_error_ticks: Option<i64>,
    /// Worst kvmclock error, ns; if ground truth is known.
    pub kvmclock_error_ns: Option<i64>,
    /// The part of the TSC error that the restore adds, ticks; if SET was traced, or, with a legacy
    /// method, if ground truth is known.
    pub restore_error_ticks: Option<f64>,
    /// The part that the difference of the hosts' clocks adds, ticks; if ground truth is known, and
    /// the method uses them.
    pub clock_sync_error_ticks: Option<f64>,
    /// The error that accumulates after the restore, as the guest's TSC rate differs here, ticks.
    pub rate_error_ticks: Option<f64>,
    /// Worst skew, ns.
    pub tsc_kvmclock_skew_ns: i64,
    /// The measured difference between the hosts' clocks.
    pub clock_difference: Option<ClockShift>,
    /// The bound of that part, ticks; if their difference was measured.
    pub clock_sync_bound_ticks: Option<f64>,
    /// The precision that the kernel reports, ns.
    pub precision_ns: Option<u32>,
    /// The guest TSC rate there minus the saved one, Hz.
    pub rate_diff_hz: Option<i64>,
    /// What is lost because a host has no module.
    pub lost: Option<String>,
    /// Whether the guest reads the same records, except for `version`.
    pub record_bit_identical: bool,
    /// Whether the TSC offsets are the same.
    pub offsets_bit_identical: bool,
}

/// A failed move.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Aborted {
    /// Why.
    pub why: String,
    /// The state of the guest, for the user.
    pub guest: String,
    /// Whether it resumed with the same offsets and records, and without clock errors; `None` if it
    /// never stopped, or did not resume.
    pub exact: Option<bool>,
}

/// The moves of a guest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// The requested method.
    pub method: Method,
    /// The mode of method atomic.
    pub mode: Mode,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Guest TSC rate, kHz.
    pub tsc_khz: u32,
    /// Requested moves.
    pub moves: u32,
    /// Completed moves.
    pub moves_done: u32,
    /// Largest TSC error of a move, ticks; if ground truth is known.
    pub tsc_error_ticks_max: Option<u64>,
    /// Largest part that a restore added, ticks; if known.
    pub restore_error_ticks_max: Option<f64>,
    /// Largest part that the hosts' clocks added, ticks; if known.
    pub clock_sync_error_ticks_max: Option<f64>,
    /// Largest bound of that part, ticks.
    pub clock_sync_bound_ticks_max: Option<f64>,
    /// Largest kvmclock error of a move, ns.
    pub kvmclock_error_ns_max: Option<u64>,
    /// Largest skew of a move, ns.
    pub tsc_kvmclock_skew_ns_max: u64,
    /// Longest downtime, ns.
    pub downtime_ns_max: i64,
    /// Whether the record was the same throughout.
    pub record_bit_identical: bool,
    /// Steps back that the guest saw.
    pub backwards_steps: u64,
    /// Steps back by kind.
    pub backwards: Backwards,
    /// The failed move that ended the series.
    pub aborted: Option<Aborted>,
    /// The first failure: inconsistent readings, or, with method atomic, any error.
    pub first_error: Option<String>,
    /// The individual moves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_move: Vec<Move>,
}

/// The data of one move.
#[derive(Debug)]
pub(super) struct MoveData<'a> {
    pub(super) direction: Direction,
    pub(super) moved: &'a Moved,
    pub(super) after: &'a Reading,
    /// TSCs of source and destination, if their relation is known.
    pub(super) host_tscs: Option<(EmulatedTsc, EmulatedTsc)>,
}

impl Summary {
    pub(super) fn new(method: Method, mode: Mode, vcpus: u32, moves: u32) -> Self {
        Self {
            method,
            mode,
            vcpus,
            moves,
            record_bit_identical: true,
            ..Self::default()
        }
    }

    /// Adds a move.
    pub(super) fn add(&mut self, data: &MoveData<'_>) {
        self.moves_done += 1;
        let number = self.moves_done;
        let MoveData { moved, after, .. } = *data;
        let before = &moved.before;
        self.tsc_khz = after.tsc_khz;
        self.backwards = self.backwards + (after.backwards() - before.backwards());
        self.backwards_steps = self.backwards.total();

        let compared = match data.host_tscs {
            Some((was, is)) => compare_across(before, after, |tsc| is.to(was, tsc)),
            None => compare(before, after),
        };
        let found = match compared {
            Ok(found) => found,
            Err(inconsistent) => return self.fail(format!("move {number}: {inconsistent}")),
        };
        let known = data.host_tscs.is_some();
        let tsc_error_ticks = known.then_some(found.error.tsc_ticks);
        let khz = f64::from(after.tsc_khz);
        let by_time = data.uses_realtime();
        let error_at_set = data.error_at_set_ticks();
        let clock_sync_error_ticks = data.clock_sync_error_ticks();
        let restore_error_ticks = match &moved.saved {
            Saved::Atomic(saved) => {
                let clock = saved.0.clock().ok();
                clock.and_then(|clock| data.restore_error_ticks(&clock))
            }
            Saved::LegacyOffset(_) => error_at_set
                .zip(clock_sync_error_ticks)
                .map(|(all, of)| all - of),
            // It uses no time of day, so it adds the whole error.
            Saved::LegacyMsr(_) | Saved::LuoMsr(_) => tsc_error_ticks.map(|all| all as f64),
        };
        let one = Move {
            direction: data.direction,
            downtime_ns: moved.downtime_ns,
            procedure: moved.restored.procedure.clone(),
            tsc_error_ticks,
            kvmclock_error_ns: known.then_some(found.error.kvmclock_ns),
            restore_error_ticks,
            clock_sync_error_ticks,
            rate_error_ticks: tsc_error_ticks
                .zip(error_at_set)
                .map(|(all, then)| all as f64 - then),
            tsc_kvmclock_skew_ns: found.error.skew_ns,
            clock_difference: moved.shift,
            clock_sync_bound_ticks: moved.shift.filter(|_| by_time).map(|shift| {
                let rate_ns = moved.downtime_ns as f64 * RATE_PPM / 1e6;
                (shift.uncertainty_ns as f64 + rate_ns) * khz / 1e6
            }),
            precision_ns: moved.restored.precision_ns,
            rate_diff_hz: moved.restored.rate_diff_hz,
            lost: moved.restored.lost.clone(),
            record_bit_identical: found.records_identical,
            offsets_bit_identical: found.offsets_identical,
        };
        if let Some(unexplained) = unexplained(error_at_set, &one) {
            self.fail(format!("move {number}: {unexplained}"));
        }
        if let Some(lost) = self.broken_promise(&one) {
            self.fail(format!("move {number}: {lost}"));
        }
        self.count(one);
    }

    /// The first promise of method atomic that the move broke.
    fn broken_promise(&self, one: &Move) -> Option<String> {
        if self.method != Method::Atomic || one.lost.is_some() {
            return None;
        }
        let over = |value: Option<f64>, bound: f64| value.filter(|value| value.abs() > bound);
        if !one.record_bit_identical {
            return Some("the record changed".into());
        }
        if one.tsc_kvmclock_skew_ns != 0 {
            return Some(format!(
                "kvmclock shifted against the TSC by {} ns",
                one.tsc_kvmclock_skew_ns
            ));
        }
        if let Some(ticks) = over(one.restore_error_ticks, RESTORE_TICKS) {
            return Some(format!("SET was off by {ticks:.1} ticks"));
        }
        let bound = one.clock_sync_bound_ticks.unwrap_or(f64::INFINITY);
        if let Some(ticks) = over(one.clock_sync_error_ticks, bound) {
            return Some(format!(
                "the hosts' clocks contributed {ticks:.0} ticks, more than their bound of {bound:.0}"
            ));
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
        self.restore_error_ticks_max = max(self.restore_error_ticks_max, one.restore_error_ticks);
        self.clock_sync_error_ticks_max =
            max(self.clock_sync_error_ticks_max, one.clock_sync_error_ticks);
        self.clock_sync_bound_ticks_max =
            max(self.clock_sync_bound_ticks_max, one.clock_sync_bound_ticks);
        self.tsc_kvmclock_skew_ns_max = self
            .tsc_kvmclock_skew_ns_max
            .max(one.tsc_kvmclock_skew_ns.unsigned_abs());
        self.downtime_ns_max = self.downtime_ns_max.max(one.downtime_ns);
        self.record_bit_identical &= one.record_bit_identical;
        self.per_move.push(one);
    }

    /// Records a failure; only the first one is kept.
    pub(super) fn fail(&mut self, message: String) {
        self.first_error.get_or_insert(message);
    }

    /// A text for the user.
    pub fn to_text(&self, verbose: bool) -> String {
        let mut text = format!(
            "{} of {} moves with {} ({}), {} vCPUs, TSC {} kHz, longest downtime {:.1} ms\n",
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
            "  TSC error       worst {} ticks: restore {}, clock sync {} (bound {})\n\
             \x20 kvmclock error  worst {} ns; skew {} ns; record {}\n\
             \x20 backward steps  {}\n",
            or_unknown(self.tsc_error_ticks_max),
            decimal(self.restore_error_ticks_max, 1),
            decimal(self.clock_sync_error_ticks_max, 1),
            decimal(self.clock_sync_bound_ticks_max, 0),
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
            "{}, down {:.1} ms, TSC {} ticks: restore {}, clock sync {} (bound {}), rate {}; skew {:+} ns; \
             {}, rate difference {} Hz",
            match self.direction {
                Direction::There => "there",
                Direction::Back => "back ",
            },
            self.downtime_ns as f64 / 1e6,
            or_unknown(self.tsc_error_ticks.map(|ticks| format!("{ticks:+}"))),
            decimal(self.restore_error_ticks, 1),
            decimal(self.clock_sync_error_ticks, 1),
            decimal(self.clock_sync_bound_ticks, 0),
            decimal(self.rate_error_ticks, 1),
            self.tsc_kvmclock_skew_ns,
            self.procedure,
            or_unknown(self.rate_diff_hz.map(|hz| format!("{hz:+}"))),
        )
    }
}

/// Checks that the parts of an error add up to `error_at_set`, the error right after SET, ticks.
fn unexplained(error_at_set: Option<f64>, one: &Move) -> Option<String> {
    let (all, restore, clocks) = (
        error_at_set?,
        one.restore_error_ticks?,
        one.clock_sync_error_ticks?,
    );
    let rest = all - restore - clocks;
    (rest.abs() > REST_TICKS).then(|| {
        format!(
            "of {all:.1} ticks of error, the restore added {restore:.1} and the clocks {clocks:.1}: \
             {rest:.1} are unexplained"
        )
    })
}

/// `ticks` with so many decimal places.
fn decimal(ticks: Option<f64>, places: usize) -> String {
    or_unknown(ticks.map(|ticks| format!("{ticks:.places$}")))
}

fn or_unknown(value: Option<impl ToString>) -> String {
    value.map_or("unknown".into(), |value| value.to_string())
}

impl MoveData<'_> {
    /// Whether the method restores the clocks from the time of day.
    fn uses_realtime(&self) -> bool {
        match self.moved.saved {
            Saved::Atomic(_) => self.moved.restored.mode == Some(Mode::Advance),
            Saved::LegacyOffset(_) => true,
            Saved::LegacyMsr(_) | Saved::LuoMsr(_) => false,
        }
    }

    /// The part that the restore adds to the reference vCPU's TSC error.
    fn restore_error_ticks(&self, saved: &VmClock) -> Option<f64> {
        // Here, vCPU IDs are indices.
        let tsc = self.after.vcpus.get(saved.header.ref_vcpu_id as usize)?.tsc;
        let (mode, at) = (self.moved.restored.mode?, self.moved.restored.set_at?);
        restore_error_ticks(saved, mode, self.moved.shift, at, tsc)
    }

    /// The TSC error at the instant of SET, ticks.
    fn error_at_set_ticks(&self) -> Option<f64> {
        let (was, is) = self.host_tscs?;
        let at = self.moved.restored.set_at?;
        let before = self.moved.before.vcpus.first()?.tsc.transform().ok()?;
        let after = self.after.vcpus.first()?.tsc.transform().ok()?;
        let (expected, actual) = (
            before.guest_tsc(is.to(was, at.host_tsc)),
            after.guest_tsc(at.host_tsc),
        );
        // CAST: The signed difference of values mod 2^64.
        Some(actual.since(expected) as i64 as f64)
    }

    fn clock_sync_error_ticks(&self) -> Option<f64> {
        if !self.uses_realtime() {
            return None;
        }
        let (was, is) = self.host_tscs?;
        let at = self.moved.restored.set_at?;
        let before = self.moved.before.vcpus.first()?.tsc;
        Anchor::of(&self.moved.saved, self.moved.tai_offset_s)?.clock_sync_error_ticks(
            self.moved.shift,
            at,
            is.to(was, at.host_tsc),
            before,
        )
    }
}
