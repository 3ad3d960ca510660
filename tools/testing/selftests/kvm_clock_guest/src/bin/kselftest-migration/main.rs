// SPDX-License-Identifier: GPL-2.0-only

//! `clockguest migrate` and `serve`: a guest arrives with its clocks, or continues exactly at the
//! source if the connection fails.
//!
//! Source and destination are the same host, whose TSC is ground truth. tools/vm/host pair tests
//! migration between hosts.

mod faults;
mod moves;
mod proxy;

use clockguest::{
    method::Method,
    migration::{migrate, serve, ClockSource, MigrateConfig, ModeChoice, ServeConfig, Summary},
    progress::Progress,
};
use kvm_clock_guest_selftests::prelude::*;
use std::{
    net::SocketAddr,
    sync::mpsc::{channel, Receiver},
    thread::spawn,
};

/// vCPUs of the guests.
const VCPUS: u32 = 2;
/// How long the destination may take to report.
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

/// `clockguest serve` on a thread, until the program ends.
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
            // The receiver may be gone.
            let mut report = |line| drop(sender.send(line));
            if let Err(error) = serve(&config, &mut report) {
                report(format!("{error:#}"));
            }
        });
        let first = lines.recv_timeout(PATIENCE)?;
        let address = first
            .strip_prefix("listening on ")
            .with_context(|| first.clone())?
            .parse()?;
        Ok(Self { address, lines })
    }

    /// Drops the lines reported so far.
    pub(crate) fn forget(&self) {
        while self.lines.try_recv().is_ok() {}
    }

    /// The next line that it reports.
    pub(crate) fn line(&self) -> Result<String> {
        self.lines
            .recv_timeout(PATIENCE)
            .context("the destination reports nothing")
    }
}

/// Moves a new guest to `to`, one way.
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
