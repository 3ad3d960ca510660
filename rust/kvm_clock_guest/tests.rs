// SPDX-License-Identifier: GPL-2.0-only

//! KUnit tests, run when the module is loaded: our arithmetic against the kernel's own C, and
//! against vectors that other implementations of it were compared with as well.

use crate::pvclock::{
    abi,
    counter,
    plan,
    rate,
    request,
    tsc, //
};
use kernel::prelude::*;

#[path = "../pvclock/tests/vectors/mod.rs"]
mod vectors;

#[kunit_tests(kvm_clock_guest)]
mod suite {
    use crate::{
        kvm::oracle,
        pvclock::{
            abi::{
                ClockGuest,
                ClockGuestVcpu,
                VmClockGuest, //
            },
            counter::GuestTsc,
            handover::{
                self,
                Handover,
                HandoverError, //
            },
            rate::Factor,
            tsc::Scale, //
        },
    };

    const CASES: usize = 100_000;

    /// Numbers of all magnitudes, the same in every run: xorshift64, masked to a varying width.
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 >> (self.0 >> 23 & 63)
        }
    }

    #[test]
    fn record_reads_as_in_c() {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for _ in 0..CASES {
            let record = ClockGuest {
                tsc_timestamp: GuestTsc(numbers.next()),
                system_time: numbers.next(),
                tsc_to_system_mul: numbers.next() as u32,
                tsc_shift: (numbers.next() % 63) as i8 - 31,
                ..Default::default()
            };
            let tsc = GuestTsc(numbers.next());
            assert_eq!(
                record.kvmclock_ns(tsc),
                oracle::pvclock_read_cycles(&record, tsc)
            );
        }
    }

    #[test]
    fn tsc_scales_as_in_c() {
        let mut numbers = Numbers(0xd1b5_4a32_d192_ed03);
        for _ in 0..CASES {
            let (tsc, ratio) = (numbers.next(), numbers.next());
            for frac_bits in [32, 48] {
                if let Some(scale) = Scale::new(ratio, frac_bits) {
                    assert_eq!(
                        scale.apply(tsc),
                        oracle::mul_u64_u64_shr(tsc, ratio, frac_bits)
                    );
                }
            }
        }
    }

    #[test]
    fn handover_reads_back_and_refuses_damage() {
        let clock = VmClockGuest {
            // CAST: The size of a small structure.
            size: size_of::<VmClockGuest>() as u32,
            nr_vcpus: 1,
            kvmclock_ns: 7,
            ..Default::default()
        };
        let vcpus = [ClockGuestVcpu {
            vcpu_id: 3,
            ..Default::default()
        }];
        let mut bytes = [0u8; 200];
        assert_eq!(handover::write(&clock, &vcpus, &mut bytes), Ok(192));
        // The kernel's C has the same checksum.
        let mut unsealed = bytes;
        unsealed[16..20].fill(0);
        let crc32 = oracle::crc32(&unsealed[..192]);
        assert_eq!(bytes[16..20], crc32.to_le_bytes());

        let read = Handover::new(&bytes);
        assert!(read.is_ok_and(|read| *read.clock() == clock && read.vcpus().eq(vcpus)));
        for bit in 0..192 * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Handover::new(&damaged).is_err());
        }
        bytes[8] = 2;
        assert_eq!(Handover::new(&bytes).err(), Some(HandoverError::Version(2)));
    }

    #[test]
    fn vectors_hold() {
        for (name, first_wrong) in super::vectors::TABLES {
            if let Some(row) = first_wrong() {
                kernel::pr_err!("{name}: row {row} is wrong\n");
                assert!(false);
            }
        }
    }

    #[test]
    fn factor_of_a_rate_counts_a_second() {
        for khz in [
            1, 999, 1_000_000, 2_596_100, 4_294_967, 4_294_968, 10_000_000,
        ] {
            let Some(Factor { mul, shift }) = Factor::of_hz(khz * 1000) else {
                panic!("no factor for {khz} kHz");
            };
            let record = ClockGuest {
                tsc_to_system_mul: mul,
                tsc_shift: shift,
                ..Default::default()
            };
            // A 32-bit factor is good to 2^-31, and right shifts drop what is below a tick of it.
            let second = record.kvmclock_ns(GuestTsc(khz * 1000));
            assert!(second.abs_diff(1_000_000_000) <= 8);
        }
    }
}
