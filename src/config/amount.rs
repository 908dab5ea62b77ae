//! Durations and sizes, as people write them.

use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;
use toml::de::DeValue;

use super::problem::wrong;
use super::raw::wants;
use super::value::{Read, count};

/// Longer ones are slips, and could overflow a clock.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// A duration: "30s", "1h 30m", or seconds.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Ok(seconds) = s.parse::<u32>() {
            return Ok(Self(Duration::from_secs(seconds.into())));
        }
        let span: SignedDuration =
            s.parse().map_err(|_| format!("`{s}` is not a duration such as 30s, 5m or 1h30m"))?;
        Duration::try_from(span).map(Self).map_err(|_| format!("`{s}` is negative"))
    }
}

/// Bytes: "500MiB", "10G", "1024". Suffixes are powers of 1,024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("`{s}` is not a size such as 500MiB, 10G or 1048576");
        let end = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let number: u64 = s[..end].parse().map_err(|_| bad())?;
        let shift = match s[end..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(bad()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(bad)
    }
}

/// A duration; may be 0.
pub(super) fn duration(value: &DeValue<'_>) -> Read<Duration> {
    let span = match value {
        DeValue::Integer(_) => Duration::from_secs(count(value)?),
        DeValue::String(text) => text.parse::<Span>().map_err(wrong)?.0,
        _ => return Err(wants("a duration such as \"30s\"", value)),
    };
    if span > LONGEST {
        return Err(wrong("is more than a year"));
    }
    Ok(span)
}

/// A duration that makes no sense as 0.
pub(super) fn period(value: &DeValue<'_>) -> Read<Duration> {
    match duration(value)? {
        Duration::ZERO => Err(wrong("must be longer than 0").hint("leave the key out for the default")),
        period => Ok(period),
    }
}

/// A duration as [`duration`] reads it.
pub(super) fn duration_text(duration: Duration) -> String {
    match SignedDuration::try_from(duration) {
        Ok(signed) => format!("{signed:#}"),
        Err(_) => format!("{}s", duration.as_secs()),
    }
}

pub(super) fn size(value: &DeValue<'_>) -> Read<u64> {
    match value {
        DeValue::Integer(_) => count(value),
        DeValue::String(text) => text.parse::<Size>().map(|size| size.0).map_err(wrong),
        _ => Err(wants("a size such as \"10GiB\"", value)),
    }
}

/// A size as [`size`] reads it, in the largest unit that divides it.
pub(super) fn size_text(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let fits = |(_, shift): &&(&str, u32)| bytes != 0 && bytes.trailing_zeros() >= *shift;
    units
        .iter()
        .find(fits)
        .map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_read_or_refused() {
        assert_eq!("10GiB".parse(), Ok(Size(10 << 30)));
        assert_eq!("7".parse(), Ok(Size(7)));
        assert!("x".parse::<Size>().is_err());
        assert!("99999999999T".parse::<Size>().is_err());
        assert_eq!("90".parse::<Span>().unwrap().0, Duration::from_secs(90));
        assert_eq!("1m30s".parse::<Span>().unwrap().0, Duration::from_secs(90));
        assert!("-5s".parse::<Span>().is_err());
        assert!("soon".parse::<Span>().is_err());
    }

    #[test]
    fn durations_and_sizes_are_written_as_they_are_read() {
        for text in ["0s", "500ms", "30s", "10m", "1h 30m", "1s 1ns"] {
            let duration = text.parse::<Span>().unwrap().0;
            assert_eq!(duration_text(duration).parse::<Span>().unwrap().0, duration, "{text}");
        }
        for (bytes, text) in [
            (0, "0"),
            (10 << 30, "10GiB"),
            (1536, "1536"),
            (1 << 20, "1MiB"),
            (u64::MAX, "18446744073709551615"),
        ] {
            assert_eq!(size_text(bytes), text);
            assert_eq!(text.parse(), Ok(Size(bytes)));
        }
    }
}
