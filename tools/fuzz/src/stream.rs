// SPDX-License-Identifier: GPL-2.0-only

//! Frames: any bytes are read as what they say, with no more memory than they take.

use crate::frames::{with_checksums, KINDS};
use clockguest::stream::{Error, Frame, Kind, Reader, Result, Writer};

/// The memory limit: bytes for each byte of input, and a constant.
const PER_BYTE: u64 = 3;
const CONSTANT: u64 = 1 << 12;

/// The target: reads the input as a stream, and the input with the right checksums.
///
/// # Panics
///
/// If what is read differs from the input.
pub fn stream(bytes: &[u8]) {
    check(bytes);
    check(&with_checksums(bytes));
}

fn check(bytes: &[u8]) {
    let mut frames = Vec::with_capacity(bytes.len() / 36 + 1);
    let (mut rest, mut session) = (bytes, None);
    let used = allocation_counter::measure(|| {
        let mut reader = Reader::new(&mut rest, None);
        while let Ok(frame) = reader.next_frame() {
            frames.push(frame);
        }
        session = reader.session();
    });
    let allowed = bytes.len() as u64 * PER_BYTE + CONSTANT;
    assert!(
        used.bytes_max <= allowed,
        "{} bytes of memory for {} bytes of input",
        used.bytes_max,
        bytes.len()
    );
    let Some(session) = session else {
        return;
    };
    if !frames.is_empty() {
        let of_another = Reader::new(bytes, Some(!session)).next_frame();
        assert!(matches!(of_another, Err(Error::Session { .. })));
    }

    let mut again = Vec::new();
    let mut writer = Writer::new(&mut again, session);
    for frame in frames {
        // A frame of an unknown kind is refused later.
        let Some(kind) = KINDS.into_iter().find(|&kind| frame.is(kind)) else {
            break;
        };
        let payload = payload_of(frame, kind).expect("it is of this kind");
        writer
            .write_raw(kind, &payload)
            .expect("a Vec takes what was read");
    }
    assert!(bytes.starts_with(&again), "read {again:02x?}");
}

fn payload_of(frame: Frame, kind: Kind) -> Result<Vec<u8>> {
    let other = if kind == Kind::Hello {
        Kind::Reading
    } else {
        Kind::Hello
    };
    let as_other = frame.clone().into_raw(other);
    assert!(matches!(as_other, Err(Error::Kind { .. })));
    frame.into_raw(kind)
}
