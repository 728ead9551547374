//! Times, sizes and long texts for people.

use chrono::{DateTime, TimeDelta, Utc};

/// `4 s`, `2 min 05 s`, `3 h 12 min`, `2 d 4 h`.
pub fn duration(span: TimeDelta) -> String {
    let total = span.num_seconds().max(0);
    match total {
        0 => {
            let millis = span.num_milliseconds().max(0);
            if millis == 0 { "0 s".into() } else { format!("0.{} s", (millis / 100).max(1)) }
        }
        1..60 => format!("{total} s"),
        60..3600 => format!("{} min {:02} s", total / 60, total % 60),
        3600..86400 => format!("{} h {:02} min", total / 3600, total % 3600 / 60),
        _ => format!("{} d {} h", total / 86400, total % 86400 / 3600),
    }
}

/// From start to end, or to now when it has not ended; empty when it has not started.
pub fn elapsed(started: Option<DateTime<Utc>>, finished: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    started.map(|s| duration(finished.unwrap_or(now) - s)).unwrap_or_default()
}

/// `just now`, `5 min ago`, `yesterday`, or the date.
pub fn ago(then: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let seconds = (now - then).num_seconds();
    match seconds {
        i64::MIN..10 => "just now".into(),
        10..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86400 => format!("{} h ago", seconds / 3600),
        86400..172_800 => "yesterday".into(),
        172_800..1_209_600 => format!("{} days ago", seconds / 86400),
        _ => then.format("%-d %b %Y").to_string(),
    }
}

/// For a tooltip and for machines.
pub fn exact(then: DateTime<Utc>) -> String {
    then.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// `812 B`, `4.2 KiB`, `1.0 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut tenths, mut unit) = (bytes.saturating_mul(10) / 1024, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// At most `width` characters, the middle left out, so that `train-model-2` and `train-model-3` stay apart.
pub fn shorten(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width || width < 5 {
        return text.to_owned();
    }
    let tail = (width - 1) / 3;
    let head = width - 1 - tail;
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(count - tail).collect();
    format!("{start}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_read_well() {
        let d = |ms: i64| duration(TimeDelta::milliseconds(ms));
        assert_eq!(
            [d(-5), d(0), d(30), d(420), d(59_999), d(125_000), d(11_520_000), d(190_000_000)],
            ["0 s", "0 s", "0.1 s", "0.4 s", "59 s", "2 min 05 s", "3 h 12 min", "2 d 4 h"]
        );
        assert_eq!(
            [size(0), size(1023), size(1024), size(4300), size(1 << 30)],
            ["0 B", "1023 B", "1.0 KiB", "4.1 KiB", "1.0 GiB"]
        );
        assert_eq!(size(u64::MAX).split(' ').nth(1), Some("PiB"));
        assert_eq!(shorten("preprocess-the-training-data-2", 16), "preprocess…ata-2");
        assert_eq!(shorten("äöüäöüäöü", 6).chars().count(), 6);
    }
}
