// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The restore: mode, refusals and what to do about them, by the policy.

use crate::{
    abi::{
        CAP_FALLBACK, CAP_RESLOPE, CAP_STEAL, FLAG_ALLOW_RATE_MISMATCH, FLAG_FALLBACK,
        FLAG_RESLOPE, STATUS_PINNED,
    },
    clock_guest_cap,
    error::Error,
    get_vm_clock_guest_or_fall_back,
    host::{self, HostCheck, HostId},
    legacy::{self, NotSet},
    outcome::{Loss, Outcome, Procedure},
    policy::{Mode, ModeChoice, NoModule, OtherRate, Otherwise, Policy},
    saved::{ensure_same_ids, SavedClocks},
    set_vm_clock_guest, Vcpu, VmClock,
};
use pvclock::plan::{elapsed_ns, ClockSnapshot, PlanError};
use std::{os::fd::AsRawFd, time::Duration};

/// As [`SavedClocks::restore`].
pub(crate) fn restore<V: AsRawFd>(
    saved: &SavedClocks,
    vm: &impl AsRawFd,
    vcpus: &[Vcpu<'_, V>],
    policy: &Policy,
) -> Result<Outcome, Error> {
    let clock = saved.clock()?;
    ensure_same_ids(&clock.vcpus, vcpus.iter().map(|vcpu| vcpu.id))?;
    let (mode, host) = choose(saved, &clock, policy)?;
    let cap = clock_guest_cap(vm);
    let procedure = if cap & mode.cap() != 0 {
        Procedure::Module
    } else if policy.no_module == NoModule::Legacy {
        Procedure::Legacy
    } else {
        return Err(Error::NoModule { cap });
    };
    let now = match procedure {
        Procedure::Module => snapshot(vm, &clock)?,
        Procedure::Legacy => host::now(),
    };
    let mut attempt = Attempt {
        cap,
        procedure,
        policy,
        mode,
        flags: 0,
        elapsed_ns: 0,
        paused_ns: 0,
        clock,
        lost: Vec::new(),
    };
    attempt.prepare(&now)?;
    let done = loop {
        match attempt.set(vm, vcpus) {
            Ok(done) => break done,
            Err(refused) => attempt.react(refused, &now)?,
        }
    };
    attempt.finish(saved, vm, host, done)
}

/// The mode, and what the comparison of the hosts showed.
fn choose(
    saved: &SavedClocks,
    clock: &VmClock,
    policy: &Policy,
) -> Result<(Mode, HostCheck), Error> {
    if let ModeChoice::Always(mode) = policy.mode {
        return Ok((mode, HostCheck::NotCompared));
    }
    let here = match &policy.host {
        Some(host) => host.clone(),
        None => HostId::read()?,
    };
    let check = HostCheck::new(saved.host(), &here, clock, saved.asleep_ns());
    let mode = match check {
        HostCheck::Same => Mode::Exact,
        _ => Mode::Advance,
    };
    Ok((mode, check))
}

/// This host's clocks now, as the module reads them; fails unless `vm` has the vCPUs of `clock`.
fn snapshot(vm: &impl AsRawFd, clock: &VmClock) -> Result<ClockSnapshot, Error> {
    let here = get_vm_clock_guest_or_fall_back(vm).map_err(Error::of("KVM_GET_VM_CLOCK_GUEST"))?;
    ensure_same_ids(&clock.vcpus, here.vcpus.iter().map(|vcpu| vcpu.vcpu_id))?;
    Ok(ClockSnapshot {
        host_tsc: here.header.host_tsc,
        tai_ns: here.header.tai_ns,
        tai_offset_s: here.header.tai_offset_s,
        monotonic_raw_ns: here.header.monotonic_raw_ns,
        read_window: 0,
    })
}

/// Why the clocks could not be set as requested.
enum Refused {
    /// `ERANGE`, and the difference of the rates, Hz.
    Rate(i64),
    /// `ETIME`.
    Behind,
    Error(Error),
}

struct Done {
    precision_ns: u32,
    rate_diff_hz: i64,
    is_pinned: bool,
    /// The error of a clock that is not pinned, ns.
    off_by_ns: u32,
}

struct Attempt<'a> {
    cap: u32,
    procedure: Procedure,
    policy: &'a Policy,
    mode: Mode,
    flags: u32,
    /// By the hosts' clocks.
    elapsed_ns: i128,
    /// How long the vCPUs did not run, as the mode measures it.
    paused_ns: i128,
    clock: VmClock,
    lost: Vec<Loss>,
}

impl Attempt<'_> {
    /// Applies what the policy says about times.
    fn prepare(&mut self, now: &ClockSnapshot) -> Result<(), Error> {
        let header = &mut self.clock.header;
        if let Some(ahead_ns) = self.policy.clock_ahead_ns {
            // In this host's time from here on. The kernel validates the sum.
            header.tai_ns = header.tai_ns.saturating_add(ahead_ns);
            header.tai_offset_s = now.tai_offset_s;
        }
        if self.policy.fallback && self.cap & CAP_FALLBACK != 0 {
            self.flags |= FLAG_FALLBACK;
        }
        self.elapsed_ns = elapsed_ns(header, now);
        self.paused_ns = self.elapsed_ns;
        if self.mode == Mode::Exact {
            // On one host, the TSC does not depend on who sets its clock. CAST: The sign of the
            // wrapped difference.
            let ticks = now.host_tsc.since(header.host_tsc) as i64;
            self.paused_ns = i128::from(ticks) * 1_000_000 / i128::from(header.host_tsc_khz);
        }
        if self.mode != Mode::Advance {
            return Ok(());
        }
        if self.elapsed_ns < 0 {
            return self.react(Refused::Behind, now);
        }
        let elapsed = duration(self.elapsed_ns);
        match self.policy.max_advance {
            Some(limit) if elapsed > limit => match self.policy.beyond_limit {
                Otherwise::Refuse => Err(Error::BeyondLimit { elapsed, limit }),
                Otherwise::Freeze => self.freeze(Loss::BeyondLimit(ns(elapsed))),
            },
            _ => Ok(()),
        }
    }

    /// Changes the attempt, or fails, by the policy.
    fn react(&mut self, refused: Refused, now: &ClockSnapshot) -> Result<(), Error> {
        match refused {
            Refused::Error(error) => Err(error),
            Refused::Behind => {
                let by = duration(-elapsed_ns(&self.clock.header, now).min(0));
                match self.policy.behind {
                    Otherwise::Freeze if self.mode == Mode::Advance => {
                        self.freeze(Loss::Behind(ns(by)))
                    }
                    _ => Err(Error::Behind { by }),
                }
            }
            Refused::Rate(diff_hz) => {
                let next = [
                    (
                        FLAG_RESLOPE,
                        OtherRate::Reslope,
                        self.cap & CAP_RESLOPE != 0,
                    ),
                    (FLAG_ALLOW_RATE_MISMATCH, OtherRate::Accept, true),
                ];
                let allowed = self.policy.other_rate;
                let next = next.into_iter().find(|&(flag, least, is_known)| {
                    let is_allowed = allowed == least || allowed == OtherRate::Accept;
                    self.flags & flag == 0 && is_allowed && is_known
                });
                let (flag, ..) = next.ok_or(Error::OtherRate { diff_hz })?;
                self.flags |= flag;
                Ok(())
            }
        }
    }

    fn freeze(&mut self, loss: Loss) -> Result<(), Error> {
        if self.procedure == Procedure::Module && self.cap & Mode::Freeze.cap() == 0 {
            return Err(Error::NoModule { cap: self.cap });
        }
        self.mode = Mode::Freeze;
        self.lost.push(loss);
        Ok(())
    }

    /// How long the vCPUs did not run, ns, as far as their steal time can take it.
    fn paused_ns(&self) -> u64 {
        const MAX: u64 = i64::MAX as u64;
        let steal = self.clock.vcpus.iter().map(|vcpu| vcpu.steal_ns).max();
        let room = MAX.saturating_sub(steal.unwrap_or(0));
        u64::try_from(self.paused_ns.max(0))
            .unwrap_or(MAX)
            .min(room)
    }

    fn set<V: AsRawFd>(
        &mut self,
        vm: &impl AsRawFd,
        vcpus: &[Vcpu<'_, V>],
    ) -> Result<Done, Refused> {
        let mut clock = self.clock.clone();
        (clock.header.mode, clock.header.flags) = (self.mode.to_abi(), self.flags);
        match self.procedure {
            Procedure::Module => {
                if self.policy.steal_time && self.cap & CAP_STEAL != 0 {
                    clock.header.paused_ns = self.paused_ns();
                }
                set_vm_clock_guest(vm, &mut clock).map_err(|errno| match errno.errno() {
                    libc::ERANGE => Refused::Rate(clock.header.rate_diff_hz),
                    libc::ETIME => Refused::Behind,
                    libc::ESTALE => Refused::Error(Error::Stale),
                    libc::ENODATA => Refused::Error(Error::NotStable),
                    _ => Refused::Error(Error::of("KVM_SET_VM_CLOCK_GUEST")(errno)),
                })?;
                Ok(Done {
                    precision_ns: clock.header.precision_ns,
                    rate_diff_hz: clock.header.rate_diff_hz,
                    is_pinned: clock.header.status & STATUS_PINNED != 0,
                    off_by_ns: clock.header.precision_ns,
                })
            }
            Procedure::Legacy => {
                let done = legacy::set(vm, vcpus, clock).map_err(|not_set| match not_set {
                    NotSet::Error(error) => Refused::Error(error),
                    NotSet::Plan(PlanError::Backwards, _) => Refused::Behind,
                    NotSet::Plan(PlanError::Stale, _) => Refused::Error(Error::Stale),
                    NotSet::Plan(PlanError::RateMismatch | PlanError::RecordRate, diff_hz) => {
                        Refused::Rate(diff_hz)
                    }
                    NotSet::Plan(PlanError::Unrepresentable, _) => {
                        let errno = crate::Errno(libc::EINVAL);
                        Refused::Error(Error::of("the elapsed time")(errno))
                    }
                })?;
                Ok(Done {
                    precision_ns: done.precision_ns.saturating_add(done.kvmclock_ns),
                    rate_diff_hz: done.rate_diff_hz,
                    is_pinned: false,
                    off_by_ns: done.kvmclock_ns,
                })
            }
        }
    }

    /// What was done.
    fn finish(
        mut self,
        saved: &SavedClocks,
        vm: &impl AsRawFd,
        host: HostCheck,
        done: Done,
    ) -> Result<Outcome, Error> {
        if let Some(ns) = saved.rebuilt_ns() {
            self.lost.push(Loss::NoModuleThere(ns));
        }
        match self.procedure {
            Procedure::Legacy => self.lost.push(Loss::NoModuleHere(done.off_by_ns)),
            Procedure::Module if !done.is_pinned => {
                self.lost.push(Loss::NotPinned(done.off_by_ns));
            }
            Procedure::Module if self.flags & FLAG_RESLOPE != 0 => {
                // Without a change of the slope, the flag has no effect.
                let here = get_vm_clock_guest_or_fall_back(vm);
                let here = here.map_err(Error::of("KVM_GET_VM_CLOCK_GUEST"))?;
                if here.header.record.factor() != self.clock.header.record.factor() {
                    self.lost.push(Loss::Resloped);
                }
            }
            Procedure::Module => (),
        }
        if self.flags & FLAG_ALLOW_RATE_MISMATCH != 0 {
            self.lost.push(Loss::OtherRate(done.rate_diff_hz));
        }
        let is_counted = self.procedure == Procedure::Module && self.cap & CAP_STEAL != 0;
        if self.policy.steal_time && self.mode != Mode::Freeze && !is_counted {
            self.lost.push(Loss::StealTime);
        }
        let advanced = match self.mode {
            Mode::Advance => duration(self.elapsed_ns),
            Mode::Exact | Mode::Freeze => Duration::ZERO,
        };
        Ok(Outcome {
            procedure: self.procedure,
            mode: self.mode,
            host,
            advanced_ns: ns(advanced),
            precision_ns: done.precision_ns,
            rate_diff_hz: done.rate_diff_hz,
            lost: self.lost,
        })
    }
}

/// `ns` (not negative) as a duration, saturating.
fn duration(ns: i128) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

/// ns, saturating.
fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
