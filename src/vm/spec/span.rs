//! Lengths of time as settings: `30s`, `10m`, `2h`, `7d`, `never`.
//!
//! Not here: what happens when one is over.

use std::time::Duration;

/// The word for a time that does not come.
pub const NEVER: &str = "never";
/// The shortest time that can be asked for.
pub const SHORTEST: Duration = Duration::from_secs(1);
/// The longest time that can be asked for: no clock of ours overflows.
pub const LONGEST: Duration = Duration::from_secs(3650 * DAY);

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const UNITS: [(u64, &str); 4] = [(DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (1, "s")];

/// Reads a whole number of seconds, or one with `s`, `m`, `h` or `d`.
pub fn parse(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let seconds = match &text[digits..] {
        "" => 1,
        unit => UNITS.iter().find(|(_, name)| *name == unit)?.0,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// Prints a time with the largest unit that divides it: `90m`.
pub fn render(time: Duration) -> String {
    let seconds = time.as_secs();
    let unit = UNITS.iter().find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit));
    unit.map_or_else(|| "0s".to_owned(), |(unit, name)| format!("{}{name}", seconds / unit))
}

/// Prints a setting.
pub fn render_or_never(time: Option<Duration>) -> String {
    time.map_or_else(|| NEVER.to_owned(), render)
}

/// Prints about how long a time is, for people: two digits are enough.
pub fn render_about(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{}ms", time.as_millis()),
        _ => {
            let unit = UNITS.iter().find(|(unit, _)| seconds >= 2 * unit || *unit == 1);
            unit.map_or_else(String::new, |(unit, name)| format!("{}{name}", seconds / unit))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_and_printed_in_its_largest_unit() {
        let table = [("5", "5s"), ("60s", "1m"), ("90m", "90m"), ("24h", "1d"), ("7d", "7d")];
        for (written, printed) in table {
            assert_eq!(render(parse(written).unwrap()), printed);
        }
        for bad in ["", "m", "1.5h", "-1s", "1 h", "1w", "99999999999999999999", "1H"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse(&format!("{}d", u64::MAX)), None);
        assert_eq!(render_or_never(None), NEVER);
    }

    #[test]
    fn about_how_long() {
        let table = [(500, "500ms"), (1500, "1s"), (119_000, "119s"), (2_580_000, "43m")];
        for (millis, printed) in table {
            assert_eq!(render_about(Duration::from_millis(millis)), printed);
        }
        assert_eq!(render_about(Duration::from_secs(3 * DAY + 5)), "3d");
    }
}
