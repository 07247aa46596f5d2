//! Sizes and durations as people write them.

use std::time::Duration;

const SUFFIXES: [(&str, u32); 6] = [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50), ("E", 60)];

/// A number of bytes: `4096`, `4K`, `4M`, `100GiB`, `1.5T`. All suffixes are powers of 1024, with or without `B` or `iB`.
pub fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let upper = suffix.trim().to_ascii_uppercase();
    let letter = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    let shift = match letter {
        "" if !upper.starts_with('I') => 0,
        _ => SUFFIXES.iter().find(|(s, _)| *s == letter).map(|(_, n)| *n).ok_or_else(|| bad_size(text))?,
    };
    let bytes = match number.parse::<u64>() {
        Ok(n) => n.checked_mul(1 << shift),
        Err(_) => {
            let n = number.parse::<f64>().map_err(|_| bad_size(text))? * (1u64 << shift) as f64;
            (n < u64::MAX as f64).then_some(n as u64)
        }
    };
    bytes.ok_or_else(|| format!("{text:?} is too large"))
}

fn bad_size(text: &str) -> String {
    format!("{text:?} is no size: write it like 512K, 4M or 100GiB")
}

/// A bound that may be absent: what `bounded` reads, or `none`, or 0, which means the same.
pub fn limit(text: &str, bounded: impl Fn(&str) -> Result<u64, String>) -> Result<Option<u64>, String> {
    match text.trim() {
        "none" | "unlimited" => Ok(None),
        text => bounded(text).map(|n| Some(n).filter(|n| *n > 0)),
    }
}

/// A span of time: `90` (seconds), `500ms`, `1s`, `15m`, `1h`, `2d`, `0`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no span of time: write it like 500ms, 10s, 15m, 1h or 2d");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let seconds = match unit.trim() {
        "ms" => 0.001,
        "" | "s" | "sec" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(bad()),
    };
    let number: f64 = number.parse().map_err(|_| bad())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())
}

/// Days, in seconds: `1`, `0.5`, `0`; at most ten years.
pub fn days(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no number of days: write it like 1, 0.5 or 0");
    let number: f64 = text.trim().parse().map_err(|_| bad())?;
    if (0.0..=3650.0).contains(&number) { Ok((number * 86_400.0).ceil() as u64) } else { Err(bad()) }
}

/// A share between 0 and 1: `0.1`, `10%`.
pub fn ratio(text: &str) -> Result<f64, String> {
    let bad = || format!("{text:?} is no share between 0 and 1: write it like 0.1 or 10%");
    let number = match text.trim().strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map_err(|_| bad())? / 100.0,
        None => text.trim().parse().map_err(|_| bad())?,
    };
    if (0.0..1.0).contains(&number) { Ok(number) } else { Err(bad()) }
}

/// An octal mask of permission bits: `022`, `0o022`.
pub fn umask(text: &str) -> Result<u16, String> {
    let digits = text.trim().trim_start_matches("0o");
    match u16::from_str_radix(digits, 8) {
        Ok(mask) if mask <= 0o777 => Ok(mask),
        _ => Err(format!("{text:?} is no mask: write it in octal, like 022")),
    }
}

/// For people: three significant digits, `1.50 GiB`.
#[must_use]
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match (unit, value) {
        (0, _) => format!("{bytes} B"),
        (_, v) if v < 10.0 => format!("{v:.2} {}", UNITS[unit]),
        (_, v) if v < 100.0 => format!("{v:.1} {}", UNITS[unit]),
        (_, v) => format!("{v:.0} {}", UNITS[unit]),
    }
}

/// For people: the two largest units, `2d 3h`, `5m 2s`.
#[must_use]
pub fn human_duration(span: Duration) -> String {
    let seconds = span.as_secs();
    let units = [(86400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let Some(first) = units.iter().position(|(n, _)| seconds >= *n) else { return "0s".into() };
    let (large, name) = units[first];
    let rest = seconds % large;
    match units.get(first + 1) {
        Some((small, next)) if rest >= *small => format!("{}{name} {}{next}", seconds / large, rest / small),
        _ => format!("{}{name}", seconds / large),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4k", 4096),
            ("4M", 4 << 20),
            ("4MiB", 4 << 20),
            ("4 MB", 4 << 20),
            ("1.5G", 3 << 29),
            ("100GiB", 100 << 30),
            ("2T", 2 << 40),
            ("12B", 12),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "4X", "4iB", "1e3", "4MM", "99999999E", "1..5K"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits() {
        assert_eq!(limit("10G", size), Ok(Some(10 << 30)));
        assert_eq!((limit("none", size), limit("0", size)), (Ok(None), Ok(None)));
        assert!(limit("some", size).is_err());
    }

    #[test]
    fn durations() {
        for (text, ms) in
            [("0", 0), ("90", 90_000), ("500ms", 500), ("1.5s", 1500), ("15m", 900_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "5 years", "1e99d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_and_masks() {
        assert_eq!(ratio("10%"), Ok(0.1));
        assert_eq!(ratio("0"), Ok(0.0));
        assert!(ratio("1").is_err() && ratio("-1").is_err() && ratio("NaN").is_err());
        assert_eq!(umask("022"), Ok(0o022));
        assert_eq!(umask("0o007"), Ok(0o007));
        assert_eq!(umask("000"), Ok(0));
        assert!(umask("8").is_err() && umask("1777").is_err() && umask("").is_err());
    }

    #[test]
    fn for_people() {
        assert_eq!(human_size(512), "512 B");
        assert_eq!(human_size(3 << 29), "1.50 GiB");
        assert_eq!(human_size(u64::MAX), "16.0 EiB");
        assert_eq!(human_duration(Duration::from_millis(3)), "0s");
        assert_eq!(human_duration(Duration::from_secs(302)), "5m 2s");
        assert_eq!(human_duration(Duration::from_secs(86400 + 60)), "1d");
    }
}
