// SPDX-License-Identifier: GPL-2.0-only

//! A frame's header.

use zerocopy::{
    byteorder::little_endian::{U32, U64},
    FromBytes, Immutable, IntoBytes, KnownLayout,
};

/// First bytes of every frame.
pub(super) const MAGIC: [u8; 8] = *b"CLKGUEST";

/// The version of the format that this program writes, and the only one that it reads.
pub const VERSION: u32 = 2;

/// No payload is longer, bytes.
pub const MAX_PAYLOAD: u32 = 16 << 20;

/// What a payload is. The numbers are the format's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// JSON: who accepts guests, and what its host can do.
    Hello = 1,
    /// JSON: which guest is to come.
    Offer = 2,
    /// JSON: a VM for it is there.
    Prepared = 3,
    /// JSON: the time when it was sent.
    Ping = 4,
    /// JSON: the time when a ping came and when this was sent.
    Pong = 5,
    /// JSON: vCPUs and clocks.
    State = 6,
    /// Guest memory from address 0.
    Memory = 7,
    /// JSON: the guest is complete, its clocks are set.
    Restored = 8,
    /// JSON: the guest cannot be taken, and why.
    Refused = 9,
    /// JSON: the guest is the receiver's from now on.
    Go = 10,
    /// JSON: the guest runs.
    Running = 11,
    /// JSON: what the guest read there.
    Reading = 12,
}

/// The header, but for the checksum, which follows it.
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
