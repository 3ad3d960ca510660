// SPDX-License-Identifier: GPL-2.0-only

//! The clocks of a whole VM as bytes that outlive the kernel: in a memfd of a LUO session, or in
//! memory that KHO preserves.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic, `KVMCLOCK` |
//! | 8 | 4 | version of the format, [`VERSION`] |
//! | 12 | 4 | size of the whole, bytes |
//! | 16 | 4 | CRC-32 (IEEE 802.3) of the whole, with these 4 bytes 0 |
//! | 20 | 4 | 0 |
//! | 24 | 144 | [`VmClockGuest`] as GET returned it; `vcpus`, an address, is 0 |
//! | 168 | 24 each | [`ClockGuestVcpu`] of every vCPU |
//!
//! Integers are little-endian. The size follows from the number of vCPUs. Bytes behind the whole
//! are ignored, as preserved memory consists of pages.
//!
//! # Example
//!
//! ```
//! use pvclock::{abi, handover::{self, Handover, HandoverError}};
//!
//! let clock = abi::VmClockGuest {
//!     size: 144,
//!     nr_vcpus: 1,
//!     ..Default::default()
//! };
//! let vcpus = [abi::ClockGuestVcpu::default()];
//! let mut page = [0; 4096];
//! assert_eq!(handover::write(&clock, &vcpus, &mut page), Ok(192));
//! let read = Handover::new(&page).unwrap();
//! assert_eq!(read.clock(), &clock);
//! assert!(read.vcpus().eq(vcpus));
//!
//! page[40] ^= 1;
//! assert_eq!(Handover::new(&page).err(), Some(HandoverError::Corrupted));
//! ```

use super::abi::{
    ClockGuestVcpu,
    VmClockGuest, //
};
use zerocopy::{
    FromBytes as _,
    IntoBytes as _, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

/// The first 8 bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"KVMCLOCK");
/// The version that [`write()`] writes, and the only one that [`Handover::new`] takes.
pub const VERSION: u32 = 1;

/// What comes before the vCPUs: `struct kvm_clock_guest_ser`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// Bytes of the whole.
    pub size: u32,
    /// CRC-32 of the whole, with this field 0.
    pub crc32: u32,
    /// 0.
    pub pad: u32,
    /// What GET returned; `vcpus` is 0.
    pub clock: VmClockGuest,
}

const _: () = assert!(size_of::<Header>() == 168);

/// Why bytes are not the clocks of a VM, or why they cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandoverError {
    /// They begin with something else.
    Magic,
    /// They have another version of the format: this one.
    Version(u32),
    /// There are fewer bytes than needed.
    Truncated,
    /// The checksum is not that of the bytes.
    Corrupted,
    /// The parts contradict each other.
    Inconsistent,
}

/// Bytes that the clocks of `nr_vcpus` vCPUs take.
///
/// # Errors
///
/// [`HandoverError::Inconsistent`] if they do not fit 32 bits.
pub fn size(nr_vcpus: u32) -> Result<u32, HandoverError> {
    // CAST: Small structures.
    (size_of::<ClockGuestVcpu>() as u32)
        .checked_mul(nr_vcpus)
        .and_then(|vcpus| vcpus.checked_add(size_of::<Header>() as u32))
        .ok_or(HandoverError::Inconsistent)
}

/// Writes what GET returned to the start of `out`. Returns how many bytes that takes.
///
/// # Errors
///
/// [`HandoverError::Inconsistent`] unless `clock.nr_vcpus` is the number of `vcpus`,
/// [`HandoverError::Truncated`] if `out` is shorter than [`size()`].
pub fn write(
    clock: &VmClockGuest,
    vcpus: &[ClockGuestVcpu],
    out: &mut [u8],
) -> Result<u32, HandoverError> {
    // CAST: `usize` has 64 bits.
    if vcpus.len() != clock.nr_vcpus as usize {
        return Err(HandoverError::Inconsistent);
    }
    let size = size(clock.nr_vcpus)?;
    let mut header = Header {
        magic: MAGIC,
        version: VERSION,
        size,
        crc32: 0,
        pad: 0,
        clock: VmClockGuest { vcpus: 0, ..*clock },
    };
    header.crc32 = checksum(&header, vcpus.as_bytes());
    // CAST: As above.
    let out = out
        .get_mut(..size as usize)
        .ok_or(HandoverError::Truncated)?;
    // Both fit: `out` is as long as they are.
    let fits = header.write_to_prefix(out).is_ok() && vcpus.write_to_suffix(out).is_ok();
    fits.then_some(size).ok_or(HandoverError::Truncated)
}

/// The clocks of a VM in bytes that passed all checks.
pub struct Handover<'a> {
    clock: VmClockGuest,
    vcpus: &'a [u8],
}

impl<'a> Handover<'a> {
    /// Checks what [`write()`] wrote to the start of `bytes`: first the magic and the version, to
    /// distinguish another format from damage.
    ///
    /// # Errors
    ///
    /// See [`HandoverError`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, HandoverError> {
        let (magic, rest) = u64::read_from_prefix(bytes).map_err(|_| HandoverError::Truncated)?;
        if magic != MAGIC {
            return Err(HandoverError::Magic);
        }
        let (version, _) = u32::read_from_prefix(rest).map_err(|_| HandoverError::Truncated)?;
        if version != VERSION {
            return Err(HandoverError::Version(version));
        }
        let (header, _) = Header::read_from_prefix(bytes).map_err(|_| HandoverError::Truncated)?;
        // CAST: `usize` has 64 bits.
        let whole = bytes
            .get(..header.size as usize)
            .ok_or(HandoverError::Truncated)?;
        let vcpus = whole
            .get(size_of::<Header>()..)
            .ok_or(HandoverError::Inconsistent)?;
        if checksum(&header, vcpus) != header.crc32 {
            return Err(HandoverError::Corrupted);
        }
        let clock = header.clock;
        // CAST: The size of a small structure.
        if size(clock.nr_vcpus) != Ok(header.size)
            || clock.size != size_of::<VmClockGuest>() as u32
            || clock.vcpus != 0
            || header.pad != 0
        {
            return Err(HandoverError::Inconsistent);
        }
        Ok(Self { clock, vcpus })
    }

    /// What GET returned; `vcpus`, the address, is 0.
    pub fn clock(&self) -> &VmClockGuest {
        &self.clock
    }

    /// The vCPUs, `nr_vcpus` of them.
    pub fn vcpus(&self) -> impl Iterator<Item = ClockGuestVcpu> + use<'a> {
        self.vcpus
            .chunks_exact(size_of::<ClockGuestVcpu>())
            .filter_map(|bytes| ClockGuestVcpu::read_from_bytes(bytes).ok())
    }
}

/// The checksum of the whole.
fn checksum(header: &Header, vcpus: &[u8]) -> u32 {
    let header = Header {
        crc32: 0,
        ..*header
    };
    !crc32(crc32(!0, header.as_bytes()), vcpus)
}

/// Adds `bytes` to a CRC-32 of the reflected polynomial 0x04c11db7, without the inversions at
/// start and end. Bit by bit: the input has some hundred bytes, and a live update reads it once.
fn crc32(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
