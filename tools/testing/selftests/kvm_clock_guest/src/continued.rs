// SPDX-License-Identifier: GPL-2.0-only

//! kvmclock on a host whose clocksource is not the TSC: it continues from a record's value at one
//! instant, and follows the host's raw clock from then on.
//!
//! TSC and raw clock cannot be read at one instant, and drift apart. So all results are intervals,
//! from readings of one clock before and after a reading of the other.

use crate::{
    ensure_eq,
    fixture::{get_clock, reference_transform},
    host_clock::{clock_and_tsc, now_ns, TRIES},
};
use anyhow::{ensure, Context, Result};
use clockguest::{
    host::ClockAndTsc,
    measure::{Bracketed, Reading},
    vmm::Vm,
};
use kvm_clock::VmClock;
use pvclock::{abi::ClockGuest, counter::HostTsc, tsc::TscTransform};

/// How uncertain the drift of two clocks may make a result, ns: far below the hour by which the
/// tests' clocks differ.
const MOST_OPEN_NS: i64 = 100_000_000;

/// An uncertain number of ns, from `least` to `most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The least it may be, ns.
    pub least: i64,
    /// The most it may be, ns.
    pub most: i64,
}

impl Span {
    /// How uncertain it is, ns.
    pub fn width(self) -> i64 {
        self.most.saturating_sub(self.least)
    }

    /// The shortest span that contains both.
    pub fn hull(self, other: Self) -> Self {
        Self {
            least: self.least.min(other.least),
            most: self.most.max(other.most),
        }
    }
}

/// kvmclock as a function of the host TSC.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// The record.
    pub record: ClockGuest,
    /// The TSC that it is for.
    pub transform: TscTransform,
}

impl Function {
    /// That of `clock`.
    pub fn of(clock: &VmClock) -> Result<Self> {
        Ok(Self {
            record: clock.header.record,
            transform: reference_transform(clock)?,
        })
    }

    /// kvmclock (ns) at host TSC `host_tsc`, also before the record's timestamp.
    pub fn at(&self, host_tsc: HostTsc) -> i64 {
        let record = self.record;
        let guest_tsc = self.transform.guest_tsc(host_tsc);
        let [from, to] = if record.tsc_timestamp.is_ahead_of(guest_tsc) {
            [guest_tsc, record.tsc_timestamp]
        } else {
            [record.tsc_timestamp, guest_tsc]
        };
        let since = ClockGuest {
            tsc_timestamp: from,
            system_time: 0,
            ..record
        };
        // CAST: Below 292 years.
        let (ns, system_time) = (since.kvmclock_ns(to) as i64, record.system_time as i64);
        if from == record.tsc_timestamp {
            system_time + ns
        } else {
            system_time - ns
        }
    }

    /// How far it is ahead of the raw clock's reading `raw`.
    pub fn ahead_of(&self, raw: ClockAndTsc) -> Span {
        Span {
            least: self.at(raw.host_tsc[0]) - raw.ns,
            most: self.at(raw.host_tsc[1]) - raw.ns,
        }
    }

    /// How far it is ahead of the raw clock now.
    pub fn ahead_of_raw(&self) -> Result<Span> {
        Ok(self.ahead_of(clock_and_tsc(libc::CLOCK_MONOTONIC_RAW)?))
    }
}

/// A clock that had a function's value at one instant, and has followed the raw clock since.
#[derive(Clone, Copy, Debug)]
pub struct Continued {
    function: Function,
    /// How far it is ahead of the raw clock, with an error of up to `precision_ns`.
    ahead: Span,
    /// The reported precision, ns.
    precision_ns: i64,
}

impl Continued {
    /// The clock that had the value of `function`, with an error of up to `precision_ns`, at an
    /// instant between `raw_before` and now.
    pub fn since(function: Function, raw_before: ClockAndTsc, precision_ns: u32) -> Result<Self> {
        let ahead = function.ahead_of(raw_before).hull(function.ahead_of_raw()?);
        ensure!(
            (0..=MOST_OPEN_NS).contains(&ahead.width()),
            "the clock is expected to be {ahead:?} ns ahead of the raw clock: too uncertain to check"
        );
        Ok(Self {
            function,
            ahead,
            precision_ns: precision_ns.into(),
        })
    }

    /// How uncertain the expected value is, ns.
    pub fn open_ns(&self) -> i64 {
        self.ahead.width()
    }

    /// Fails unless KVM_GET_CLOCK agrees.
    pub fn ensure_in_kvm(&self, vm: &Vm) -> Result<()> {
        let actual = kvm_ahead_of_raw(vm)?;
        let Self {
            ahead,
            precision_ns,
            ..
        } = *self;
        ensure!(
            actual.most >= ahead.least - precision_ns && actual.least <= ahead.most + precision_ns,
            "KVM_GET_CLOCK is {actual:?} ns ahead of the raw clock, expected {ahead:?} with an \
             error of up to {precision_ns} ns"
        );
        Ok(())
    }

    /// Fails unless the readings that the guest makes during `run` agree, whatever its TSC is.
    pub fn ensure_read_by_guest(&self, run: impl FnOnce() -> Result<Reading>) -> Result<Reading> {
        let before = self.function.ahead_of_raw()?;
        let reading = run()?;
        let drifting = before.hull(self.function.ahead_of_raw()?);
        for (index, vcpu) in reading.vcpus.iter().enumerate() {
            for bracketed in &vcpu.samples {
                self.ensure_read(bracketed, drifting)
                    .with_context(|| format!("vCPU {index}"))?;
            }
        }
        Ok(reading)
    }

    /// When KVM makes a record, it reads first the TSC and then its clock, and the guest reads the
    /// record later. So the clock was not below `system_time` when the guest read the record, and
    /// not above it when the TSC was `tsc_timestamp`.
    fn ensure_read(&self, read: &Bracketed, drifting: Span) -> Result<()> {
        let (sample, record) = (&read.sample, read.sample.record);
        // CAST: Below 292 years.
        let (ns, system_time) = (sample.kvmclock_ns as i64, record.system_time as i64);
        let computed = record.kvmclock_ns(sample.tsc) as i64;
        ensure_eq!(ns, computed, "kvmclock by the guest's record, ns");
        let since = sample.tsc.since(record.tsc_timestamp);
        let least = self.function.at(read.host_before.wrapping_sub(since)) - drifting.most
            + self.ahead.least
            - self.precision_ns;
        let most = self.function.at(read.host_after) - drifting.least
            + self.ahead.most
            + self.precision_ns;
        ensure!(
            (least..=most).contains(&system_time),
            "the record of {system_time} ns is {} ns below the least and {} ns above the most it \
             may be",
            least - system_time,
            system_time - most
        );
        Ok(())
    }
}

/// How far KVM_GET_CLOCK is ahead of the raw clock.
pub fn kvm_ahead_of_raw(vm: &Vm) -> Result<Span> {
    let read = || ahead_of_raw(|| Ok(get_clock(vm)?.clock));
    let mut narrowest = read()?;
    for _ in 1..TRIES {
        let other = read()?;
        if other.width() < narrowest.width() {
            narrowest = other;
        }
    }
    Ok(narrowest)
}

/// How far the clock (ns) that `read` returns is ahead of the raw clock.
pub fn ahead_of_raw(read: impl FnOnce() -> Result<u64>) -> Result<Span> {
    let before = now_ns(libc::CLOCK_MONOTONIC_RAW);
    // CAST: Below 292 years.
    let ns = read()? as i64;
    Ok(Span {
        least: ns - now_ns(libc::CLOCK_MONOTONIC_RAW),
        most: ns - before,
    })
}
