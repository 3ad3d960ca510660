// SPDX-License-Identifier: GPL-2.0-only

//! Other numbers in a text: a fuzzer that changes bytes hardly ever makes one of those that matter.

/// Numbers at the edges of 8 to 64 bits, and times and ticks that a host may have.
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "31",
    "63",
    "64",
    "127",
    "128",
    "255",
    "-2147483648",
    "2147483647",
    "4294967295",
    "4294967296",
    "1900000000000000000",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "18446744073709551615",
];

/// `text` with one of its numbers replaced by another; `seed` chooses which and by what. `None` if it
/// has no number.
pub fn replace_number(text: &[u8], seed: u32) -> Option<Vec<u8>> {
    let is_part = |at: usize| text[at].is_ascii_digit() || text[at] == b'-';
    let begins: Vec<_> = (0..text.len())
        .filter(|&at| is_part(at) && (at == 0 || !is_part(at - 1)))
        .collect();
    // CAST: `usize` has 64 bits.
    let seed = seed as usize;
    let begin = *begins.get(seed % begins.len().max(1))?;
    let length = (begin..text.len()).take_while(|&at| is_part(at)).count();
    let other = NUMBERS[seed / begins.len() % NUMBERS.len()];
    Some([&text[..begin], other.as_bytes(), &text[begin + length..]].concat())
}
