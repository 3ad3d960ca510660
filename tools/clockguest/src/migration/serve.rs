// SPDX-License-Identifier: GPL-2.0-only

//! Serves as the destination of guests.

use super::{
    clock_trace::ClockTrace,
    connection::{both_ways, Peer},
    destination::{receive_guest, Arrival, Host},
    message::Hello,
    source::{send_guest, Guest, MoveFailed, MoveOptions},
};
use crate::{host::open_kvm, vmm::Vm};
use anyhow::{bail, Context, Result};
use std::{
    io::{stdin, stdout, IsTerminal},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    thread::sleep,
    time::Duration,
};

/// How long to wait after a failed accept(): what it lacked may be free again.
const RETRY: Duration = Duration::from_millis(500);

/// How guests arrive.
#[derive(Clone, Debug)]
pub enum Transport {
    /// Through connections to `[ADDRESS:]PORT`, by default a port of this host alone.
    Listen(String),
    /// Through stdin and stdout, as one connection.
    Stdio,
}

/// Parameters of a destination.
#[derive(Clone, Debug)]
pub struct Config {
    /// How guests arrive.
    pub transport: Transport,
    /// Exit after the first connection that was accepted.
    pub once: bool,
    /// How long a connection may take, with all of its guests.
    pub deadline: Duration,
    /// Trace the clock snapshot that the kernel uses to set a guest's clocks.
    pub trace_clock: bool,
    /// Use `/dev/kvm` even if no CPU vendor's module is loaded.
    pub any_kvm: bool,
}

/// Receives guests, one connection after the other; the last guest that stays keeps running until
/// this returns. `log` gets a line per event.
///
/// # Errors
///
/// [`Unavailable`](crate::host::Unavailable); if it cannot listen on the address; if there is only
/// one connection, also that connection's error.
pub fn serve(config: &Config, log: &mut dyn FnMut(String)) -> Result<()> {
    let kvm = open_kvm(config.any_kvm)?;
    let trace = config.trace_clock.then(ClockTrace::new).transpose()?;
    let host = Host {
        kvm: &kvm,
        hello: Hello::of(&kvm)?,
        trace: trace.as_ref(),
    };
    let mut server = Server {
        host,
        deadline: config.deadline,
        resident: None,
        log,
    };
    match &config.transport {
        Transport::Listen(address) => server.listen(address, config.once),
        Transport::Stdio => {
            if stdin().is_terminal() || stdout().is_terminal() {
                bail!("stdin or stdout is a terminal: --stdio is for `clockguest migrate --via`");
            }
            let input = stdin().as_fd().try_clone_to_owned().context("stdin")?;
            let output = stdout().as_fd().try_clone_to_owned().context("stdout")?;
            server.session((input, output))
        }
    }
}

/// Listens on `[ADDRESS:]PORT`.
fn bind(address: &str) -> Result<TcpListener> {
    let listener = match address.strip_prefix(':').unwrap_or(address).parse() {
        Ok(port) => TcpListener::bind((Ipv4Addr::LOCALHOST, port)),
        Err(_) => TcpListener::bind(address),
    };
    listener.with_context(|| format!("cannot listen on '{address}', which is to be [ADDRESS:]PORT"))
}

struct Server<'a> {
    host: Host<'a>,
    deadline: Duration,
    /// The guest that stays here until the next one arrives.
    resident: Option<Vm>,
    log: &'a mut dyn FnMut(String),
}

impl Server<'_> {
    /// Handles connections to `address`, one after the other.
    fn listen(&mut self, address: &str, once: bool) -> Result<()> {
        let listener = bind(address)?;
        let here = listener.local_addr()?;
        (self.log)(format!("listening on {here}"));
        if !here.ip().is_loopback() {
            (self.log)("anybody who can connect to that address can run a guest here".into());
        }
        loop {
            let (stream, from): (_, SocketAddr) = match listener.accept() {
                Ok(accepted) => accepted,
                // Of one connection, or for want of descriptors or memory.
                Err(error) => {
                    (self.log)(format!("accept(): {error}"));
                    sleep(RETRY);
                    continue;
                }
            };
            let done = both_ways(stream).and_then(|ways| self.session(ways));
            if let Err(error) = &done {
                (self.log)(format!("{from}: {error:#}"));
            }
            if once {
                return done;
            }
        }
    }

    /// Handles a connection: receives guests, and sends them back if requested.
    fn session(&mut self, ways: (OwnedFd, OwnedFd)) -> Result<()> {
        let mut peer = Peer::accept(ways, self.deadline, &self.host.hello)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_explicit_address_is_more_than_this_host() {
        for (address, is_loopback) in [
            ("0", true),
            (":0", true),
            ("127.0.0.1:0", true),
            ("0.0.0.0:0", false),
        ] {
            let here = bind(address).unwrap().local_addr().unwrap();
            assert_eq!(here.ip().is_loopback(), is_loopback, "{address}");
        }
        for wrong in ["", ":", "::1", "65536", "nowhere"] {
            let error = bind(wrong).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("cannot listen on '{wrong}', which is to be [ADDRESS:]PORT")
            );
        }
    }
}
