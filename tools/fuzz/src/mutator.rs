// SPDX-License-Identifier: GPL-2.0-only

//! Replaces numbers in a text: a fuzzer that changes single bytes hardly ever makes one that
//! matters.

/// The smallest and largest numbers of 8 to 64 bits, and times and ticks that a host may have.
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

/// Replaces a number in the text that is the first `size` bytes of `data`, for one in two values of
/// `seed`, which chooses the number and its replacement. Returns the new size; `None`, with `data`
/// unchanged, if the text has no number or gets longer than `max_size`.
pub fn mutate_number(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> Option<usize> {
    if seed % 2 == 1 {
        return None;
    }
    let text = replace_number(&data[..size], seed / 2).filter(|text| text.len() <= max_size)?;
    data[..text.len()].copy_from_slice(&text);
    Some(text.len())
}

fn replace_number(text: &[u8], seed: u32) -> Option<Vec<u8>> {
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
