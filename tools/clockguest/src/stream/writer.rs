// SPDX-License-Identifier: GPL-2.0-only

//! Writes frames.

use super::{
    frame::{Header, Kind, MAGIC, MAX_PAYLOAD, VERSION},
    Error, Result,
};
use serde::Serialize;
use std::io::Write;
use zerocopy::IntoBytes;

/// Writes one direction of a stream.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    session: u64,
    number: u32,
}

impl<W: Write> Writer<W> {
    /// A writer of `session`, which starts with the first frame.
    pub fn new(out: W, session: u64) -> Self {
        Self {
            out,
            session,
            number: 0,
        }
    }

    /// Where the frames go.
    pub fn output_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Writes a frame with `payload`, and flushes.
    ///
    /// # Errors
    ///
    /// [`Error::Length`]; those of the destination.
    pub fn write_raw(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        let number = self.number;
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if length > MAX_PAYLOAD {
            return Err(Error::Length { number, length });
        }
        let header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            kind: (kind as u32).into(),
            session: self.session.into(),
            number: number.into(),
            length: length.into(),
        };
        let checksum = header.checksum(payload).to_le_bytes();
        // One write, so that a ping is one segment.
        self.out
            .write_all(&[header.as_bytes(), &checksum, payload].concat())?;
        self.out.flush()?;
        self.number = number.wrapping_add(1);
        Ok(())
    }

    /// Writes a frame with `message` as JSON, and flushes.
    ///
    /// # Errors
    ///
    /// As [`write_raw`](Self::write_raw).
    pub fn write(&mut self, kind: Kind, message: &impl Serialize) -> Result<()> {
        let payload = serde_json::to_vec(message).map_err(|e| Error::Malformed {
            number: self.number,
            why: e.to_string(),
        })?;
        self.write_raw(kind, &payload)
    }
}
