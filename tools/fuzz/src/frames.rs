// SPDX-License-Identifier: GPL-2.0-only

//! Valid streams from a fuzzer's bytes: a fuzzer guesses neither checksums nor lengths.

use clockguest::stream::{Kind, Writer};

/// The session of every stream made here.
pub(crate) const SESSION: u64 = 0;
/// The longest payload made here, bytes.
const LONGEST: u32 = 1 << 17;

/// Bytes of a frame before its checksum, and with it.
const HEADER: usize = 32;
const PREFIX: usize = 36;

/// The frames in `bytes` with the right checksums; the last is filled up with zeros.
pub(crate) fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let mut at = 0;
    while let Some(prefix) = out.get(at..at + PREFIX) {
        let length = [28, 29, 30, 31].map(|index| prefix[index]);
        let length = u32::from_le_bytes(length).min(LONGEST) as usize;
        let end = at + PREFIX + length;
        out.resize(out.len().max(end), 0);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&out[at..at + HEADER]);
        hasher.update(&out[at + PREFIX..end]);
        let checksum = hasher.finalize().to_le_bytes();
        out[at + HEADER..at + PREFIX].copy_from_slice(&checksum);
        at = end;
    }
    out
}

/// The stream of the frames in `text`: a line has the number of a frame's kind, and then its
/// payload, or the length of the memory in bytes.
pub(crate) fn stream_of(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out, SESSION);
    for line in text.split(|&byte| byte == b'\n') {
        let digits = line.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, payload) = line.split_at(digits.min(2));
        let Some(kind) = parse(number).and_then(kind) else {
            continue;
        };
        let zeros;
        let payload = if kind == Kind::Memory {
            zeros = vec![0; parse(payload.trim_ascii()).unwrap_or(0).min(LONGEST) as usize];
            &zeros
        } else {
            payload
        };
        writer
            .write_raw(kind, payload)
            .expect("a Vec takes a frame of this length");
    }
    out
}

fn parse(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// All kinds of frames.
pub(crate) const KINDS: [Kind; 12] = [
    Kind::Hello,
    Kind::Offer,
    Kind::Prepared,
    Kind::Ping,
    Kind::Pong,
    Kind::State,
    Kind::Memory,
    Kind::Restored,
    Kind::Refused,
    Kind::Go,
    Kind::Running,
    Kind::Reading,
];

fn kind(number: u32) -> Option<Kind> {
    KINDS.into_iter().find(|&kind| kind as u32 == number)
}
