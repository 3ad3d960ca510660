// SPDX-License-Identifier: GPL-2.0-only

//! What a series of calls works on, and what became of them.

use crate::{
    arena::Arena,
    expected::{errno_name, Expected},
    extremes::{one_in, Rng},
    foreign,
    state::State,
    subject::Subject,
    vcpu_calls, vm_calls, Host,
};
use anyhow::{ensure, Context, Result};
use kvm_clock_guest_selftests::{ktap::note, require::scales};
use kvm_ioctls::Kvm;
use rand::Rng as _;
use std::{collections::BTreeMap, time::Instant};

/// How often each call ended how.
#[derive(Debug)]
pub(crate) struct Tally {
    ends: BTreeMap<&'static str, BTreeMap<Option<i32>, u64>>,
    calls: u64,
    start: Instant,
}

impl Tally {
    /// Of no call.
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

    /// Calls of `name` that ended with `errno`, or succeeded.
    pub(crate) fn ended(&self, name: &str, errno: Option<i32>) -> u64 {
        let ends = self.ends.get(name).and_then(|ends| ends.get(&errno));
        ends.copied().unwrap_or(0)
    }

    /// Fails unless so many calls of `name` that matter were made, and in `percent` of a hundred or
    /// more ended so.
    pub(crate) fn ensure_share(&self, name: &str, errno: Option<i32>, percent: u64) -> Result<()> {
        let all: u64 = self.ends.get(name).map_or(0, |ends| ends.values().sum());
        let ended = self.ended(name, errno);
        let how = errno.map_or("success".to_owned(), errno_name);
        ensure!(
            ended > 0 && ended * 100 >= all * percent,
            "{ended} of {all} calls of {name} ended with {how}: these are to be {percent} % at \
             least"
        );
        Ok(())
    }

    /// Tells.
    pub(crate) fn tell(&self) {
        for (name, ends) in &self.ends {
            let ends = ends.iter().map(|(errno, count)| {
                let how = errno.map_or("ok".to_owned(), errno_name);
                format!("{count} {how}")
            });
            note(&format!("{name}: {}", ends.collect::<Vec<_>>().join(", ")));
        }
        let seconds = self.start.elapsed().as_secs_f64();
        // CAST: to be read.
        let rate = self.calls as f64 / seconds;
        note(&format!(
            "{} calls in {seconds:.1} s, {rate:.0} a second",
            self.calls
        ));
    }
}

/// A VM under fire.
pub(crate) struct Fuzz<'a> {
    pub(crate) kvm: &'a Kvm,
    /// The host can scale TSCs.
    pub(crate) scales: bool,
    /// The host's TSC rate, kHz.
    pub(crate) host_khz: u32,
    pub(crate) rng: Rng,
    pub(crate) arena: Arena,
    pub(crate) subject: Subject,
    /// The VM's clocks as of the last look.
    pub(crate) state: State,
    /// After calls that have to change nothing the VM is looked at once in so many.
    pub(crate) look_every: u32,
    /// No call is made that should succeed and change something, and none did so far.
    pub(crate) only_failures: bool,
    pub(crate) tally: Tally,
}

impl<'a> Fuzz<'a> {
    /// Of `subject`, with a random sequence of its own.
    pub(crate) fn new(host: &'a Host, rng: Rng, subject: Subject) -> Result<Self> {
        let state = State::of(&subject)?;
        let clock = state.clock.as_ref().context("a new VM has no clock")?;
        Ok(Self {
            host_khz: clock.header.host_tsc_khz,
            state,
            kvm: &host.kvm,
            scales: scales(&host.kvm),
            look_every: host.look,
            rng,
            arena: Arena::new()?,
            subject,
            only_failures: false,
            tally: Tally::new(),
        })
    }

    /// Goes on with another VM.
    pub(crate) fn take(&mut self, subject: Subject) -> Result<()> {
        self.subject = subject;
        self.look_again()
    }

    /// Counts a call.
    pub(crate) fn count<T>(&mut self, name: &'static str, result: Result<T, i32>) {
        self.tally.count(name, result);
    }

    /// Looks what has become of the VM, and returns what it was.
    pub(crate) fn look(&mut self) -> Result<State> {
        let now = State::of(&self.subject)?;
        Ok(std::mem::replace(&mut self.state, now))
    }

    /// Fails unless a call has changed nothing. Where not every one is looked at, what this one
    /// changed the next ones would have to change back.
    pub(crate) fn ensure_unchanged(&mut self) -> Result<()> {
        if one_in(&mut self.rng, self.look_every) {
            self.look()?.ensure_unchanged(&self.state)?;
        }
        Ok(())
    }

    /// Takes the VM for what it is now.
    pub(crate) fn look_again(&mut self) -> Result<()> {
        self.state = State::of(&self.subject)?;
        Ok(())
    }

    /// Fails unless `result` is what is `expected` between what the VM was and is. Returns what it
    /// was after a call that succeeded; else it fails, too, if anything was changed.
    pub(crate) fn judge<T>(
        &mut self,
        result: Result<T, i32>,
        expected: impl Fn([&State; 2]) -> Expected,
    ) -> Result<Option<State>> {
        let result = result.map(|_| ());
        let may_wait = result.is_err() && !one_in(&mut self.rng, self.look_every);
        // If not as of then, as of now perhaps.
        if may_wait && expected([&self.state; 2]).judge(result).is_ok() {
            return Ok(None);
        }
        let was = self.look()?;
        expected([&was, &self.state]).judge(result)?;
        if result.is_ok() {
            // Also where time took away the cause to fail.
            self.only_failures = false;
            return Ok(Some(was));
        }
        was.ensure_unchanged(&self.state)?;
        Ok(None)
    }

    /// One call, of any kind; `keep` if kvmclock is to stay the same function.
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
