//! What stands for `[[ScheduledTime]]`, `[[CurrentTime]]`, `[[Index]]` and `[[RunUUID]]` in the parameters of a recurring
//! run. Times are in UTC, as `20060102150405` or in a layout of Go's `time` package: `[[ScheduledTime.2006-01-02]]`.
//! Other double brackets stay as they are: a list of lists is one. Source: kubeflow/pipelines
//! `backend/src/crd/controller/scheduledworkflow/util/parameter_formatter.go`.

use chrono::{DateTime, Datelike, Timelike, Utc};
use serde_json::Value;
use std::fmt::Write;

const TIME: &str = "20060102150405";

pub(super) struct Macros<'a> {
    /// Milliseconds since 1970.
    pub scheduled: i64,
    pub now: i64,
    pub index: i64,
    pub run_id: &'a str,
}

impl Macros<'_> {
    /// In every text of a value.
    pub(super) fn replace(&self, value: &mut Value) {
        match value {
            Value::String(text) if text.contains("[[") => *text = self.text(text),
            Value::Array(list) => list.iter_mut().for_each(|v| self.replace(v)),
            Value::Object(map) => map.values_mut().for_each(|v| self.replace(v)),
            _ => {}
        }
    }

    fn text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("[[") {
            out.push_str(before);
            let Some((inner, behind)) = after.split_once("]]") else {
                out.push_str("[[");
                rest = after;
                break;
            };
            match self.one(inner) {
                Some(found) => out.push_str(&found),
                None => _ = write!(out, "[[{inner}]]"),
            }
            rest = behind;
        }
        out.push_str(rest);
        out
    }

    fn one(&self, inner: &str) -> Option<String> {
        match inner {
            "ScheduledTime" => Some(formatted(self.scheduled, TIME)),
            "CurrentTime" => Some(formatted(self.now, TIME)),
            "Index" => Some(self.index.to_string()),
            "RunUUID" => Some(self.run_id.to_owned()),
            _ => {
                let (at, layout) = match inner.split_once('.')? {
                    ("ScheduledTime", layout) => (self.scheduled, layout),
                    ("CurrentTime", layout) => (self.now, layout),
                    _ => return None,
                };
                Some(formatted(at, layout))
            }
        }
    }
}

/// The words of a layout, longer ones before those that they begin with.
const WORDS: [&str; 33] = [
    "January",
    "Jan",
    "Monday",
    "Mon",
    "MST",
    "Z07:00:00",
    "Z07:00",
    "Z070000",
    "Z0700",
    "Z07",
    "-07:00:00",
    "-07:00",
    "-070000",
    "-0700",
    "-07",
    "002",
    "01",
    "02",
    "03",
    "04",
    "05",
    "06",
    "2006",
    "15",
    "__2",
    "_2",
    "PM",
    "pm",
    "1",
    "2",
    "3",
    "4",
    "5",
];

/// A moment in a layout of Go's: its reference time is 2006-01-02 15:04:05, a Monday.
fn formatted(millis: i64, layout: &str) -> String {
    // Upstream counts in seconds.
    let at: DateTime<Utc> = DateTime::from_timestamp(millis.div_euclid(1000), 0).unwrap_or_default();
    let (mut out, mut rest) = (String::new(), layout);
    while let Some(next) = rest.chars().next() {
        if let Some(word) = word(rest) {
            _ = put(&mut out, word, at);
            rest = &rest[word.len()..];
        } else if let Some(digits) = fraction(rest) {
            // Zeros are written, nines only where they are not zero.
            if rest.as_bytes().get(1) == Some(&b'0') {
                out.push_str(&rest[..=digits]);
            }
            rest = &rest[digits + 1..];
        } else {
            out.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    out
}

fn word(rest: &str) -> Option<&'static str> {
    // `_2006` is an underscore and the year.
    if rest.starts_with("_2006") {
        return None;
    }
    let found = WORDS.into_iter().find(|w| rest.starts_with(w))?;
    // "Jan" and "Mon" are words, not beginnings of words.
    let goes_on = rest[found.len()..].starts_with(|c: char| c.is_ascii_lowercase());
    (!(matches!(found, "Jan" | "Mon") && goes_on)).then_some(found)
}

/// `.000` or `,999`: how many digits.
fn fraction(rest: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    let digit = *bytes.get(1).filter(|d| matches!(d, b'0' | b'9'))?;
    let digits = bytes[1..].iter().take_while(|b| **b == digit).count();
    let ends = !bytes.get(digits + 1).is_some_and(u8::is_ascii_digit);
    (matches!(bytes[0], b'.' | b',') && ends).then_some(digits)
}

fn put(out: &mut String, word: &str, at: DateTime<Utc>) -> std::fmt::Result {
    let (is_pm, hour) = at.hour12();
    match word {
        "January" => write!(out, "{}", at.format("%B")),
        "Jan" => write!(out, "{}", at.format("%b")),
        "Monday" => write!(out, "{}", at.format("%A")),
        "Mon" => write!(out, "{}", at.format("%a")),
        "MST" => out.write_str("UTC"),
        "2006" => write!(out, "{:04}", at.year()),
        "06" => write!(out, "{:02}", at.year().rem_euclid(100)),
        "01" => write!(out, "{:02}", at.month()),
        "1" => write!(out, "{}", at.month()),
        "02" => write!(out, "{:02}", at.day()),
        "_2" => write!(out, "{:2}", at.day()),
        "2" => write!(out, "{}", at.day()),
        "002" => write!(out, "{:03}", at.ordinal()),
        "__2" => write!(out, "{:3}", at.ordinal()),
        "15" => write!(out, "{:02}", at.hour()),
        "03" => write!(out, "{hour:02}"),
        "3" => write!(out, "{hour}"),
        "04" => write!(out, "{:02}", at.minute()),
        "4" => write!(out, "{}", at.minute()),
        "05" => write!(out, "{:02}", at.second()),
        "5" => write!(out, "{}", at.second()),
        "PM" => out.write_str(if is_pm { "PM" } else { "AM" }),
        "pm" => out.write_str(if is_pm { "pm" } else { "am" }),
        zone if zone.starts_with('Z') => out.write_str("Z"),
        zone => out.write_str(&zone.replace('-', "+").replace('7', "0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn macros_stand_for_this_firing() {
        let at = crate::time::parse("2027-03-04T15:06:07.999Z").unwrap();
        let macros = Macros { scheduled: at, now: at + 60_000, index: 7, run_id: "r-1" };
        for (text, expected) in [
            ("[[ScheduledTime]]", "20270304150607"),
            ("[[CurrentTime]]", "20270304150707"),
            ("run [[Index]] of [[RunUUID]]", "run 7 of r-1"),
            ("[[ScheduledTime.2006-01-02T15:04:05Z07:00]]", "2027-03-04T15:06:07Z"),
            ("[[CurrentTime.Mon Jan _2 03:04:05.000 PM -0700 MST 2006]]", "Thu Mar  4 03:07:07.000 PM +0000 UTC 2027"),
            ("[[ScheduledTime.Monday, January 2, 06; day 002 3:4:5pm]]", "Thursday, March 4, 27; day 063 3:6:7pm"),
            ("[[ScheduledTime._2006/Month]]", "_2027/Month"),
            ("[[ScheduledTime.15.999]]", "15"),
            ("[[1, 2], [3]] [[Else]] [[Index", "[[1, 2], [3]] [[Else]] [[Index"),
            ("[[ScheduledTime.é]]", "é"),
        ] {
            assert_eq!(macros.text(text), expected, "{text}");
        }
        let mut value = json!({"a": ["[[Index]]", 1], "b": {"c": "[[Index]]"}});
        macros.replace(&mut value);
        assert_eq!(value, json!({"a": ["7", 1], "b": {"c": "7"}}));
    }
}
