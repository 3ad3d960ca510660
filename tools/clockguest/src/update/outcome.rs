// SPDX-License-Identifier: GPL-2.0-only

//! The clock errors of a live update.

use super::Boot;
use crate::{
    measure::{compare, ticks_to_ns, Inconsistent, Reading},
    method::{Method, Mode},
    summary::identical,
};
use serde::Serialize;

/// The clock errors of a live update.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The method.
    pub method: Method,
    /// The mode of method atomic.
    pub mode: Option<Mode>,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Guest TSC rate, kHz.
    pub tsc_khz: u32,
    /// Time from stop to run by the host TSC, ns.
    pub downtime_ns: u64,
    /// Whether every `KVM_VCPU_TSC_OFFSET` is the same.
    pub offsets_bit_identical: bool,
    /// Whether every record that the guest read is the same, except for `version`.
    pub record_bit_identical: bool,
    /// Worst TSC error over vCPUs and readings, ticks.
    pub tsc_error_ticks: i64,
    /// Worst kvmclock error, ns.
    pub kvmclock_error_ns: i64,
    /// Worst skew, ns.
    pub tsc_kvmclock_skew_ns: i64,
    /// Steps back that the guest saw since it was saved, all kinds.
    pub backwards_steps: u64,
    /// Whether guest memory is in the same physical pages; `None` if that is not known, or if it
    /// was copied to a file.
    pub memory_in_place: Option<bool>,
    /// What was lost, as this kernel cannot restore the clocks as they were saved.
    pub lost: Option<String>,
    /// The boot that saved it.
    pub saved: Boot,
    /// The boot that restored it.
    pub restored: Boot,
    /// The error of mode exact, if any.
    pub first_error: Option<String>,
}

impl Outcome {
    pub(super) fn new(
        method: Method,
        mode: Option<Mode>,
        before: &Reading,
        after: &Reading,
        saved: Boot,
        restored: Boot,
    ) -> Result<Self, Inconsistent> {
        let found = compare(before, after)?;
        let down_ticks = after.host_run.since(before.host_stop);
        let mut outcome = Self {
            method,
            mode,
            // CAST: At most `layout::MAX_VCPUS`.
            vcpus: after.vcpus.len() as u32,
            tsc_khz: after.tsc_khz,
            // Meaningless if the TSC was reset.
            downtime_ns: ticks_to_ns(down_ticks, restored.tsc_khz),
            offsets_bit_identical: found.offsets_identical,
            record_bit_identical: found.records_identical,
            tsc_error_ticks: found.error.tsc_ticks,
            kvmclock_error_ns: found.error.kvmclock_ns,
            tsc_kvmclock_skew_ns: found.error.skew_ns,
            backwards_steps: (after.backwards() - before.backwards()).total(),
            memory_in_place: None,
            lost: None,
            saved,
            restored,
            first_error: None,
        };
        if mode == Some(Mode::Exact) && !outcome.is_exact() {
            outcome.first_error = Some(format!(
                "not exact: TSC off by {} ticks, kvmclock by {} ns, offsets {}, record {}, {} steps \
                 back",
                outcome.tsc_error_ticks,
                outcome.kvmclock_error_ns,
                identical(outcome.offsets_bit_identical),
                identical(outcome.record_bit_identical),
                outcome.backwards_steps,
            ));
        }
        Ok(outcome)
    }

    /// Whether the update was exact: same bits, no error, no step back.
    pub fn is_exact(&self) -> bool {
        self.offsets_bit_identical
            && self.record_bit_identical
            && self.tsc_error_ticks == 0
            && self.kvmclock_error_ns == 0
            && self.backwards_steps == 0
    }

    /// A text for the user.
    pub fn to_text(&self) -> String {
        format!(
            "live update with {}{}: {} vCPUs, down {:.1} ms, TSC {} kHz\n\
             \x20 boot            {} before, {} after\n\
             \x20 host TSC        {} at {} kHz before, {} at {} kHz after\n\
             \x20 TSC error       {:+} ticks; offsets {}\n\
             \x20 kvmclock error  {:+} ns; record {}\n\
             \x20 skew            {:+} ns\n\
             \x20 backward steps  {}\n\
             \x20 guest memory    {}\n\
             \x20 lost            {}\n\
             \x20 first error     {}\n",
            self.method.name(),
            self.mode
                .map_or(String::new(), |mode| format!(", mode {}", mode.name())),
            self.vcpus,
            self.downtime_ns as f64 / 1e6,
            self.tsc_khz,
            self.saved.boot_id,
            self.restored.boot_id,
            self.saved.tsc,
            self.saved.tsc_khz,
            self.restored.tsc,
            self.restored.tsc_khz,
            self.tsc_error_ticks,
            identical(self.offsets_bit_identical),
            self.kvmclock_error_ns,
            identical(self.record_bit_identical),
            self.tsc_kvmclock_skew_ns,
            self.backwards_steps,
            match self.memory_in_place {
                Some(true) => "in the same physical pages",
                Some(false) => "in other physical pages",
                None => "copied, or unknown",
            },
            self.lost.as_deref().unwrap_or("nothing"),
            self.first_error.as_deref().unwrap_or("none"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::tests::{reading, record, unscaled, KHZ, START};
    use pvclock::counter::{GuestTsc, TscOffset};

    /// The timestamp of the record.
    const RECORD: GuestTsc = GuestTsc(START.0);

    fn boot(tsc_khz: u32) -> Boot {
        Boot {
            boot_id: tsc_khz.to_string(),
            tsc_khz,
            tsc: START,
            uptime_ms: 0,
        }
    }

    fn outcome(mode: Option<Mode>, change: impl FnOnce(&mut Reading)) -> Outcome {
        let before = Reading {
            host_stop: START.wrapping_add(500),
            precision_ns: 0,
            ..reading(unscaled(TscOffset(5)), record(RECORD, 1_000), START)
        };
        let mut after = before.clone();
        after.host_run = START.wrapping_add(500 + 3 * u64::from(KHZ));
        change(&mut after);
        Outcome::new(
            Method::Atomic,
            mode,
            &before,
            &after,
            boot(KHZ + 7),
            boot(KHZ),
        )
        .unwrap()
    }

    #[test]
    fn a_new_calibration_is_not_an_error() {
        let outcome = outcome(Some(Mode::Exact), |_| ());
        assert!(outcome.is_exact() && outcome.first_error.is_none());
        assert_eq!(outcome.downtime_ns, 3_000_000);
        assert!(outcome.to_text().contains("offsets bit-identical"));
    }

    #[test]
    fn any_error_of_mode_exact_is_a_failure() {
        let changes: [fn(&mut Reading); 3] = [
            |after| {
                *after = reading(
                    unscaled(TscOffset(6)),
                    record(RECORD, 1_000),
                    START.wrapping_add(9),
                );
            },
            |after| {
                *after = reading(
                    unscaled(TscOffset(5)),
                    record(RECORD, 1_001),
                    START.wrapping_add(9),
                );
            },
            |after| after.vcpus[0].backwards.cross_kvmclock += 1,
        ];
        for change in changes {
            let found = outcome(Some(Mode::Exact), change);
            assert!(found.first_error.is_some(), "{found:?}");
            // Errors of other modes and methods are results.
            assert_eq!(outcome(Some(Mode::Advance), change).first_error, None);
            assert_eq!(outcome(None, change).first_error, None);
        }
    }
}
