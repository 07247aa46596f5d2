//! The two forms of dates that the Hub and its CDN use.

use crate::types::Timestamp;

/// `2024-05-06T07:08:09.000Z`, with any number of decimals.
pub fn iso(text: &str) -> Option<Timestamp> {
    let text = text.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut date = date.splitn(3, '-').map(digits);
    let mut time = time.splitn(3, ':').map(digits);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let seconds = seconds(year, month, day, hour, minute, second)?;
    let nanos = if fraction.is_empty() { 0 } else { digits(&format!("{fraction:0<9}")[..9])? };
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos).map(Timestamp)
}

fn digits(text: &str) -> Option<i64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Seconds since 1970 in the Gregorian calendar.
fn seconds(year: i64, month: i64, day: i64, hour: i64, minute: i64, second: i64) -> Option<i64> {
    let valid = (1..=9_999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !valid || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Years begin in March here, so that the leap day comes last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 1;
    Some((days - 719_468) * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        let seconds = |t: &str| iso(t).map(|t| t.0 / 1_000_000_000);
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2024-02-29T12:34:56.000Z"), Some(1_709_210_096));
        assert_eq!(seconds("2000-03-01T00:00:00.5Z"), Some(951_868_800));
        assert_eq!(iso("2024-02-29T12:34:56.789Z").map(|t| t.0 % 1_000_000_000), Some(789_000_000));
        for bad in
            ["", "2024-13-01T00:00:00Z", "2024-01-01", "2024-01-01T00:00:00", "x-1-1T1:1:1Z", "+1-1-1T1:1:1Z"]
        {
            assert_eq!(iso(bad), None, "{bad}");
        }
    }
}
