// SPDX-License-Identifier: GPL-2.0-only

//! See `kvm_clock_guest_fuzz::stream()`.

#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kvm_clock_guest_fuzz::stream(bytes));
