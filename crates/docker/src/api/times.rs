//! Times in parameters: seconds, dates, and how long ago.

use std::time::{Duration, UNIX_EPOCH};

use super::failure::Failure;

/// Reads `1700000000.000000001`, `2026-02-03T04:05:06+01:00`, `2026-02-03` or `1h30m`, the last one before `now`: seconds
/// since 1970, as a duration. What has no zone is in UTC.
pub(super) fn read(text: &str, now: Duration) -> Result<Duration, Failure> {
    let read = seconds(text).or_else(|| date(text)).or_else(|| Some(now.saturating_sub(ago(text)?)));
    read.ok_or_else(|| Failure::invalid(format!("failed to parse value as time or duration: {text:?}")))
}

fn seconds(text: &str) -> Option<Duration> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(part) || part.len() > 9 {
        return None;
    }
    Some(Duration::new(whole.parse().ok()?, format!("{part:0<9}").parse().ok()?))
}

fn date(text: &str) -> Option<Duration> {
    let (text, zone) = match text.get(10..).and_then(|time| time.find(['+', '-'])) {
        Some(at) => (&text[..10 + at], offset(&text[10 + at..])?),
        None => (text, 0),
    };
    // A date alone, or one with hours and minutes, lacks what follows.
    let full = match text.len() {
        10 => format!("{text}T00:00:00"),
        13 => format!("{text}:00:00"),
        16 => format!("{text}:00"),
        _ => text.to_owned(),
    };
    let time = humantime::parse_rfc3339_weak(&full).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let seconds = i64::try_from(time.as_secs()).ok()?.checked_sub(zone)?;
    Some(Duration::new(u64::try_from(seconds).ok()?, time.subsec_nanos()))
}

/// The seconds that `+01:00` is before UTC.
fn offset(text: &str) -> Option<i64> {
    let (hours, minutes) = text.get(1..)?.split_once(':')?;
    let seconds = i64::from(hours.parse::<u8>().ok()?) * 3600 + i64::from(minutes.parse::<u8>().ok()?) * 60;
    Some(if text.starts_with('-') { -seconds } else { seconds })
}

fn ago(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_that_no_place_has() {
        for text in ["2026-02-03T04:05:06+9223372036854775807:00", "2026-02-03T04:05:06+-9223372036854775808:00"] {
            assert!(read(text, Duration::ZERO).is_err(), "{text}");
        }
    }

    const NOW: Duration = Duration::from_secs(1_772_323_200);

    #[test]
    fn all_forms() {
        for (text, is) in [
            ("1700000000", Duration::from_secs(1_700_000_000)),
            ("1700000000.000000001", Duration::new(1_700_000_000, 1)),
            ("1700000000.5", Duration::new(1_700_000_000, 500_000_000)),
            ("2026-03-01T00:00:00Z", NOW),
            ("2026-03-01T01:00:00+01:00", NOW),
            ("2026-02-28T22:30:00-01:30", NOW),
            ("2026-03-01T00:00:00", NOW),
            ("2026-03-01T00:00", NOW),
            ("2026-03-01", NOW),
            ("1h30m", NOW - Duration::from_secs(5400)),
            ("10s", NOW - Duration::from_secs(10)),
            ("24h", NOW - Duration::from_secs(86_400)),
        ] {
            assert_eq!(read(text, NOW), Ok(is), "{text}");
        }
        for text in ["", "soon", "1.2.3", "-5", "2026-13-01", "1700000000.", "2026-03-01T00:00:00+x"] {
            assert_eq!(read(text, NOW).unwrap_err().status(), 400, "{text}");
        }
    }
}
