// SPDX-License-Identifier: GPL-2.0-only

//! A connection between two hosts, with messages in both directions.

use super::{
    channel::{Input, Limits, Output},
    command::Via,
    message::{Hello, Message, Refused as RefusedMessage},
};
use crate::{
    stream::{self, Frame, Kind, Reader, Writer},
    vmm::{self, state::VmState},
};
use anyhow::{Context, Result};
use serde::{de::DeserializeOwned, Serialize};
use std::{
    io::{self, BufReader},
    net::{TcpStream, ToSocketAddrs},
    os::fd::OwnedFd,
    time::Duration,
};
use thiserror::Error;

/// The time limit for a message; longer than the time limits of the peer's own steps.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The time limit for a connection to begin.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The time limit for a refusal, which is sent after the connection's own.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Where `clockguest serve` is.
#[derive(Clone, Debug)]
pub enum Destination {
    /// It listens on `HOST:PORT`.
    Address(String),
    /// This command, run by `sh -c`, connects its stdin and stdout to those of `clockguest serve
    /// --stdio`.
    Command(String),
}

/// The peer refused.
#[derive(Clone, Debug, Error)]
#[error("the other host refused: {0}")]
pub(super) struct Refused(String);

/// The other host.
#[derive(Debug)]
pub(super) struct Peer {
    reader: Reader<BufReader<Input>>,
    writer: Writer<Output>,
    /// Declared last: it ends when the pipes above are closed.
    via: Option<Via>,
}

impl Peer {
    /// Accepts a connection from a source, which has to end within `deadline`; this host chooses
    /// the session.
    pub(super) fn accept(
        (input, output): (OwnedFd, OwnedFd),
        deadline: Duration,
        hello: &Hello,
    ) -> Result<Self> {
        let session = stream::new_session().context("getrandom")?;
        let limits = Limits::new(TIMEOUT, Some(deadline));
        let mut peer = Self {
            reader: Reader::new(BufReader::new(Input::new(input, limits)), Some(session)),
            writer: Writer::new(Output::new(output, limits), session),
            via: None,
        };
        peer.send(hello)?;
        Ok(peer)
    }

    /// Connects to a destination; also returns its Hello.
    pub(super) fn connect(to: &Destination) -> Result<(Self, Hello)> {
        let (mut via, (input, output)) = match to {
            Destination::Address(address) => (None, both_ways(connect_to(address)?)?),
            Destination::Command(command) => {
                let (via, input, output) = Via::run(command)?;
                (Some(via), (input, output))
            }
        };
        let limits = Limits::new(TIMEOUT, None);
        let output = Output::new(output, limits);
        let mut reader = Reader::new(BufReader::new(Input::new(input, limits)), None);
        let hello: Hello = reader
            .read(Kind::Hello)
            .map_err(|error| explain(&mut via, error.into()))?;
        // The first frame has the session.
        let session = reader.session().context("no session")?;
        let writer = Writer::new(output, session);
        let peer = Self {
            reader,
            writer,
            via,
        };
        Ok((peer, hello))
    }

    pub(super) fn send<M: Message>(&mut self, message: &M) -> Result<()> {
        let sent = self.writer.write(M::KIND, message);
        sent.map_err(|error| self.not_sent(error.into()))
    }

    pub(super) fn send_state(&mut self, state: &VmState, clocks: &impl Serialize) -> Result<()> {
        let sent = state.send(clocks, &mut self.writer);
        sent.map_err(|error| match error {
            vmm::Error::Stream(error) => self.not_sent(error.into()),
            error => error.into(),
        })
    }

    /// Why something could not be sent: the peer may have said so before it ended the connection.
    fn not_sent(&mut self, error: anyhow::Error) -> anyhow::Error {
        let is_ended = matches!(
            error.downcast_ref(),
            Some(stream::Error::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe
        );
        match is_ended.then(|| self.next_frame()) {
            Some(Err(reason)) => reason,
            _ => explain(&mut self.via, error),
        }
    }

    /// Receives the state that begins with `frame`.
    pub(super) fn receive_state<C: DeserializeOwned>(
        &mut self,
        frame: Frame,
    ) -> Result<(VmState, C)> {
        let received = VmState::receive(frame, &mut self.reader);
        received.map_err(|error| match error {
            vmm::Error::Stream(error) => explain(&mut self.via, error.into()),
            error => error.into(),
        })
    }

    /// Receives the next message, which must be an `M`.
    ///
    /// # Errors
    ///
    /// [`Refused`] if the peer refuses instead; those of the stream.
    pub(super) fn receive<M: Message>(&mut self) -> Result<M> {
        Ok(self.next_frame()?.message(M::KIND)?)
    }

    /// Receives the next message of any kind, except for [`Kind::Refused`], which is an error.
    pub(super) fn next_frame(&mut self) -> Result<Frame> {
        let next = self.reader.next_frame();
        let frame = next.map_err(|error| explain(&mut self.via, error.into()))?;
        if frame.is(Kind::Refused) {
            let RefusedMessage { why } = frame.message(Kind::Refused)?;
            return Err(Refused(why).into());
        }
        Ok(frame)
    }

    /// Sends the reason why this host refuses. The peer may be gone.
    pub(super) fn refuse(&mut self, error: &anyhow::Error) {
        let why = format!("{error:#}");
        let limits = Limits::new(REFUSAL_TIMEOUT, None);
        self.writer.output_mut().limit(limits);
        let _ = self.send(&RefusedMessage { why });
    }

    /// Whether the peer ended the connection between two messages.
    pub(super) fn is_closed(error: &anyhow::Error) -> bool {
        matches!(
            error.downcast_ref::<stream::Error>(),
            Some(stream::Error::Closed { .. })
        )
    }
}

/// Adds what the command reports, if there is one, to an error of its connection.
fn explain(via: &mut Option<Via>, error: anyhow::Error) -> anyhow::Error {
    match via {
        Some(via) => via.explain(error),
        None => error,
    }
}

fn connect_to(address: &str) -> Result<TcpStream> {
    let addresses = address
        .to_socket_addrs()
        .with_context(|| format!("{address} is not HOST:PORT"))?;
    let mut result = Err(anyhow::anyhow!("{address} has no address"));
    for each in addresses {
        result = TcpStream::connect_timeout(&each, CONNECT_TIMEOUT)
            .with_context(|| format!("cannot connect to {each}: does clockguest serve run there?"));
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Both directions of `stream`.
pub(super) fn both_ways(stream: TcpStream) -> Result<(OwnedFd, OwnedFd)> {
    // A ping must not wait for more data.
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    let output = stream.try_clone().context("dup")?;
    Ok((stream.into(), output.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_no_destination_is_reported() {
        for (command, expected) in [
            // As ssh fails, and a clockguest of a host without KVM.
            (
                "echo no route >&2; exit 255",
                "the command 'echo no route >&2; exit 255' ended with exit status: 255, and printed: no \
                 route: the stream is truncated: it ends before frame 0",
            ),
            (
                "true",
                "the command 'true' ended with exit status: 0: the stream is truncated: it ends before \
                 frame 0",
            ),
            (
                "echo hi",
                "the command 'echo hi' ended with exit status: 0: the stream is truncated: it ends \
                 inside frame 0",
            ),
            (
                "echo 'Welcome to this machine, which is yours'; exec cat",
                "the command 'echo 'Welcome to this machine, which is yours'; exec cat' is not \
                 `clockguest serve --stdio`: its output begins with 'Welcome ': not a clockguest stream: \
                 it begins with [57, 65, 6c, 63, 6f, 6d, 65, 20]",
            ),
        ] {
            let error = Peer::connect(&Destination::Command(command.into())).unwrap_err();
            assert_eq!(format!("{error:#}"), expected);
        }
    }
}
