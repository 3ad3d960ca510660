// SPDX-License-Identifier: GPL-2.0-only

//! A connection between two hosts, with messages in both directions.

use super::message::{Hello, Message, Refused as RefusedMessage};
use crate::{
    stream::{self, Frame, Kind, Reader, Writer},
    vmm::state::VmState,
};
use anyhow::{Context, Result};
use serde::{de::DeserializeOwned, Serialize};
use std::{
    io::BufReader,
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};
use thiserror::Error;

/// The time limit for a message; longer than the time limits of the peer's own steps.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The time limit for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The peer refused.
#[derive(Clone, Debug, Error)]
#[error("the other host refused: {0}")]
pub(super) struct Refused(String);

/// The other host.
#[derive(Debug)]
pub(super) struct Peer {
    reader: Reader<BufReader<TcpStream>>,
    writer: Writer<TcpStream>,
}

impl Peer {
    /// Accepts a connection from a source; this host chooses the session.
    pub(super) fn accept(stream: TcpStream, hello: &Hello) -> Result<Self> {
        let session = stream::new_session().context("getrandom")?;
        let (input, output) = prepare(stream)?;
        let mut peer = Self {
            reader: Reader::new(input, Some(session)),
            writer: Writer::new(output, session),
        };
        peer.send(hello)?;
        Ok(peer)
    }

    /// Connects to the destination at `address`; also returns its Hello.
    pub(super) fn connect(address: &str) -> Result<(Self, Hello)> {
        let addresses = address
            .to_socket_addrs()
            .with_context(|| format!("{address} is not HOST:PORT"))?;
        let mut result = Err(anyhow::anyhow!("{address} has no address"));
        for each in addresses {
            result = TcpStream::connect_timeout(&each, CONNECT_TIMEOUT).with_context(|| {
                format!("cannot connect to {each}: does clockguest serve run there?")
            });
            if result.is_ok() {
                break;
            }
        }
        let (input, output) = prepare(result?)?;
        let mut reader = Reader::new(input, None);
        let hello: Hello = reader.read(Kind::Hello)?;
        // The first frame has the session.
        let session = reader.session().context("no session")?;
        let writer = Writer::new(output, session);
        Ok((Self { reader, writer }, hello))
    }

    pub(super) fn send<M: Message>(&mut self, message: &M) -> Result<()> {
        Ok(self.writer.write(M::KIND, message)?)
    }

    pub(super) fn send_state(&mut self, state: &VmState, clocks: &impl Serialize) -> Result<()> {
        Ok(state.send(clocks, &mut self.writer)?)
    }

    /// Receives the state that begins with `frame`.
    pub(super) fn receive_state<C: DeserializeOwned>(
        &mut self,
        frame: Frame,
    ) -> Result<(VmState, C)> {
        Ok(VmState::receive(frame, &mut self.reader)?)
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
        let frame = self.reader.next_frame()?;
        if frame.is(Kind::Refused) {
            let RefusedMessage { why } = frame.message(Kind::Refused)?;
            return Err(Refused(why).into());
        }
        Ok(frame)
    }

    /// Sends the reason why this host refuses. The peer may be gone.
    pub(super) fn refuse(&mut self, error: &anyhow::Error) {
        let why = format!("{error:#}");
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

/// Both directions of `stream`, with time limits.
fn prepare(stream: TcpStream) -> Result<(BufReader<TcpStream>, TcpStream)> {
    // A ping must not wait for more data.
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let output = stream.try_clone().context("dup")?;
    Ok((BufReader::new(stream), output))
}
