// SPDX-License-Identifier: GPL-2.0-only

//! See `kvm_clock_guest_fuzz::migration()`.

#![no_main]

use kvm_clock_guest_fuzz::{migration, mutate_number};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|bytes: &[u8]| migration(bytes));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_number(data, size, max_size, seed).unwrap_or_else(|| fuzzer_mutate(data, size, max_size))
});
