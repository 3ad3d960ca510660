// SPDX-License-Identifier: GPL-2.0-only

//! Random numbers, many of them at the limits of arithmetic.

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

/// The same sequence for the same seed, on every machine and with every release of the crate.
pub(crate) type Rng = ChaCha8Rng;

/// True once in `n`.
pub(crate) fn one_in(rng: &mut Rng, n: u32) -> bool {
    rng.random_ratio(1, n)
}

/// Any number, often an extreme one: nearly all bits equal, or of any magnitude.
pub(crate) fn any64(rng: &mut Rng) -> u64 {
    let near = rng.random_range(-3i64..=3);
    match rng.random_range(0..8) {
        0 => 0u64.wrapping_add_signed(near),
        1 => (1u64 << 63).wrapping_add_signed(near),
        2 => (1u64 << rng.random_range(0..64)).wrapping_add_signed(near),
        3 | 4 => rng.random(),
        _ => magnitude(rng, 64),
    }
}

/// As [`any64`].
pub(crate) fn any32(rng: &mut Rng) -> u32 {
    // CAST: each half is as extreme.
    (any64(rng) >> (32 * rng.random_range(0..=1))) as u32
}

/// A number of at most `bits` bits; all lengths are equally likely.
pub(crate) fn magnitude(rng: &mut Rng, bits: u32) -> u64 {
    match rng.random_range(0..=bits) {
        0 => 0,
        bits => rng.random::<u64>() >> (64 - bits),
    }
}

/// One of `choices`.
pub(crate) fn pick<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.random_range(0..choices.len())]
}
