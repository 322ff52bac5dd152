//! Durations as Go writes them: `90s`, `15m`, `1h30m`, `262800h`.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDuration {
    /// Empty, or a number without a unit.
    #[error("want a number and a unit, such as 90s, 15m or 24h")]
    Form,
    /// A unit other than ns, us, ms, s, m, h.
    #[error("units are ns, us, ms, s, m and h")]
    Unit,
    /// Negative.
    #[error("can't be negative")]
    Negative,
    /// Longer than 292 years, which is where Go's own type ends.
    #[error("too long")]
    TooLong,
}

/// Reads a duration: one or more decimal numbers, each with a unit; a bare `0` is zero.
///
/// # Errors
///
/// [`InvalidDuration`], which says what is wanted.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.starts_with('-') {
        return Err(InvalidDuration::Negative);
    }
    let mut rest = text;
    let mut total = 0.0_f64;
    if rest.is_empty() {
        return Err(InvalidDuration::Form);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(InvalidDuration::Form)?;
        let number: f64 = rest[..digits].parse().map_err(|_| InvalidDuration::Form)?;
        rest = &rest[digits..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit_len] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return Err(InvalidDuration::Unit),
        };
        total += number * seconds;
        rest = &rest[unit_len..];
    }
    if total > 292.0 * 365.25 * 86_400.0 {
        return Err(InvalidDuration::TooLong);
    }
    // Go counts nanoseconds; rounding to them hides the float.
    Ok(Duration::from_nanos((total * 1e9).round() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        for (text, want) in [
            ("0", Duration::ZERO),
            ("0s", Duration::ZERO),
            ("90s", Duration::from_secs(90)),
            ("15m", Duration::from_secs(900)),
            ("1h30m", Duration::from_secs(5_400)),
            ("15m0s", Duration::from_secs(900)),
            ("1.5s", Duration::from_millis(1_500)),
            ("250ms", Duration::from_millis(250)),
            ("262800h", Duration::from_secs(262_800 * 3_600)),
        ] {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
        for (text, want) in [
            ("", InvalidDuration::Form),
            ("15", InvalidDuration::Form),
            ("m", InvalidDuration::Form),
            ("1d", InvalidDuration::Unit),
            ("-1s", InvalidDuration::Negative),
            ("99999999h", InvalidDuration::TooLong),
        ] {
            assert_eq!(parse(text), Err(want), "{text}");
        }
    }
}
