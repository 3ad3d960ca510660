// SPDX-License-Identifier: GPL-2.0-only

//! kvmclock on a host that does not keep its time by its TSC: it goes on from the value that a
//! record gave it at one instant, and follows the host's raw clock from then on.
//!
//! TSC and raw clock cannot be read as one, and drift apart. So everything here is an interval:
//! what two readings of the one, before and after a reading of the other, leave open.

use crate::host_clock::now_ns;
use anyhow::{ensure, Context, Result};
use clockguest::{
    host::rdtsc_ordered,
    measure::{Bracketed, Reading},
    vmm::Vm,
};
use pvclock::{
    abi::ClockGuest,
    tsc::{is_ahead, TscTransform},
};

/// Tries, of which the narrowest counts.
const TRIES: u32 = 100;
/// What the drift of two clocks may leave open, ns: far below an hour, by which tests tell clocks
/// apart.
const MOST_OPEN_NS: i64 = 100_000_000;

/// A number of ns that is not known exactly: no less than `least`, no more than `most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The least it may be, ns.
    pub least: i64,
    /// The most it may be, ns.
    pub most: i64,
}

impl Span {
    /// How much is open, ns.
    pub fn width(self) -> i64 {
        self.most.saturating_sub(self.least)
    }

    /// What lies in either, or between the two.
    pub fn hull(self, other: Self) -> Self {
        Self {
            least: self.least.min(other.least),
            most: self.most.max(other.most),
        }
    }
}

/// The narrowest of some tries.
fn narrowest<T>(mut of: impl FnMut() -> Result<(i64, T)>) -> Result<T> {
    let (mut width, mut best) = of()?;
    for _ in 1..TRIES {
        let (other, value) = of()?;
        if other < width {
            (width, best) = (other, value);
        }
    }
    Ok(best)
}

/// A reading of one of the host's clocks, and host TSC before and after it.
#[derive(Clone, Copy, Debug)]
pub struct Paired {
    /// Host TSC (ticks) before and after.
    pub host_tsc: [u64; 2],
    /// The clock, ns.
    pub ns: i64,
}

impl Paired {
    /// The host's clock `id`, as closely as can be.
    ///
    /// # Errors
    ///
    /// None.
    pub fn now(id: libc::clockid_t) -> Result<Self> {
        narrowest(|| {
            let before = rdtsc_ordered();
            let ns = now_ns(id);
            let after = rdtsc_ordered();
            // CAST: Far below 2^63 ticks.
            let width = after.wrapping_sub(before) as i64;
            let host_tsc = [before, after];
            Ok((width, Self { host_tsc, ns }))
        })
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
    /// kvmclock (ns) at host TSC `host_tsc` (ticks), also before the record's timestamp, where no
    /// guest could read it.
    pub fn at(&self, host_tsc: u64) -> i64 {
        let record = self.record;
        let guest_tsc = self.transform.guest_tsc(host_tsc);
        let [from, to] = if is_ahead(record.tsc_timestamp, guest_tsc) {
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

    /// By how much it is ahead of the raw clock, read as `raw`.
    pub fn ahead_of(&self, raw: Paired) -> Span {
        Span {
            least: self.at(raw.host_tsc[0]) - raw.ns,
            most: self.at(raw.host_tsc[1]) - raw.ns,
        }
    }

    /// By how much it is ahead of the raw clock, now.
    ///
    /// # Errors
    ///
    /// None.
    pub fn ahead_of_raw(&self) -> Result<Span> {
        Ok(self.ahead_of(Paired::now(libc::CLOCK_MONOTONIC_RAW)?))
    }
}

/// A clock that was given a function's value at one instant, and then followed the raw clock.
#[derive(Clone, Copy, Debug)]
pub struct Continued {
    function: Function,
    /// By how much it is ahead of the raw clock, to within `precision_ns`.
    ahead: Span,
    /// What was said to be its error at most, ns.
    precision_ns: i64,
}

impl Continued {
    /// Says how the clock goes on to which the value of `function` was given between `raw_before`
    /// and now, and off by no more than `precision_ns`.
    ///
    /// # Errors
    ///
    /// If the two clocks leave too much open about that for any check to fail.
    pub fn since(function: Function, raw_before: Paired, precision_ns: u32) -> Result<Self> {
        let ahead = function.ahead_of(raw_before).hull(function.ahead_of_raw()?);
        ensure!(
            (0..=MOST_OPEN_NS).contains(&ahead.width()),
            "the clock is to go on {ahead:?} ns ahead of the raw one: no check of that could fail"
        );
        Ok(Self {
            function,
            ahead,
            precision_ns: precision_ns.into(),
        })
    }

    /// How much the host's clocks leave open about what the clock should be, ns.
    pub fn open_ns(&self) -> i64 {
        self.ahead.width()
    }

    /// Fails unless KVM_GET_CLOCK agrees.
    ///
    /// # Errors
    ///
    /// Says by how much it does not.
    pub fn ensure_told_by_kvm(&self, vm: &Vm) -> Result<()> {
        let told = kvm_ahead_of_raw(vm)?;
        let Self {
            ahead,
            precision_ns,
            ..
        } = *self;
        ensure!(
            told.most >= ahead.least - precision_ns && told.least <= ahead.most + precision_ns,
            "KVM_GET_CLOCK is {told:?} ns ahead of the raw clock, expected {ahead:?} to within \
             {precision_ns} ns"
        );
        Ok(())
    }

    /// Fails unless the guest agrees, whatever its TSC says: lets it make readings by `run`.
    ///
    /// # Errors
    ///
    /// Says by how much it does not.
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

    /// KVM reads the TSC first and its clock thereafter when it makes a record, which the guest
    /// reads later still. So the clock was not below `system_time` when the guest read the record,
    /// and not above it when TSC was `tsc_timestamp`.
    fn ensure_read(&self, read: &Bracketed, drifting: Span) -> Result<()> {
        let (sample, record) = (&read.sample, read.sample.record);
        // CAST: Below 292 years.
        let (observed, system_time) = (sample.kvmclock_ns as i64, record.system_time as i64);
        let computed = record.kvmclock_ns(sample.tsc) as i64;
        ensure!(
            observed == computed,
            "the guest read {observed} ns, its record says {computed} ns"
        );
        let since = sample.tsc.wrapping_sub(record.tsc_timestamp);
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

/// By how much KVM_GET_CLOCK is ahead of the raw clock.
///
/// # Errors
///
/// That of the ioctl.
pub fn kvm_ahead_of_raw(vm: &Vm) -> Result<Span> {
    narrowest(|| {
        let before = now_ns(libc::CLOCK_MONOTONIC_RAW);
        let kvmclock = vm.fd().get_clock().context("KVM_GET_CLOCK")?.clock;
        let after = now_ns(libc::CLOCK_MONOTONIC_RAW);
        // CAST: Below 292 years.
        let kvmclock = kvmclock as i64;
        let told = Span {
            least: kvmclock - after,
            most: kvmclock - before,
        };
        Ok((told.width(), told))
    })
}
