// SPDX-License-Identifier: GPL-2.0-only

//! The state of a series of calls, and counts of their results.

use crate::{
    arena::Arena,
    expected::{errno_name, Expected},
    extremes::{one_in, Rng},
    fixture::Fixture,
    foreign,
    state::State,
    vcpu_calls, vm_calls, Host,
};
use kvm_clock_guest_selftests::{prelude::*, require::scales};
use rand::Rng as _;
use std::collections::BTreeMap;

/// Results of the calls, by call and errno.
#[derive(Debug)]
pub(crate) struct Counts {
    ends: BTreeMap<&'static str, BTreeMap<Option<i32>, u64>>,
    calls: u64,
    start: Instant,
}

impl Counts {
    /// Without calls.
    pub(crate) fn new() -> Self {
        Self {
            ends: BTreeMap::new(),
            calls: 0,
            start: Instant::now(),
        }
    }

    /// Counts a call.
    pub(crate) fn count<T>(&mut self, name: &'static str, result: Result<T, i32>) {
        self.calls += 1;
        let ends = self.ends.entry(name).or_default();
        *ends.entry(result.err()).or_default() += 1;
    }

    /// Adds the calls of `other`, made at the same time.
    pub(crate) fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        for (name, ends) in &other.ends {
            let mine = self.ends.entry(name).or_default();
            for (end, count) in ends {
                *mine.entry(*end).or_default() += count;
            }
        }
    }

    /// Calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls
    }

    /// Calls of `name` that failed with `errno`; with `None`, that succeeded.
    pub(crate) fn ended(&self, name: &str, errno: Option<i32>) -> u64 {
        let ends = self.ends.get(name).and_then(|ends| ends.get(&errno));
        ends.copied().unwrap_or(0)
    }

    /// Fails unless at least `percent` of the calls of `name`, and at least one, ended so.
    pub(crate) fn ensure_share(&self, name: &str, errno: Option<i32>, percent: u64) -> Result<()> {
        let all: u64 = self.ends.get(name).map_or(0, |ends| ends.values().sum());
        let ended = self.ended(name, errno);
        let how = errno.map_or("success".to_owned(), errno_name);
        ensure!(
            ended > 0 && ended * 100 >= all * percent,
            "{ended} of {all} calls of {name} ended with {how}, expected {percent} % at least"
        );
        Ok(())
    }

    /// Prints the counts.
    pub(crate) fn report(&self) {
        for (name, ends) in &self.ends {
            let ends = ends.iter().map(|(errno, count)| {
                let how = errno.map_or("ok".to_owned(), errno_name);
                format!("{count} {how}")
            });
            note!("{name}: {}", ends.collect::<Vec<_>>().join(", "));
        }
        let seconds = self.start.elapsed().as_secs_f64();
        // CAST: for display.
        let rate = self.calls as f64 / seconds;
        note!("{} calls in {seconds:.1} s, {rate:.0} a second", self.calls);
    }
}

/// A VM and the calls made on it.
pub(crate) struct Fuzz<'a> {
    pub(crate) kvm: &'a Kvm,
    /// The host can scale TSCs.
    pub(crate) scales: bool,
    /// The host's TSC rate, kHz.
    pub(crate) host_khz: u32,
    pub(crate) rng: Rng,
    pub(crate) arena: Arena,
    pub(crate) fixture: Fixture,
    /// The VM's clocks when last observed.
    pub(crate) state: State,
    /// The VM is observed after one in so many of the calls that must change nothing.
    pub(crate) observe_every: u32,
    /// Only calls that must fail are made, and none has succeeded so far.
    pub(crate) only_failures: bool,
    pub(crate) counts: Counts,
}

impl<'a> Fuzz<'a> {
    /// Of `fixture`, with its own random sequence.
    pub(crate) fn new(host: &'a Host, rng: Rng, fixture: Fixture) -> Result<Self> {
        let state = State::of(&fixture)?;
        let clock = state
            .clock
            .as_ref()
            .context("a new VM has no clock snapshot")?;
        Ok(Self {
            host_khz: clock.header.host_tsc_khz,
            state,
            kvm: &host.kvm,
            scales: scales(&host.kvm),
            observe_every: host.look,
            rng,
            arena: Arena::new()?,
            fixture,
            only_failures: false,
            counts: Counts::new(),
        })
    }

    /// Continues with another VM.
    pub(crate) fn take(&mut self, fixture: Fixture) -> Result<()> {
        self.fixture = fixture;
        self.refresh()
    }

    /// Counts a call.
    pub(crate) fn count<T>(&mut self, name: &'static str, result: Result<T, i32>) {
        self.counts.count(name, result);
    }

    /// Observes the VM and returns its former state.
    pub(crate) fn observe(&mut self) -> Result<State> {
        let now = State::of(&self.fixture)?;
        Ok(std::mem::replace(&mut self.state, now))
    }

    /// Fails unless the call changed nothing. If not every call is checked, a later check notices
    /// the change.
    pub(crate) fn ensure_unchanged(&mut self) -> Result<()> {
        if one_in(&mut self.rng, self.observe_every) {
            self.observe()?.ensure_unchanged(&self.state)?;
        }
        Ok(())
    }

    /// Observes the VM after an expected change.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        self.state = State::of(&self.fixture)?;
        Ok(())
    }

    /// Fails unless `result` is `expected` from the states before and after the call, and a failed
    /// call changed nothing. Returns the state before a call that succeeded.
    pub(crate) fn check<T>(
        &mut self,
        result: Result<T, i32>,
        expected: impl Fn([&State; 2]) -> Expected,
    ) -> Result<Option<State>> {
        let result = result.map(drop);
        let may_wait = result.is_err() && !one_in(&mut self.rng, self.observe_every);
        // A result that the former state does not explain may follow from the present one.
        if may_wait && expected([&self.state; 2]).check(result).is_ok() {
            return Ok(None);
        }
        let was = self.observe()?;
        expected([&was, &self.state]).check(result)?;
        if result.is_ok() {
            // Also if the cause of the failure ended in the meantime.
            self.only_failures = false;
            return Ok(Some(was));
        }
        was.ensure_unchanged(&self.state)?;
        Ok(None)
    }

    /// One call, of any kind; with `keep`, kvmclock must stay the same function.
    pub(crate) fn call(&mut self, keep: bool) -> Result<()> {
        match self.rng.random_range(0..32) {
            0..8 => vm_calls::get(self),
            8..20 => vm_calls::set(self),
            20..23 => vcpu_calls::get(self),
            23..28 => vcpu_calls::set(self, keep),
            28 | 29 => vcpu_calls::attribute(self),
            30 => foreign::refused(self),
            _ => foreign::capability(self),
        }
    }
}
