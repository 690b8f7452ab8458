//! Durations as people write them.
//!
//! Takes text such as `500ms`, `10s`, `2m` or `1h`, gives a [`Duration`]. Never reads a clock.

use std::time::Duration;

/// How often a wait that does not change is said again.
pub const SAY_EVERY: Duration = Duration::from_secs(10);

/// Reads `500ms`, `10s`, `2m`, `1h`. A number without a unit is refused, because `--wait 10` was meant as minutes by one
/// person and as seconds by the next.
pub fn parse(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// Writes a duration as people read it: `350 ms`, `2.5 s`.
pub fn text(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else if duration < Duration::from_secs(120) {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min", duration.as_secs() / 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_read_with_its_unit() {
        for (text, millis) in [("500ms", 500), ("10s", 10_000), ("2m", 120_000), ("1h", 3_600_000), ("0s", 0)] {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_duration_without_a_unit_or_with_another_is_refused() {
        for text in ["10", "", "s", "-1s", "1.5s", "10 s", "1d", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
