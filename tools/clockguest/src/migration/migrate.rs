// SPDX-License-Identifier: GPL-2.0-only

//! A host whose guest moves, once or there and back a number of times.

use super::{
    clock_trace::ClockTrace,
    connection::Peer,
    destination::{take_over, Arrival, Host},
    message::Hello,
    source::{hand_over, Failed, Gone, Guest, Terms},
    summary::{Aborted, Direction, Evidence, Summary},
    truth::{Counter, Truth},
};
use crate::{
    host::open_kvm,
    measure::{compare, ClockError, Reading},
    method::{Method, Mode},
    progress::Progress,
    scenario::warm_up,
    vmm::Vm,
};
use anyhow::{Context, Result};
use kvm_ioctls::Kvm;

/// Which mode to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ModeChoice {
    /// exact if the other host is this one by its boot id, else advance
    Auto,
    /// Same host TSC: everything comes back bit for bit
    Exact,
    /// Another host: the guest's TSC goes on by the TAI that passed
    Advance,
    /// Hide the pause: the guest's TSC goes on from where it was
    Freeze,
}

impl ModeChoice {
    fn between(self, here: &Hello, there: &Hello) -> Mode {
        match self {
            Self::Auto if here.boot_id == there.boot_id => Mode::Exact,
            Self::Auto | Self::Advance => Mode::Advance,
            Self::Exact => Mode::Exact,
            Self::Freeze => Mode::Freeze,
        }
    }
}

/// What the two hosts' time of day is compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ClockSource {
    /// By pings over the connection, right before and after the guest is stopped
    Exchange,
    /// Not at all: both hosts' clocks are taken for one (PTP, chrony)
    Hosts,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// `HOST:PORT` of the destination.
    pub to: String,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Guest TSC rate, kHz; `None` for the host's.
    pub tsc_khz: Option<u32>,
    /// How its clocks are saved and restored.
    pub method: Method,
    /// How they are carried over.
    pub mode: ModeChoice,
    /// What the hosts' clocks are compared by.
    pub sync: ClockSource,
    /// Times that the guest goes there and comes back; 0: it goes, and stays.
    pub round_trips: u32,
    /// Trace what the kernel's clocks say when the guest's are set.
    pub trace_clock: bool,
    /// What the hosts' TSCs really are.
    pub truth: Option<Truth>,
    /// Use `/dev/kvm` whichever module is behind it.
    pub any_kvm: bool,
}

/// Makes a guest, lets it run, and moves it; what goes wrong on the way is in the summary.
///
/// # Errors
///
/// [`Unavailable`](crate::host::Unavailable); if the first VM cannot be made or run, the other host
/// cannot be reached, or says nothing that makes sense.
pub fn migrate(config: &Config, progress: &mut Progress) -> Result<Summary> {
    let kvm = open_kvm(config.any_kvm)?;
    let trace = config.trace_clock.then(ClockTrace::new).transpose()?;
    let host = Host {
        kvm: &kvm,
        hello: Hello::of(&kvm)?,
        trace: trace.as_ref(),
    };
    let (mut peer, there) = Peer::connect(&config.to)?;
    peer.send(&host.hello)?;

    let mode = config.mode.between(&host.hello, &there);
    let moves = (2 * config.round_trips).max(1);
    let mut journey = Journey {
        truth: config.truth,
        same_host: host.hello.boot_id == there.boot_id,
        summary: Summary::new(config.method, mode, config.vcpus, moves),
    };
    let terms = Terms {
        method: config.method,
        mode,
        exchange: config.sync == ClockSource::Exchange,
        returns: config.round_trips > 0,
    };
    let guest = start(&kvm, config)?;
    progress.begin();
    journey.travel(&mut peer, &host, guest, terms, progress)?;
    Ok(journey.summary)
}

fn start(kvm: &Kvm, config: &Config) -> Result<Guest> {
    let vm = match config.tsc_khz {
        Some(khz) => Vm::at_rate(kvm, config.vcpus, khz)
            .with_context(|| format!("a guest with a TSC of {khz} kHz"))?,
        None => Vm::new(kvm, config.vcpus)?,
    };
    warm_up(&vm)?;
    Ok(Guest::run(vm)?)
}

/// The moves of one guest.
struct Journey {
    truth: Option<Truth>,
    same_host: bool,
    summary: Summary,
}

impl Journey {
    fn travel(
        &mut self,
        peer: &mut Peer,
        host: &Host<'_>,
        mut guest: Guest,
        terms: Terms,
        progress: &mut Progress,
    ) -> Result<()> {
        // What the way back did is known once the guest was stopped again.
        let mut arrival = None;
        loop {
            let gone = match hand_over(peer, &host.hello, guest, terms) {
                Ok(gone) => gone,
                Err(failed) => return self.abort(failed),
            };
            if let Some(arrival) = arrival.take() {
                self.came_back(&arrival, &gone.before);
            }
            if !terms.returns {
                let after = peer.receive().context("the guest runs there, but")?;
                self.went(&gone, &after);
                return Ok(());
            }
            let (back, arrived) = match take_over(peer, host) {
                Ok(back) => back,
                Err(error) => {
                    self.summary
                        .fail(format!("the guest did not come back: {error:#}"));
                    return Ok(());
                }
            };
            self.went(&gone, &arrived.clocks.reading);
            progress.update(self.summary.moves_done);
            if self.summary.moves_done + 1 == self.summary.moves {
                let (_, after) = back.stop()?;
                self.came_back(&arrived, &after);
                return Ok(());
            }
            guest = back;
            arrival = Some(arrived);
        }
    }

    fn went(&mut self, gone: &Gone, after: &Reading) {
        self.summary.add(&Evidence {
            direction: Direction::There,
            before: &gone.before,
            after,
            saved: &gone.saved,
            shift: gone.shift,
            restored: &gone.restored,
            tai_offset_s: gone.tai_offset_s,
            downtime_ns: gone.downtime_ns,
            counters: self.counters(Direction::There),
        });
    }

    fn came_back(&mut self, arrival: &Arrival, after: &Reading) {
        self.summary.add(&Evidence {
            direction: Direction::Back,
            before: &arrival.clocks.reading,
            after,
            saved: &arrival.clocks.saved,
            shift: arrival.clocks.shift,
            restored: &arrival.restored,
            tai_offset_s: arrival.clocks.tai_offset_s,
            downtime_ns: arrival.downtime_ns,
            counters: self.counters(Direction::Back),
        });
    }

    /// TSCs of the hosts before and after a move, if it is known how they go together.
    fn counters(&self, direction: Direction) -> Option<(Counter, Counter)> {
        if self.same_host {
            return Some((Counter::MACHINE, Counter::MACHINE));
        }
        let Truth { here, there } = self.truth?;
        Some(match direction {
            Direction::There => (here, there),
            Direction::Back => (there, here),
        })
    }

    /// Tells what became of a guest that could not move.
    fn abort(&mut self, failed: Failed) -> Result<()> {
        let aborted = match failed {
            Failed::Kept {
                guest,
                before,
                error,
            } => {
                let (_, after) = guest.stop()?;
                let (guest, exact) = match before {
                    None => ("was not stopped, and goes on here".into(), None),
                    Some(before) => goes_on(&before, &after),
                };
                Aborted {
                    why: format!("{error:#}"),
                    guest,
                    exact,
                }
            }
            failed => Aborted {
                why: format!("{failed:#}"),
                guest: "does not run here".into(),
                exact: None,
            },
        };
        self.summary.fail(format!("aborted: {}", aborted.why));
        self.summary.aborted = Some(aborted);
        Ok(())
    }
}

/// What the way to nowhere did to the clocks of a guest, and whether that is nothing.
fn goes_on(before: &Reading, after: &Reading) -> (String, Option<bool>) {
    let steps = (after.backwards() - before.backwards()).total();
    match compare(before, after) {
        Err(contradiction) => (format!("goes on here, but {contradiction}"), Some(false)),
        Ok(found) => {
            let exact = found.error == ClockError::default()
                && found.offsets_identical
                && found.records_identical
                && steps == 0;
            let error = found.error;
            let text = format!(
                "goes on here{}: TSC {:+} ticks, kvmclock {:+} ns, {steps} steps back",
                if exact {
                    ", offsets and record bit-identical"
                } else {
                    ""
                },
                error.tsc_ticks,
                error.kvmclock_ns,
            );
            (text, Some(exact))
        }
    }
}
