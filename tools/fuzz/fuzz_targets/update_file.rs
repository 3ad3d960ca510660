// SPDX-License-Identifier: GPL-2.0-only

//! See `kvm_clock_guest_fuzz::update_file()`.

#![no_main]

use kvm_clock_guest_fuzz::{replace_number, update_file};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| update_file(bytes));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    match replace_number(&data[..size], seed / 2).filter(|_| seed % 2 == 0) {
        Some(text) if text.len() <= max_size => {
            data[..text.len()].copy_from_slice(&text);
            text.len()
        }
        _ => libfuzzer_sys::fuzzer_mutate(data, size, max_size),
    }
});
