// SPDX-License-Identifier: GPL-2.0-only

//! Moves a guest to another host, once or in round trips.

use super::{
    clock_trace::ClockTrace,
    connection::{Destination, Peer},
    destination::{receive_guest, Host},
    ground_truth::{EmulatedTsc, GroundTruth},
    message::Hello,
    source::{send_guest, Guest, MoveFailed, MoveOptions, Moved},
    summary::{Aborted, Direction, MoveData, Summary},
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

/// How to choose the mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ModeChoice {
    /// exact if the other host is this one, by its boot ID; otherwise advance
    Auto,
    /// Same host TSC: restore everything bit for bit
    Exact,
    /// Another host: advance the guest's TSC by the elapsed TAI
    Advance,
    /// Hide the pause: continue the guest's TSC from its saved value
    Freeze,
}

impl ModeChoice {
    fn between(self, here: &Hello, there: &Hello) -> Mode {
        match self {
            Self::Auto => here.boot_id.mode_to(&there.boot_id).into(),
            Self::Advance => Mode::Advance,
            Self::Exact => Mode::Exact,
            Self::Freeze => Mode::Freeze,
        }
    }
}

/// How the two hosts' clocks are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ClockSource {
    /// With pings over the connection, right before and after the guest stops
    Exchange,
    /// Not at all: the hosts' clocks are synchronised otherwise (PTP, chrony)
    Hosts,
}

/// Parameters of a migration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The destination.
    pub to: Destination,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Guest TSC rate, kHz; `None` for the host's.
    pub tsc_khz: Option<u32>,
    /// How its clocks are saved and restored.
    pub method: Method,
    /// How the mode is chosen.
    pub mode: ModeChoice,
    /// How the hosts' clocks are compared.
    pub sync: ClockSource,
    /// Number of round trips; 0: the guest moves once, and stays.
    pub round_trips: u32,
    /// Trace the clock snapshot that the kernel uses to set the guest's clocks.
    pub trace_clock: bool,
    /// The relation between the hosts' TSCs, if known.
    pub truth: Option<GroundTruth>,
    /// Use `/dev/kvm` even if no CPU vendor's module is loaded.
    pub any_kvm: bool,
}

/// Creates a guest, runs it, and moves it; the summary has errors of the moves.
///
/// # Errors
///
/// [`Unavailable`](crate::host::Unavailable); if the first VM cannot be created or run, or the
/// other host cannot be reached or sends an invalid Hello.
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
    let mut migration = Migration {
        truth: config.truth,
        same_host: host.hello.boot_id.is_same_boot(&there.boot_id),
        summary: Summary::new(config.method, mode, config.vcpus, moves),
    };
    let options = MoveOptions {
        method: config.method,
        mode,
        exchange: config.sync == ClockSource::Exchange,
        returns: config.round_trips > 0,
    };
    let guest = start(&kvm, config)?;
    progress.begin();
    migration.run(&mut peer, &host, guest, options, progress)?;
    Ok(migration.summary)
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
struct Migration {
    truth: Option<GroundTruth>,
    same_host: bool,
    summary: Summary,
}

impl Migration {
    fn run(
        &mut self,
        peer: &mut Peer,
        host: &Host<'_>,
        mut guest: Guest,
        options: MoveOptions,
        progress: &mut Progress,
    ) -> Result<()> {
        // The errors of the way back are known when the guest stops again.
        let mut returned: Option<Moved> = None;
        loop {
            let moved = match send_guest(peer, &host.hello, guest, options) {
                Ok(moved) => moved,
                Err(failed) => return self.abort(failed),
            };
            if let Some(returned) = returned.take() {
                self.add(Direction::Back, &returned, &moved.before);
            }
            if !options.returns {
                let after = peer
                    .receive()
                    .context("the guest runs there, but sent no readings")?;
                self.add(Direction::There, &moved, &after);
                return Ok(());
            }
            let (back, arrival) = match receive_guest(peer, host) {
                Ok(received) => received,
                Err(error) => {
                    self.summary
                        .fail(format!("the guest did not come back: {error:#}"));
                    return Ok(());
                }
            };
            self.add(Direction::There, &moved, &arrival.clocks.reading);
            progress.update(self.summary.moves_done);
            if self.summary.moves_done + 1 == self.summary.moves {
                let (_, after) = back.stop()?;
                self.add(Direction::Back, &arrival.into_moved(), &after);
                return Ok(());
            }
            guest = back;
            returned = Some(arrival.into_moved());
        }
    }

    fn add(&mut self, direction: Direction, moved: &Moved, after: &Reading) {
        let host_tscs = self.host_tscs(direction);
        self.summary.add(&MoveData {
            direction,
            moved,
            after,
            host_tscs,
        });
    }

    /// The TSCs of source and destination of a move, if their relation is known.
    fn host_tscs(&self, direction: Direction) -> Option<(EmulatedTsc, EmulatedTsc)> {
        if self.same_host {
            return Some((EmulatedTsc::IDENTITY, EmulatedTsc::IDENTITY));
        }
        let GroundTruth { here, there } = self.truth?;
        Some(match direction {
            Direction::There => (here, there),
            Direction::Back => (there, here),
        })
    }

    /// Records why and in which state a move ended.
    fn abort(&mut self, failed: MoveFailed) -> Result<()> {
        let aborted = match failed {
            MoveFailed::Resumed {
                guest,
                before,
                error,
            } => {
                let (_, after) = guest.stop()?;
                let (guest, exact) = match before {
                    None => ("was not stopped, and goes on here".into(), None),
                    Some(before) => compare_resumed(&before, &after),
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

/// The clock errors of a guest that resumed after a failed move, and whether there are none.
fn compare_resumed(before: &Reading, after: &Reading) -> (String, Option<bool>) {
    let steps = (after.backwards() - before.backwards()).total();
    match compare(before, after) {
        Err(inconsistent) => (format!("goes on here, but {inconsistent}"), Some(false)),
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
