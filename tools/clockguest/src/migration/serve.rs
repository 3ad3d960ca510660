// SPDX-License-Identifier: GPL-2.0-only

//! Serves as the destination of guests.

use super::{
    clock_trace::ClockTrace,
    connection::Peer,
    destination::{receive_guest, Arrival, Host},
    message::Hello,
    source::{send_guest, Guest, MoveFailed, MoveOptions},
};
use crate::{host::open_kvm, vmm::Vm};
use anyhow::{Context, Result};
use std::net::{TcpListener, TcpStream};

/// Parameters of a destination.
#[derive(Clone, Debug)]
pub struct Config {
    /// `HOST:PORT` to listen on.
    pub listen: String,
    /// Exit after the first connection.
    pub once: bool,
    /// Trace the clock snapshot that the kernel uses to set a guest's clocks.
    pub trace_clock: bool,
    /// Use `/dev/kvm` even if no CPU vendor's module is loaded.
    pub any_kvm: bool,
}

/// Receives guests, one connection after the other; the last guest that stays keeps running. `log`
/// gets a line per event.
///
/// # Errors
///
/// [`Unavailable`](crate::host::Unavailable); if it cannot listen on the address; with
/// [`Config::once`], also the error of the one connection.
pub fn serve(config: &Config, log: &mut dyn FnMut(String)) -> Result<()> {
    let kvm = open_kvm(config.any_kvm)?;
    let trace = config.trace_clock.then(ClockTrace::new).transpose()?;
    let host = Host {
        kvm: &kvm,
        hello: Hello::of(&kvm)?,
        trace: trace.as_ref(),
    };
    let listener = TcpListener::bind(&config.listen)
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    log(format!("listening on {}", listener.local_addr()?));
    let mut server = Server {
        host,
        resident: None,
        log,
    };
    loop {
        let (stream, from) = listener.accept()?;
        let done = server.session(stream);
        if let Err(error) = &done {
            (server.log)(format!("{from}: {error:#}"));
        }
        if config.once {
            return done;
        }
    }
}

struct Server<'a> {
    host: Host<'a>,
    /// The guest that stays here until the next one arrives.
    resident: Option<Vm>,
    log: &'a mut dyn FnMut(String),
}

impl Server<'_> {
    /// Handles a connection: receives guests, and sends them back if requested.
    fn session(&mut self, stream: TcpStream) -> Result<()> {
        let mut peer = Peer::accept(stream, &self.host.hello)?;
        let _: Hello = peer.receive()?;
        let mut is_first = true;
        loop {
            let (guest, arrival) = match receive_guest(&mut peer, &self.host) {
                Err(error) if !is_first && Peer::is_closed(&error) => return Ok(()),
                arrived => arrived?,
            };
            is_first = false;
            self.resident = None;
            if arrival.clocks.returns {
                self.send_back(&mut peer, guest, &arrival)?;
            } else {
                self.run_here(&mut peer, guest, &arrival)?;
            }
        }
    }

    fn send_back(&mut self, peer: &mut Peer, guest: Guest, arrival: &Arrival) -> Result<()> {
        let options = MoveOptions {
            method: arrival.clocks.method,
            mode: arrival.clocks.mode,
            exchange: arrival.clocks.shift.is_some(),
            returns: false,
        };
        match send_guest(peer, &self.host.hello, guest, options) {
            Ok(_) => Ok(()),
            Err(MoveFailed::Resumed { guest, error, .. }) => {
                self.resident = Some(guest.vm);
                Err(error.context("the guest could not go back, and keeps running here"))
            }
            Err(failed) => Err(failed.into()),
        }
    }

    /// Sends the guest's readings here to the source, and keeps the guest running.
    fn run_here(&mut self, peer: &mut Peer, guest: Guest, arrival: &Arrival) -> Result<()> {
        let (vm, reading) = guest.stop()?;
        vm.run()?;
        let vcpus = vm.vcpus().len();
        self.resident = Some(vm);
        let procedure = &arrival.restored.procedure;
        (self.log)(format!(
            "a guest with {vcpus} vCPUs runs here, restored with {procedure}"
        ));
        peer.send(&reading)
    }
}
