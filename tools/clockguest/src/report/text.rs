// SPDX-License-Identifier: GPL-2.0-only

//! Numbers for the user.

/// The digits in groups of three.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A whole number if large or whole; otherwise with one digit, or two if small.
pub(crate) fn decimal(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => {
            let sign = if value < 0.0 { "-" } else { "" };
            // CAST: Saturates.
            format!("{sign}{}", grouped(size.round() as u64))
        }
        size if size == size.trunc() => format!("{value}"),
        size if size >= 1.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(104_857_600), "104,857,600");
    }

    #[test]
    fn small_numbers_keep_digits() {
        assert_eq!(decimal(0.0), "0");
        assert_eq!(decimal(-0.257), "-0.26");
        assert_eq!(decimal(12.34), "12.3");
        assert_eq!(decimal(-12_345.6), "-12,346");
    }
}
