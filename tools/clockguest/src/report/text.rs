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

/// `ns` with three digits, in a suitable unit.
pub fn duration(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = match value {
        0.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        assert_eq!(duration(0), "0 ns");
        assert_eq!(duration(999), "999 ns");
        assert_eq!(duration(12_507), "12.5 µs");
        assert_eq!(duration(51_843_556), "51.8 ms");
        assert_eq!(duration(347_550_444), "348 ms");
        assert_eq!(duration(1_440_892_856), "1.44 s");
        assert_eq!(duration(3_600_000_000_000), "3600 s");
    }

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
