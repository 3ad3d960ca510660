// SPDX-License-Identifier: GPL-2.0-only

//! Hands a guest over.

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
use pvclock::abi::CAP_EXACT;
use thiserror::Error;

/// Pings while the guest runs, and while it is stopped.
const PINGS: (usize, usize) = (16, 16);

/// A guest that runs, and what was read of it so far.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) vm: Vm,
    /// Its TSC rate, kHz.
    pub(super) tsc_khz: u32,
    pub(super) run: Run,
}

impl Guest {
    /// Lets the stopped `vm` run.
    pub(super) fn run(vm: Vm) -> vmm::Result<Self> {
        let tsc_khz = vm.tsc_khz()?;
        let run = observe::run(&vm)?;
        Ok(Self { vm, tsc_khz, run })
    }

    /// Stops it; returns what it read.
    pub(super) fn stop(self) -> vmm::Result<(Vm, Reading)> {
        self.vm.stop()?;
        let reading = self.run.finish(&self.vm, rdtsc_ordered())?;
        Ok((self.vm, reading))
    }
}

/// How the clocks of a guest are to move.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) method: Method,
    pub(super) mode: Mode,
    /// Whether to measure how the hosts' clocks differ, and to correct for it.
    pub(super) exchange: bool,
    /// Whether the guest is to come back.
    pub(super) returns: bool,
}

/// A guest that runs on the other host.
#[derive(Debug)]
pub(super) struct Gone {
    /// What it read here.
    pub(super) before: Reading,
    pub(super) saved: Saved,
    pub(super) shift: Option<ClockShift>,
    pub(super) restored: Restored,
    /// TAI - UTC here, s.
    pub(super) tai_offset_s: i32,
    /// As the destination has it, ns.
    pub(super) downtime_ns: i64,
}

/// Why a guest did not move.
#[derive(Debug, Error)]
pub(super) enum Failed {
    /// It goes on here.
    #[error("the guest goes on here: {error:#}")]
    Kept {
        /// It runs again, its clocks put back; with what it read before it was stopped, if it was.
        guest: Box<Guest>,
        before: Option<Box<Reading>>,
        error: anyhow::Error,
    },
    /// It was handed over, and nobody knows whether it runs there. It is not resumed here, lest it run
    /// twice.
    #[error(
        "the connection was lost after the guest was handed over, so it may run there; it is not \
         resumed here: {0:#}"
    )]
    Lost(anyhow::Error),
    /// It does not even run here any more.
    #[error("the guest can neither move nor go on: {0:#}")]
    Broken(anyhow::Error),
}

/// Hands `guest`, which runs on the host `here`, over to `peer`.
pub(super) fn hand_over(
    peer: &mut Peer,
    here: &Hello,
    guest: Guest,
    terms: Terms,
) -> Result<Gone, Failed> {
    let early = match offer(peer, &guest, terms) {
        Ok(early) => early,
        Err(error) => {
            return Err(Failed::Kept {
                guest: Box::new(guest),
                before: None,
                error,
            })
        }
    };
    let stopped = Stopped::new(guest, here, terms).map_err(Failed::Broken)?;
    let (shift, restored) = match stopped.send(peer, here, early, terms) {
        Ok(sent) => sent,
        Err(error) => return Err(stopped.go_on(error)),
    };
    // An incomplete frame is none, so the guest is still ours if this fails.
    if let Err(error) = peer.send(&Go {}) {
        return Err(stopped.go_on(error));
    }
    match peer.receive() {
        Ok(Running { downtime_ns }) => Ok(Gone {
            before: stopped.reading,
            saved: stopped.saved,
            shift,
            restored,
            tai_offset_s: here.tai_offset_s,
            downtime_ns,
        }),
        // It says that it does not run it.
        Err(error) if error.is::<Refused>() => Err(stopped.go_on(error)),
        Err(error) => Err(Failed::Lost(error)),
    }
}

/// Has a VM made for the guest, which runs meanwhile; returns the first pings.
fn offer(peer: &mut Peer, guest: &Guest, terms: Terms) -> Result<Vec<Exchange>> {
    peer.send(&Offer {
        // CAST: At most `layout::MAX_VCPUS`.
        vcpus: guest.vm.vcpus().len() as u32,
        tsc_khz: guest.tsc_khz,
    })?;
    let Prepared {} = peer.receive()?;
    if terms.exchange {
        exchange::ping(peer, PINGS.0)
    } else {
        Ok(Vec::new())
    }
}

/// A guest between two hosts.
struct Stopped {
    vm: Vm,
    saved: Saved,
    /// `CLOCK_TAI` when its clocks were saved, ns.
    saved_at_ns: i64,
    reading: Reading,
}

impl Stopped {
    /// Stops the guest, and saves its clocks by the best that this host can do.
    fn new(guest: Guest, here: &Hello, terms: Terms) -> Result<Self> {
        let Guest { vm, run, .. } = guest;
        vm.stop()?;
        let host_stop = rdtsc_ordered();
        let method = match terms.method {
            Method::Atomic if here.clock_guest_cap & CAP_EXACT == 0 => Method::LegacyOffset,
            method => method,
        };
        let saved = method.save(&vm)?;
        let saved_at_ns = tai_ns()?;
        let reading = run.finish(&vm, host_stop)?;
        Ok(Self {
            vm,
            saved,
            saved_at_ns,
            reading,
        })
    }

    /// Sends it; the destination has it complete when this returns, and waits.
    fn send(
        &self,
        peer: &mut Peer,
        here: &Hello,
        mut pings: Vec<Exchange>,
        terms: Terms,
    ) -> Result<(Option<ClockShift>, Restored)> {
        let shift = if terms.exchange {
            pings.extend(exchange::ping(peer, PINGS.1)?);
            Some(exchange::difference(&pings, self.saved_at_ns)?)
        } else {
            None
        };
        let clocks = Clocks {
            saved: self.saved.clone(),
            method: terms.method,
            mode: terms.mode,
            saved_at_ns: self.saved_at_ns,
            shift,
            tai_offset_s: here.tai_offset_s,
            scaled: self.reading.is_scaled(),
            reading: self.reading.clone(),
            returns: terms.returns,
        };
        peer.send_state(&self.vm.save()?, &clocks)?;
        Ok((shift, peer.receive()?))
    }

    /// Lets the guest go on here, with its clocks put back.
    fn go_on(self, error: anyhow::Error) -> Failed {
        let resumed = self
            .saved
            .resume(&self.vm)
            .and_then(|()| Guest::run(self.vm));
        match resumed {
            Ok(guest) => Failed::Kept {
                guest: Box::new(guest),
                before: Some(Box::new(self.reading)),
                error,
            },
            Err(e) => Failed::Broken(error.context(format!("{e}, after"))),
        }
    }
}
