// SPDX-License-Identifier: GPL-2.0-only

//! The stream that a saved or moving guest travels in: frames, numbered and checksummed.
//!
//! A file or a connection is a sequence of frames, each direction counting its own:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic, `CLKGUEST` |
//! | 8 | 4 | version of the format, [`VERSION`] |
//! | 12 | 4 | kind: what the payload is |
//! | 16 | 8 | session: a random number that the receiver of a guest chooses, or the file's |
//! | 24 | 4 | number of the frame, from 0 |
//! | 28 | 4 | length of the payload, bytes |
//! | 32 | 4 | CRC-32 (IEEE 802.3) of the 32 bytes above and the payload |
//! | 36 | | payload: JSON, or guest memory as it is |
//!
//! What was recorded of another session is refused. Integers are little-endian. A reader looks at
//! the magic first, then at the version, so that a later format is told from a damaged one;
//! whatever a frame says, no more than [`MAX_PAYLOAD`] bytes are read for it.
//!
//! # Example
//!
//! ```
//! use clockguest::stream::{new_session, Error, Kind, Reader, Writer};
//!
//! let session = new_session()?;
//! let mut bytes = Vec::new();
//! Writer::new(&mut bytes, session).write_raw(Kind::Memory, b"a page")?;
//! let mut reader = Reader::new(bytes.as_slice(), Some(session));
//! assert_eq!(reader.read_raw(Kind::Memory)?, b"a page");
//!
//! // What was recorded of another session is refused, as is what is damaged.
//! let replayed = Reader::new(bytes.as_slice(), Some(!session)).read_raw(Kind::Memory);
//! assert!(matches!(replayed, Err(Error::Session { number: 0, .. })));
//! bytes[40] ^= 1;
//! let damaged = Reader::new(bytes.as_slice(), Some(session)).read_raw(Kind::Memory);
//! assert!(matches!(damaged, Err(Error::Corrupted { number: 0 })));
//! # Ok::<(), Error>(())
//! ```

mod frame;
mod reader;
mod writer;

pub use frame::{Kind, MAX_PAYLOAD, VERSION};
pub use reader::{Frame, Reader};
pub use writer::Writer;

use std::io;
use thiserror::Error;

/// Why a stream is refused.
#[derive(Debug, Error)]
pub enum Error {
    /// It ends where a frame has to be.
    #[error("the stream is truncated: it ends before frame {number}")]
    Closed {
        /// The frame that is missing.
        number: u32,
    },
    /// It ends inside a frame.
    #[error("the stream is truncated: it ends inside frame {number}")]
    Truncated {
        /// The frame that is not complete.
        number: u32,
    },
    /// Some other protocol.
    #[error("not a stream of clockguest's: it begins with {0:02x?}")]
    Magic([u8; 8]),
    /// A format that this program does not know.
    #[error("the stream has version {found}, this program knows version {VERSION} alone")]
    Version {
        /// The version it has.
        found: u32,
    },
    /// The checksum is not that of the content.
    #[error("the stream is corrupted: frame {number} has another checksum than its content")]
    Corrupted {
        /// The frame.
        number: u32,
    },
    /// Recorded of another session.
    #[error(
        "the stream was replayed: frame {number} is of session {found:#018x}, this is session \
         {expected:#018x}"
    )]
    Session {
        /// The frame.
        number: u32,
        /// Its session.
        found: u64,
        /// The session that is going on.
        expected: u64,
    },
    /// Frames that are missing, or came twice.
    #[error(
        "the stream was replayed or has a gap: frame {found} came where frame {expected} was due"
    )]
    Number {
        /// The number it has.
        found: u32,
        /// The number that was due.
        expected: u32,
    },
    /// Longer than any frame is.
    #[error("frame {number} claims {length} bytes, more than {MAX_PAYLOAD}")]
    Length {
        /// The frame.
        number: u32,
        /// What it claims, bytes.
        length: u32,
    },
    /// Another content than the protocol has here.
    #[error("frame {number} has kind {found}, where {expected} was due")]
    Kind {
        /// The frame.
        number: u32,
        /// Its kind.
        found: u32,
        /// What was due.
        expected: String,
    },
    /// The payload does not say what its kind has to.
    #[error("frame {number} makes no sense: {why}")]
    Malformed {
        /// The frame.
        number: u32,
        /// What is wrong with it.
        why: String,
    },
    /// The file or the connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Result of reading and writing streams.
pub type Result<T> = std::result::Result<T, Error>;

/// A number for a new session, which no recorded stream has.
///
/// # Errors
///
/// That of `getrandom()`.
pub fn new_session() -> io::Result<u64> {
    let mut session = [0; 8];
    // SAFETY: The buffer is valid for writes of its length.
    let got = unsafe { libc::getrandom(session.as_mut_ptr().cast(), session.len(), 0) };
    match usize::try_from(got) {
        Ok(got) if got == session.len() => Ok(u64::from_ne_bytes(session)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SESSION: u64 = 0x0123_4567_89ab_cdef;

    fn stream(payloads: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, SESSION);
        for payload in payloads {
            writer.write_raw(Kind::Memory, payload).unwrap();
        }
        bytes
    }

    /// Reads all frames, until the first refusal or the end that is due after `frames`.
    fn read(bytes: &[u8], frames: usize) -> Result<Vec<Vec<u8>>> {
        let mut reader = Reader::new(bytes, Some(SESSION));
        (0..frames).map(|_| reader.read_raw(Kind::Memory)).collect()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(payloads: Vec<Vec<u8>>) {
            prop_assert_eq!(read(&stream(&payloads), payloads.len()).unwrap(), payloads);
        }

        #[test]
        fn any_changed_bit_is_found(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            at: prop::sample::Index,
            bit in 0..8,
        ) {
            let mut bytes = stream(&[payload.clone(), payload]);
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            prop_assert!(read(&bytes, 2).is_err());
        }

        #[test]
        fn any_cut_is_found(payload: Vec<u8>, at: prop::sample::Index) {
            let bytes = stream(&[payload.clone(), payload]);
            let at = at.index(bytes.len());
            let cut = read(&bytes[..at], 2);
            prop_assert!(
                matches!(cut, Err(Error::Truncated { .. } | Error::Closed { .. })),
                "{:?}",
                cut
            );
        }

        #[test]
        fn no_bytes_hurt(bytes: Vec<u8>) {
            let _ = read(&bytes, 3);
            let _ = read(&[b"CLKGUEST\x02\0\0\0".as_slice(), &bytes].concat(), 3);
        }
    }

    #[test]
    fn each_defect_has_its_error() {
        let payloads = vec![vec![1; 5], vec![2; 7]];
        let good = stream(&payloads);
        let mut other = good.clone();
        other[0] = b'X';
        assert!(matches!(read(&other, 2), Err(Error::Magic(_))));
        let mut later = good.clone();
        later[8] = 3;
        assert!(matches!(read(&later, 2), Err(Error::Version { found: 3 })));
        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(matches!(
            read(&damaged, 2),
            Err(Error::Corrupted { number: 1 })
        ));

        let first = &good[..36 + 5];
        let twice = [first, first].concat();
        assert!(matches!(
            read(&twice, 2),
            Err(Error::Number {
                found: 0,
                expected: 1
            })
        ));
        let other_session = Reader::new(good.as_slice(), Some(7)).read_raw(Kind::Memory);
        assert!(matches!(
            other_session,
            Err(Error::Session {
                found: SESSION,
                expected: 7,
                ..
            })
        ));
        let other_kind = Reader::new(good.as_slice(), None).read_raw(Kind::State);
        assert!(matches!(other_kind, Err(Error::Kind { .. })));
    }

    #[test]
    fn a_first_frame_makes_the_session_where_none_is_known() {
        let good = stream(&[vec![], vec![]]);
        let mut reader = Reader::new(good.as_slice(), None);
        reader.read_raw(Kind::Memory).unwrap();
        assert_eq!(reader.session(), Some(SESSION));
        reader.read_raw(Kind::Memory).unwrap();
    }
}
