// SPDX-License-Identifier: GPL-2.0-only

//! `clockguest migrate` and `serve`: a guest that moves arrives with its clocks, and one that
//! cannot goes on where it was, exactly, whatever happened to the connection.
//!
//! Source and destination are one host here, so that its TSC is ground truth; between hosts it is
//! tools/vm/pair that tells.

mod faults;
mod moves;
mod proxy;

use anyhow::{Context, Result};
use clockguest::{
    method::Method,
    migration::{migrate, serve, ClockSource, MigrateConfig, ModeChoice, ServeConfig, Summary},
    progress::Progress,
};
use kvm_clock_guest_selftests::{ktap, require};
use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::mpsc::{channel, Receiver},
    thread::spawn,
    time::Duration,
};

/// vCPUs of the guests.
const VCPUS: u32 = 2;
/// How long the destination may take to say something.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut cases = moves::cases();
    cases.extend(faults::cases());
    ktap::main(requirements, cases)
}

fn requirements() -> Result<Destination> {
    require::clock_guest()?;
    Destination::new()
}

/// `clockguest serve` on a thread; it goes on until the program ends.
pub(crate) struct Destination {
    pub(crate) address: SocketAddr,
    lines: Receiver<String>,
}

impl Destination {
    fn new() -> Result<Self> {
        let (sender, lines) = channel();
        spawn(move || {
            let config = ServeConfig {
                listen: "127.0.0.1:0".into(),
                once: false,
                trace_clock: true,
                any_kvm: false,
            };
            // Who stopped listening has got what it wanted.
            let mut tell = |line| drop(sender.send(line));
            if let Err(error) = serve(&config, &mut tell) {
                tell(format!("{error:#}"));
            }
        });
        let first = lines.recv_timeout(PATIENCE)?;
        let address = first
            .strip_prefix("listening on ")
            .with_context(|| first.clone())?
            .parse()?;
        Ok(Self { address, lines })
    }

    /// Forgets what it said.
    pub(crate) fn forget(&self) {
        while self.lines.try_recv().is_ok() {}
    }

    /// The next thing that it says.
    pub(crate) fn line(&self) -> Result<String> {
        self.lines
            .recv_timeout(PATIENCE)
            .context("the destination says nothing")
    }
}

/// Moves a new guest to `to`, and no further.
pub(crate) fn send(to: SocketAddr) -> MigrateConfig {
    MigrateConfig {
        to: to.to_string(),
        vcpus: VCPUS,
        tsc_khz: None,
        method: Method::Atomic,
        mode: ModeChoice::Auto,
        sync: ClockSource::Exchange,
        round_trips: 0,
        trace_clock: false,
        truth: None,
        any_kvm: false,
    }
}

pub(crate) fn run(config: &MigrateConfig) -> Result<Summary> {
    migrate(config, &mut Progress::new("migrate".into(), 1))
}
