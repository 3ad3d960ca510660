// SPDX-License-Identifier: GPL-2.0-only

//! A host that takes guests over.

use super::{
    clock_trace::ClockTrace,
    connection::Peer,
    destination::{take_over, Arrival, Host},
    message::Hello,
    source::{hand_over, Failed, Guest, Terms},
};
use crate::{host::open_kvm, vmm::Vm};
use anyhow::{Context, Result};
use std::net::{TcpListener, TcpStream};

/// How to serve.
#[derive(Clone, Debug)]
pub struct Config {
    /// `HOST:PORT` to listen on.
    pub listen: String,
    /// End after the first connection.
    pub once: bool,
    /// Trace what the kernel's clocks say when a guest's are set.
    pub trace_clock: bool,
    /// Use `/dev/kvm` whichever module is behind it.
    pub any_kvm: bool,
}

/// Takes guests over, one connection after the other; the last guest that stayed runs on. `tell` is
/// given a line for each event.
///
/// # Errors
///
/// [`Unavailable`](crate::host::Unavailable); if the address cannot be listened on; with
/// [`Config::once`], also what went wrong with the one connection.
pub fn serve(config: &Config, tell: &mut dyn FnMut(String)) -> Result<()> {
    let kvm = open_kvm(config.any_kvm)?;
    let trace = config.trace_clock.then(ClockTrace::new).transpose()?;
    let host = Host {
        kvm: &kvm,
        hello: Hello::of(&kvm)?,
        trace: trace.as_ref(),
    };
    let listener = TcpListener::bind(&config.listen)
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    tell(format!("listening on {}", listener.local_addr()?));
    let mut server = Server {
        host,
        stays: None,
        tell,
    };
    loop {
        let (stream, from) = listener.accept()?;
        let done = server.session(stream);
        if let Err(error) = &done {
            (server.tell)(format!("{from}: {error:#}"));
        }
        if config.once {
            return done;
        }
    }
}

struct Server<'a> {
    host: Host<'a>,
    /// The guest that stayed here; it goes when the next one arrives.
    stays: Option<Vm>,
    tell: &'a mut dyn FnMut(String),
}

impl Server<'_> {
    /// One connection: guests come, and go back if they are to.
    fn session(&mut self, stream: TcpStream) -> Result<()> {
        let mut peer = Peer::accept(stream, &self.host.hello)?;
        let _: Hello = peer.receive()?;
        let mut is_first = true;
        loop {
            let (guest, arrival) = match take_over(&mut peer, &self.host) {
                Err(error) if !is_first && Peer::is_closed(&error) => return Ok(()),
                arrived => arrived?,
            };
            is_first = false;
            self.stays = None;
            if arrival.clocks.returns {
                self.send_back(&mut peer, guest, &arrival)?;
            } else {
                self.keep(&mut peer, guest, &arrival)?;
            }
        }
    }

    fn send_back(&mut self, peer: &mut Peer, guest: Guest, arrival: &Arrival) -> Result<()> {
        let terms = Terms {
            method: arrival.clocks.method,
            mode: arrival.clocks.mode,
            exchange: arrival.clocks.shift.is_some(),
            returns: false,
        };
        match hand_over(peer, &self.host.hello, guest, terms) {
            Ok(_) => Ok(()),
            Err(Failed::Kept { guest, error, .. }) => {
                self.stays = Some(guest.vm);
                Err(error.context("the guest could not go back, and runs on here"))
            }
            Err(failed) => Err(failed.into()),
        }
    }

    /// Tells the source what the guest read here, and lets it run on.
    fn keep(&mut self, peer: &mut Peer, guest: Guest, arrival: &Arrival) -> Result<()> {
        let (vm, reading) = guest.stop()?;
        vm.run()?;
        let vcpus = vm.vcpus().len();
        self.stays = Some(vm);
        let procedure = &arrival.restored.procedure;
        (self.tell)(format!(
            "a guest of {vcpus} vCPUs runs here, by {procedure}"
        ));
        peer.send(&reading)
    }
}
