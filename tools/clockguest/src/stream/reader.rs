// SPDX-License-Identifier: GPL-2.0-only

//! Reads frames, and refuses all but the next one of its session.

use super::{
    frame::{Header, Kind, MAGIC, MAX_PAYLOAD, VERSION},
    Error, Result,
};
use serde::de::DeserializeOwned;
use std::io::{self, Read};
use zerocopy::{FromBytes, IntoBytes};

/// Reads one direction of a stream.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    session: Option<u64>,
    number: u32,
}

/// A frame with a valid header and checksum.
#[derive(Clone, Debug)]
pub struct Frame {
    kind: u32,
    number: u32,
    payload: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// A reader of `session`; `None` takes the session of the first frame.
    pub fn new(input: R, session: Option<u64>) -> Self {
        Self {
            input,
            session,
            number: 0,
        }
    }

    /// The session, if known.
    pub fn session(&self) -> Option<u64> {
        self.session
    }

    /// Reads the next frame of any kind.
    ///
    /// # Errors
    ///
    /// [`enum@Error`], except for [`Error::Kind`] and [`Error::Malformed`].
    pub fn next_frame(&mut self) -> Result<Frame> {
        let number = self.number;
        let mut first = [0];
        // A stream that ends between two frames may be complete; the caller knows.
        if self.input.read(&mut first)? == 0 {
            return Err(Error::Closed { number });
        }
        let header: Header = self.read_value(&first)?;
        if header.magic != MAGIC {
            return Err(Error::Magic(header.magic));
        }
        let found = header.version.get();
        if found != VERSION {
            return Err(Error::Version { found });
        }
        let length = header.length.get();
        if length > MAX_PAYLOAD {
            return Err(Error::Length { number, length });
        }
        let checksum = u32::from_le_bytes(self.read_value(&[])?);
        let mut payload = Vec::new();
        // Grows with the received bytes, not with the claimed length.
        let got = (&mut self.input)
            .take(length.into())
            .read_to_end(&mut payload)?;
        if got as u64 != u64::from(length) {
            return Err(Error::Truncated { number });
        }
        if checksum != header.checksum(&payload) {
            return Err(Error::Corrupted { number });
        }
        let session = header.session.get();
        let expected = *self.session.get_or_insert(session);
        if session != expected {
            return Err(Error::Session {
                number,
                found: session,
                expected,
            });
        }
        if header.number.get() != number {
            return Err(Error::Number {
                found: header.number.get(),
                expected: number,
            });
        }
        self.number = number.wrapping_add(1);
        Ok(Frame {
            kind: header.kind.get(),
            number,
            payload,
        })
    }

    /// Reads the payload of a frame of `kind`.
    ///
    /// # Errors
    ///
    /// [`enum@Error`], except for [`Error::Malformed`].
    pub fn read_raw(&mut self, kind: Kind) -> Result<Vec<u8>> {
        self.next_frame()?.into_raw(kind)
    }

    /// Reads a JSON message of `kind`.
    ///
    /// # Errors
    ///
    /// [`enum@Error`].
    pub fn read<M: DeserializeOwned>(&mut self, kind: Kind) -> Result<M> {
        self.next_frame()?.message(kind)
    }

    /// Reads a value whose first bytes are `begin`.
    fn read_value<T: FromBytes + IntoBytes>(&mut self, begin: &[u8]) -> Result<T> {
        let mut value = T::new_zeroed();
        let (known, rest) = value.as_mut_bytes().split_at_mut(begin.len());
        known.copy_from_slice(begin);
        match self.input.read_exact(rest) {
            Ok(()) => Ok(value),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(Error::Truncated {
                number: self.number,
            }),
            Err(e) => Err(e.into()),
        }
    }
}

impl Frame {
    /// Whether the frame is of `kind`.
    pub fn is(&self, kind: Kind) -> bool {
        self.kind == kind as u32
    }

    /// The payload of a frame of `kind`.
    ///
    /// # Errors
    ///
    /// [`Error::Kind`].
    pub fn into_raw(self, kind: Kind) -> Result<Vec<u8>> {
        if !self.is(kind) {
            return Err(Error::Kind {
                number: self.number,
                found: self.kind,
                expected: format!("{} ({kind:?})", kind as u32),
            });
        }
        Ok(self.payload)
    }

    /// The JSON message in a frame of `kind`.
    ///
    /// # Errors
    ///
    /// [`Error::Kind`], [`Error::Malformed`].
    pub fn message<M: DeserializeOwned>(self, kind: Kind) -> Result<M> {
        let number = self.number;
        let payload = self.into_raw(kind)?;
        serde_json::from_slice(&payload).map_err(|e| Error::Malformed {
            number,
            why: e.to_string(),
        })
    }
}
