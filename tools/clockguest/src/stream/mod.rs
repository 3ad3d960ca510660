// SPDX-License-Identifier: GPL-2.0-only

//! The format of a saved or moving guest: numbered frames with checksums.
//!
//! A file, or a direction of a connection, is a sequence of frames:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic, `CLKGUEST` |
//! | 8 | 4 | version of the format, [`VERSION`] |
//! | 12 | 4 | kind of the payload, [`Kind`] |
//! | 16 | 8 | session: a random number of the file, or chosen by the receiver of a guest |
//! | 24 | 4 | number of the frame, from 0 |
//! | 28 | 4 | length of the payload, bytes |
//! | 32 | 4 | CRC-32 (IEEE 802.3) of the 32 bytes above and the payload |
//! | 36 | | payload: JSON, or guest memory as it is |
//!
//! Integers are little-endian. A reader refuses frames of another session. It checks the magic
//! first, then the version, to distinguish a later format from a damaged one; it never reads more
//! than
//! [`MAX_PAYLOAD`] bytes for a frame.
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
//! // Frames of another session are refused, and damaged ones.
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

/// The reason why a stream is refused.
#[derive(Debug, Error)]
pub enum Error {
    /// It ends before a frame.
    #[error("the stream is truncated: it ends before frame {number}")]
    Closed {
        /// The missing frame.
        number: u32,
    },
    /// It ends inside a frame.
    #[error("the stream is truncated: it ends inside frame {number}")]
    Truncated {
        /// The incomplete frame.
        number: u32,
    },
    /// Another protocol.
    #[error("not a clockguest stream: it begins with {0:02x?}")]
    Magic([u8; 8]),
    /// An unsupported version of the format.
    #[error("the stream has version {found}, but this program supports only version {VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// The checksum does not match.
    #[error("the stream is corrupted: the checksum of frame {number} does not match")]
    Corrupted {
        /// The frame.
        number: u32,
    },
    /// A frame of another session.
    #[error(
        "the stream was replayed: frame {number} is of session {found:#018x}, this is session \
         {expected:#018x}"
    )]
    Session {
        /// The frame.
        number: u32,
        /// Its session.
        found: u64,
        /// The current session.
        expected: u64,
    },
    /// A frame is missing, or came twice.
    #[error(
        "the stream was replayed or has a gap: frame {found} came instead of frame {expected}"
    )]
    Number {
        /// Its number.
        found: u32,
        /// The expected number.
        expected: u32,
    },
    /// A frame claims to be longer than the maximum.
    #[error("frame {number} claims {length} bytes, more than {MAX_PAYLOAD}")]
    Length {
        /// The frame.
        number: u32,
        /// The claimed length, bytes.
        length: u32,
    },
    /// An unexpected kind of frame.
    #[error("frame {number} has kind {found} instead of {expected}")]
    Kind {
        /// The frame.
        number: u32,
        /// Its kind.
        found: u32,
        /// The expected kind.
        expected: String,
    },
    /// The payload is not valid for its kind.
    #[error("frame {number} is malformed: {why}")]
    Malformed {
        /// The frame.
        number: u32,
        /// The defect.
        why: String,
    },
    /// The file or the connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Result of reading and writing streams.
pub type Result<T> = std::result::Result<T, Error>;

/// A random number for a new session.
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

    /// Reads `frames` frames, up to the first error.
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
        fn any_changed_bit_is_detected(
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
        fn any_truncation_is_detected(payload: Vec<u8>, at: prop::sample::Index) {
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
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
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
    fn first_frame_sets_an_unknown_session() {
        let good = stream(&[vec![], vec![]]);
        let mut reader = Reader::new(good.as_slice(), None);
        reader.read_raw(Kind::Memory).unwrap();
        assert_eq!(reader.session(), Some(SESSION));
        reader.read_raw(Kind::Memory).unwrap();
    }
}
