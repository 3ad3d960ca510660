// SPDX-License-Identifier: GPL-2.0-only

//! The clocks of a VM as bytes: what is written is read, and nothing else.

use proptest::prelude::*;
use pvclock::{
    abi::{ClockGuestVcpu, VmClockGuest},
    handover::{self, Handover, HandoverError, MAGIC, VERSION},
};
use zerocopy::{FromBytes, IntoBytes};

const HEADER: usize = 168;

/// Clocks of `nr_vcpus` vCPUs with the bytes of `noise` in all that the format leaves free.
fn clocks(nr_vcpus: u32, noise: &[u8]) -> (VmClockGuest, Vec<ClockGuestVcpu>) {
    let mut noise = noise.iter().copied().cycle();
    let mut bytes = |len: usize| -> Vec<u8> { noise.by_ref().take(len).collect() };
    let clock = VmClockGuest {
        size: 144,
        nr_vcpus,
        ..VmClockGuest::read_from_bytes(&bytes(144)).unwrap()
    };
    let vcpus = (0..nr_vcpus).map(|_| ClockGuestVcpu::read_from_bytes(&bytes(24)).unwrap());
    (clock, vcpus.collect())
}

fn written(clock: &VmClockGuest, vcpus: &[ClockGuestVcpu]) -> Vec<u8> {
    let mut out = vec![0; handover::size(clock.nr_vcpus).unwrap() as usize];
    let size = handover::write(clock, vcpus, &mut out).unwrap();
    assert_eq!(size as usize, out.len());
    out
}

fn refused(bytes: &[u8]) -> Option<HandoverError> {
    Handover::new(bytes).err()
}

/// `bytes` with a correct checksum.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[16..20].fill(0);
    let crc = crc32fast::hash(&bytes);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    bytes
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        nr_vcpus in 0..20u32,
        noise in prop::collection::vec(any::<u8>(), 1..700),
        behind in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let (clock, vcpus) = clocks(nr_vcpus, &noise);
        let bytes = written(&clock, &vcpus);
        prop_assert_eq!(&bytes, &sealed(bytes.clone()), "the checksum of another implementation");
        let bytes = [&bytes[..], &behind].concat();
        let read = Handover::new(&bytes).unwrap();
        prop_assert_eq!(read.clock(), &VmClockGuest { vcpus: 0, ..clock });
        prop_assert!(read.vcpus().eq(vcpus));
    }

    #[test]
    fn other_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(refused(&bytes).is_some());
    }
}

#[test]
fn every_cut_and_every_flipped_bit_is_refused() {
    let (clock, vcpus) = clocks(3, b"pause");
    let whole = written(&clock, &vcpus);
    assert_eq!(refused(&whole), None);
    for len in 0..whole.len() {
        assert_eq!(
            refused(&whole[..len]),
            Some(HandoverError::Truncated),
            "{len} bytes"
        );
    }
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(refused(&bytes).is_some(), "bit {bit}");
        // Also if more memory follows.
        bytes.resize(4096, 0);
        assert!(refused(&bytes).is_some(), "bit {bit} in a page");
    }
}

#[test]
fn each_fault_has_its_reason() {
    let (clock, vcpus) = clocks(2, b"x");
    let whole = written(&clock, &vcpus);
    let with = |offset: usize, value: u32| {
        let mut bytes = whole.clone();
        bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    assert_eq!(refused(&with(0, 0)), Some(HandoverError::Magic));
    // Another version is not damage, whatever its checksum covers.
    for version in [0, VERSION + 1, u32::MAX] {
        assert_eq!(
            refused(&with(8, version)),
            Some(HandoverError::Version(version))
        );
    }
    let longer = with(12, whole.len() as u32 + 1);
    assert_eq!(refused(&longer), Some(HandoverError::Truncated));
    assert_eq!(refused(&with(12, 100)), Some(HandoverError::Inconsistent));
    assert_eq!(refused(&with(HEADER, 7)), Some(HandoverError::Corrupted));
    // Sealed nonsense.
    let inconsistent = Some(HandoverError::Inconsistent);
    let nr_vcpus = 24 + 16;
    for (offset, value) in [
        (20, 1),
        (24, 136),
        (nr_vcpus, 1),
        (nr_vcpus, u32::MAX),
        (24 + 24, 1),
    ] {
        assert_eq!(
            refused(&sealed(with(offset, value))),
            inconsistent,
            "{value} at {offset}"
        );
    }
    assert_eq!(MAGIC.to_le_bytes(), *b"KVMCLOCK");
}

#[test]
fn writing_checks_its_room_and_the_count() {
    let (clock, vcpus) = clocks(2, b"y");
    let mut out = [0xaa; HEADER + 2 * 24];
    let short = out.len() - 1;
    let truncated = Err(HandoverError::Truncated);
    assert_eq!(
        handover::write(&clock, &vcpus, &mut out[..short]),
        truncated
    );
    let inconsistent = Err(HandoverError::Inconsistent);
    assert_eq!(handover::write(&clock, &vcpus[..1], &mut out), inconsistent);
    assert!(
        out.as_bytes().iter().all(|&byte| byte == 0xaa),
        "nothing is written then"
    );
    assert_eq!(handover::size(u32::MAX), Err(HandoverError::Inconsistent));
}
