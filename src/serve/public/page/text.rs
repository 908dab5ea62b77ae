//! Durations, sizes and counts, as people read them.

/// A duration in ms, in its two largest units: `3 d 4 h`, `5 min`, `12 s`.
pub(super) fn ago(ms: u64) -> String {
    let s = ms / 1000;
    let two = |large: u64, unit: &str, small: u64, part: &str| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {part}"),
    };
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => two(s / 60, "min", if s < 600 { s % 60 } else { 0 }, "s"),
        3_600..86_400 => two(s / 3_600, "h", s % 3_600 / 60, "min"),
        _ => two(s / 86_400, "d", s % 86_400 / 3_600, "h"),
    }
}

/// The same where it may be less than a second: `0`, `38 ms`, `1.2 s`.
pub(super) fn short(ms: u64) -> String {
    match ms {
        0 => "0".to_owned(),
        1..1_000 => format!("{ms} ms"),
        1_000..10_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => ago(ms),
    }
}

/// `1 file`, `1,204 files`.
pub(super) fn count(n: u64, what: &str) -> String {
    let digits = n.to_string();
    let mut grouped = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(c);
    }
    format!("{grouped} {what}{}", if n == 1 { "" } else { "s" })
}

/// Bytes: `512 B`, `80 KiB`, `1.5 GiB`.
pub(super) fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes >> shift > 0) {
        None => format!("{bytes} B"),
        Some((unit, shift)) => {
            let tenths = (u128::from(bytes) * 10) >> shift;
            if tenths < 100 {
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            } else {
                format!("{} {unit}", tenths / 10)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_two_units_at_most() {
        for (ms, text) in [
            (0, "0 s"),
            (59_999, "59 s"),
            (61_000, "1 min 1 s"),
            (600_000, "10 min"),
            (3_660_000, "1 h 1 min"),
            (86_400_000, "1 d"),
            (93_600_000, "1 d 2 h"),
        ] {
            assert_eq!(ago(ms), text);
        }
        assert_eq!([0, 38, 1_250, 12_000].map(short), ["0", "38 ms", "1.2 s", "12 s"]);
        assert_eq!(
            [1, 204, 1_204, 1_000_000].map(|n| count(n, "file")),
            ["1 file", "204 files", "1,204 files", "1,000,000 files"]
        );
        assert_eq!([512, 81_920, 1_610_612_736, 1_536].map(size), ["512 B", "80 KiB", "1.5 GiB", "1.5 KiB"]);
    }
}
