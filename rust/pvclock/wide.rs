// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR BSD-3-Clause

//! Products too wide for the kernel's 64-bit divisions.
//!
//! Rust's `u128` division needs `__udivti3`, which the kernel does not have.

/// Schoolbook product and quotient need at most 192 bits, in 32-bit digits, lowest first.
const DIGITS: usize = 6;

/// `((a * b * factor) >> shift) / divisor`, rounded down; `None` if the result exceeds 64 bits.
///
/// Nothing is rounded before the end, so the result is the exact quotient's floor. `divisor` must
/// not be 0 and `shift` must be below 64: both give `None`.
pub(super) fn mul_mul_shr_div(
    a: u64,
    b: u64,
    factor: u64,
    shift: u32,
    divisor: u32,
) -> Option<u64> {
    if divisor == 0 || shift >= 64 {
        return None;
    }
    let mut digits = mul_192(u128::from(a) * u128::from(b), factor);
    shr(&mut digits, shift);
    div(&mut digits, divisor);
    match digits {
        // `floor(floor(x / 2^s) / d)` is `floor(x / (2^s * d))`, so the two steps lose nothing.
        [lo, hi, 0, 0, 0, 0] => Some(u64::from(hi) << 32 | u64::from(lo)),
        _ => None,
    }
}

/// 128 x 64 bits -> 192 bits.
fn mul_192(wide: u128, factor: u64) -> [u32; DIGITS] {
    let lo = (wide & u128::from(u64::MAX)) * u128::from(factor);
    // (2^64 - 1)^2 + (2^64 - 1) < 2^128: the carry cannot overflow.
    let hi = (wide >> 64) * u128::from(factor) + (lo >> 64);
    // CAST: each digit keeps its 32 bits.
    [
        lo as u32,
        (lo >> 32) as u32,
        hi as u32,
        (hi >> 32) as u32,
        (hi >> 64) as u32,
        (hi >> 96) as u32,
    ]
}

fn shr(digits: &mut [u32; DIGITS], shift: u32) {
    let mut carry = 0u32;
    // Two passes of at most 32 bits each keep every step inside 64 bits.
    for step in [shift / 2, shift - shift / 2] {
        for digit in digits.iter_mut().rev() {
            let wide = (u64::from(carry) << 32 | u64::from(*digit)) >> step;
            carry = *digit & low_mask(step);
            // CAST: `carry` is below 2^step, so `wide` fits 32 bits.
            *digit = wide as u32;
        }
        carry = 0;
    }
}

fn low_mask(bits: u32) -> u32 {
    1u32.checked_shl(bits).map_or(u32::MAX, |bit| bit - 1)
}

fn div(digits: &mut [u32; DIGITS], divisor: u32) {
    let divisor = u64::from(divisor);
    let mut rest = 0u64;
    for digit in digits.iter_mut().rev() {
        let wide = rest << 32 | u64::from(*digit);
        // CAST: `rest` is below `divisor`, so the quotient fits 32 bits.
        *digit = (wide / divisor) as u32;
        rest = wide % divisor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_u128(a: u64, b in 0u64..1 << 32, f in 1u64..1 << 32, s in 0u32..64, d in 1u32..) {
            let exact = ((u128::from(a) * u128::from(b) * u128::from(f)) >> s) / u128::from(d);
            prop_assert_eq!(mul_mul_shr_div(a, b, f, s, d), u64::try_from(exact).ok());
        }

        #[test]
        fn agrees_at_full_width(a: u64, b: u64, s in 0u32..64, d in 1u32..) {
            // A factor of 2^s undoes the shift, and leaves a 192-bit product on the way.
            let exact = u128::from(a) * u128::from(b) / u128::from(d);
            prop_assert_eq!(mul_mul_shr_div(a, b, 1 << s, s, d), u64::try_from(exact).ok());
        }
    }

    #[test]
    fn refuses_nonsense() {
        assert_eq!(mul_mul_shr_div(1, 1, 1, 0, 0), None);
        assert_eq!(mul_mul_shr_div(1, 1, 1, 64, 1), None);
        assert_eq!(mul_mul_shr_div(u64::MAX, u64::MAX, u64::MAX, 63, 1), None);
    }
}
