// SPDX-License-Identifier: GPL-2.0-only

//! A frame's header.

use zerocopy::{
    byteorder::little_endian::{U32, U64},
    FromBytes, Immutable, IntoBytes, KnownLayout,
};

/// First bytes of every frame.
pub(super) const MAGIC: [u8; 8] = *b"CLKGUEST";

/// The only version of the format that this program writes and reads.
pub const VERSION: u32 = 2;

/// The maximum length of a payload, bytes.
pub const MAX_PAYLOAD: u32 = 16 << 20;

/// The kinds of payload, with their numbers in the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// JSON: the capabilities of a host.
    Hello = 1,
    /// JSON: the offered guest.
    Offer = 2,
    /// JSON: the guest's VM exists.
    Prepared = 3,
    /// JSON: asks for a Pong.
    Ping = 4,
    /// JSON: the times of receipt and answer.
    Pong = 5,
    /// JSON: vCPUs and clocks.
    State = 6,
    /// Guest memory from address 0.
    Memory = 7,
    /// JSON: the guest is complete, and its clocks are set.
    Restored = 8,
    /// JSON: the reason to refuse the guest.
    Refused = 9,
    /// JSON: the guest belongs to the receiver from now on.
    Go = 10,
    /// JSON: the guest runs.
    Running = 11,
    /// JSON: the guest's readings there.
    Reading = 12,
}

/// The header without the checksum, which follows it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: [u8; 8],
    pub(super) version: U32,
    pub(super) kind: U32,
    pub(super) session: U64,
    pub(super) number: U32,
    pub(super) length: U32,
}

impl Header {
    /// CRC-32 of the header and `payload`.
    pub(super) fn checksum(&self, payload: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(self.as_bytes());
        hasher.update(payload);
        hasher.finalize()
    }
}

const _: () = assert!(size_of::<Header>() == 32);
