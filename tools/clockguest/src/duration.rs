// SPDX-License-Identifier: GPL-2.0-only

//! Durations on the command line: an integer and a unit, as in `50ms`.

use std::time::Duration;

/// Parses `<integer><unit>`, where the unit is `ns`, `us`, `ms` or `s`.
///
/// # Errors
///
/// A message for the user, which names the accepted form.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("'{text}' does not start with an integer; try 50ms or 5s"))?;
    let nsec_per_unit = match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return Err(format!("'{text}' needs a unit: ns, us, ms or s")),
    };
    number
        .checked_mul(nsec_per_unit)
        .map(Duration::from_nanos)
        .ok_or_else(|| format!("'{text}' is more than 2^64 ns"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_every_unit() {
        for (text, ns) in [
            ("0s", 0),
            ("7ns", 7),
            ("50us", 50_000),
            ("50ms", 50_000_000),
            ("5s", 5_000_000_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
    }

    #[test]
    fn refuses_other_forms() {
        for text in ["", "50", "ms", "1.5s", "-1s", "5 s", "5min", "18446744074s"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
