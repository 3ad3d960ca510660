// SPDX-License-Identifier: GPL-2.0-only

//! `clockguest migrate` and `serve`: a guest arrives with its clocks, or continues exactly at the
//! source if the connection fails.
//!
//! Source and destination are the same host, whose TSC is ground truth. tools/vm/host pair tests
//! migration between hosts.

mod clients;
mod faults;
mod moves;
mod proxy;

use clockguest::{
    method::Method,
    migration::{
        migrate, serve, ClockSource, Destination, MigrateConfig, ModeChoice, ServeConfig, Summary,
        Transport,
    },
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
    cases.extend(clients::cases());
    ktap::main(requirements, cases)
}

fn requirements() -> Result<Server> {
    require::clock_guest()?;
    Server::new(Transport::Listen("0".into()), 10 * PATIENCE)
}

/// `clockguest serve` on a thread, until the program ends.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    lines: Receiver<String>,
}

impl Server {
    pub(crate) fn new(transport: Transport, deadline: Duration) -> Result<Self> {
        let (sender, lines) = channel();
        spawn(move || {
            let config = ServeConfig {
                transport,
                once: false,
                deadline,
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

/// Moves a new guest to the server at `to`, one way.
pub(crate) fn send(to: SocketAddr) -> MigrateConfig {
    migrate_to(Destination::Address(to.to_string()))
}

/// Moves a new guest to `to`, one way.
pub(crate) fn migrate_to(to: Destination) -> MigrateConfig {
    MigrateConfig {
        to,
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
