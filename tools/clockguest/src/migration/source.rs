// SPDX-License-Identifier: GPL-2.0-only

//! The source of a guest.

use super::{
    connection::{Peer, Refused},
    exchange::{self, Exchange},
    message::{ClockShift, Clocks, Go, Hello, Offer, Prepared, Restored, Running},
};
use crate::{
    host::{rdtsc_ordered, tai_ns},
    measure::Reading,
    method::{Method, Mode, Saved},
    observe::{self, Run},
    vmm::{self, Vm},
};
use anyhow::Result;
use thiserror::Error;

/// Numbers of pings while the guest runs, and while it is stopped.
const PINGS: (usize, usize) = (16, 16);

/// A running guest and its samples so far.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) vm: Vm,
    /// TSC rate, kHz.
    pub(super) tsc_khz: u32,
    pub(super) run: Run,
}

impl Guest {
    /// Runs the stopped `vm`.
    pub(super) fn run(vm: Vm) -> vmm::Result<Self> {
        let tsc_khz = vm.tsc_khz()?;
        let run = observe::run(&vm)?;
        Ok(Self { vm, tsc_khz, run })
    }

    /// Stops it, and returns its readings.
    pub(super) fn stop(self) -> vmm::Result<(Vm, Reading)> {
        self.vm.stop()?;
        let reading = self.run.finish(&self.vm, rdtsc_ordered())?;
        Ok((self.vm, reading))
    }
}

/// How the clocks of a guest move.
#[derive(Clone, Copy, Debug)]
pub(super) struct MoveOptions {
    pub(super) method: Method,
    pub(super) mode: Mode,
    /// Whether to measure the difference of the hosts' clocks, and to correct for it.
    pub(super) exchange: bool,
    /// Whether the guest comes back.
    pub(super) returns: bool,
}

/// A completed move.
#[derive(Debug)]
pub(super) struct Moved {
    /// The readings at the source.
    pub(super) before: Reading,
    pub(super) saved: Saved,
    pub(super) shift: Option<ClockShift>,
    pub(super) restored: Restored,
    /// TAI - UTC of the source, s.
    pub(super) tai_offset_s: i32,
    /// In the destination's time, ns.
    pub(super) downtime_ns: i64,
}

/// A guest that did not move.
#[derive(Debug, Error)]
pub(super) enum MoveFailed {
    /// It runs here again.
    #[error("the guest goes on here: {error:#}")]
    Resumed {
        /// The guest with its clocks restored, and its readings before it stopped, if it did.
        guest: Box<Guest>,
        before: Option<Box<Reading>>,
        error: anyhow::Error,
    },
    /// Go was sent, and it is unknown whether the guest runs there. It does not resume here, lest
    /// it run twice.
    #[error(
        "the connection was lost after the guest was handed over, so it may run there; it does \
         not resume here: {0:#}"
    )]
    Lost(anyhow::Error),
    /// It runs on neither host.
    #[error("the guest can neither move nor resume: {0:#}")]
    Broken(anyhow::Error),
}

/// Sends `guest`, which runs on the host `here`, to `peer`.
pub(super) fn send_guest(
    peer: &mut Peer,
    here: &Hello,
    guest: Guest,
    options: MoveOptions,
) -> Result<Moved, MoveFailed> {
    let early = match offer(peer, &guest, options) {
        Ok(early) => early,
        Err(error) => {
            return Err(MoveFailed::Resumed {
                guest: Box::new(guest),
                before: None,
                error,
            })
        }
    };
    let stopped = Stopped::new(guest, options).map_err(MoveFailed::Broken)?;
    let (shift, restored) = match stopped.send(peer, here, early, options) {
        Ok(sent) => sent,
        Err(error) => return Err(stopped.resume(error)),
    };
    // If this fails, the destination has no complete frame, so the guest still belongs to this
    // host.
    if let Err(error) = peer.send(&Go {}) {
        return Err(stopped.resume(error));
    }
    match peer.receive() {
        Ok(Running { downtime_ns }) => Ok(Moved {
            before: stopped.reading,
            saved: stopped.saved,
            shift,
            restored,
            tai_offset_s: here.tai_offset_s,
            downtime_ns,
        }),
        // The destination does not run the guest.
        Err(error) if error.is::<Refused>() => Err(stopped.resume(error)),
        Err(error) => Err(MoveFailed::Lost(error)),
    }
}

/// Has the destination create the VM while the guest runs; returns the first pings.
fn offer(peer: &mut Peer, guest: &Guest, options: MoveOptions) -> Result<Vec<Exchange>> {
    peer.send(&Offer {
        // CAST: At most `layout::MAX_VCPUS`.
        vcpus: guest.vm.vcpus().len() as u32,
        tsc_khz: guest.tsc_khz,
    })?;
    let Prepared {} = peer.receive()?;
    if options.exchange {
        exchange::ping(peer, PINGS.0)
    } else {
        Ok(Vec::new())
    }
}

/// A guest between two hosts.
struct Stopped {
    vm: Vm,
    saved: Saved,
    /// `CLOCK_TAI` when the clocks were saved, ns.
    saved_at_ns: i64,
    reading: Reading,
}

impl Stopped {
    /// Stops the guest, and saves its clocks.
    fn new(guest: Guest, options: MoveOptions) -> Result<Self> {
        let Guest { vm, run, .. } = guest;
        vm.stop()?;
        let host_stop = rdtsc_ordered();
        let saved = options.method.save(&vm)?;
        let saved_at_ns = tai_ns()?;
        let reading = run.finish(&vm, host_stop)?;
        Ok(Self {
            vm,
            saved,
            saved_at_ns,
            reading,
        })
    }

    /// Sends the guest; when this returns, the destination has restored it and waits for Go.
    fn send(
        &self,
        peer: &mut Peer,
        here: &Hello,
        mut pings: Vec<Exchange>,
        options: MoveOptions,
    ) -> Result<(Option<ClockShift>, Restored)> {
        let shift = if options.exchange {
            pings.extend(exchange::ping(peer, PINGS.1)?);
            Some(exchange::difference(&pings, self.saved_at_ns)?)
        } else {
            None
        };
        let clocks = Clocks {
            saved: self.saved.clone(),
            method: options.method,
            mode: options.mode,
            saved_at_ns: self.saved_at_ns,
            shift,
            tai_offset_s: here.tai_offset_s,
            reading: self.reading.clone(),
            returns: options.returns,
        };
        peer.send_state(&self.vm.save()?, &clocks)?;
        Ok((shift, peer.receive()?))
    }

    /// Resumes the guest here, with its clocks restored.
    fn resume(self, error: anyhow::Error) -> MoveFailed {
        let resumed = self
            .saved
            .resume(&self.vm)
            .and_then(|()| Guest::run(self.vm));
        match resumed {
            Ok(guest) => MoveFailed::Resumed {
                guest: Box::new(guest),
                before: Some(Box::new(self.reading)),
                error,
            },
            Err(e) => MoveFailed::Broken(error.context(format!("{e}, after"))),
        }
    }
}
