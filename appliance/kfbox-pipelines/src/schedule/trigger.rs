//! When a recurring run fires: at an interval, or as a cron expression says. Upstream's controller reads cron expressions
//! with robfig/cron 1.2: seconds come first, the day of the week may be left out, and `@hourly` or `@every 1h30m` work.
//! Beyond upstream, `CRON_TZ=Europe/Berlin` before the expression names its time zone; without one it is UTC.
//! Source: kubeflow/pipelines `backend/src/crd/controller/scheduledworkflow/util`.

use crate::{rest, time};
use croner::{
    Cron,
    parser::{CronParser, Seconds},
};
use jiff::{SignedDuration, Timestamp, Zoned, tz::TimeZone};
use serde_json::Value;

/// The shortest interval in seconds; upstream's is one second, which only fills the disk.
const SHORTEST: i64 = 10;
const LONGEST: i64 = 366 * 86_400;
/// How many firings of an expression are looked at for its shortest interval.
const SAMPLED: usize = 60;

#[derive(Debug, Clone)]
pub(crate) struct Trigger {
    times: Times,
    start: Option<i64>,
    end: Option<i64>,
}

#[derive(Debug, Clone)]
enum Times {
    Every { millis: i64, at_start: bool },
    Cron { cron: Box<Cron>, zone: TimeZone },
}

impl Trigger {
    pub(crate) fn parse(trigger: &Value) -> Result<Self, String> {
        let (cron, periodic) = (rest::field(trigger, "cron_schedule"), rest::field(trigger, "periodic_schedule"));
        let (schedule, times) = match (cron, periodic) {
            (Some(_), Some(_)) => {
                return Err("the trigger has both a cron_schedule and a periodic_schedule: give one of them".into());
            }
            (Some(schedule), None) => {
                let text = rest::field(schedule, "cron").and_then(Value::as_str).unwrap_or_default();
                (schedule, expression(text)?)
            }
            (None, Some(schedule)) => {
                let seconds = rest::field(schedule, "interval_second");
                let seconds = seconds.and_then(|v| v.as_i64().or_else(|| v.as_str()?.parse().ok())).unwrap_or(0);
                if !(SHORTEST..=LONGEST).contains(&seconds) {
                    return Err(format!("interval_second should be from {SHORTEST} to a year, and is {seconds}"));
                }
                (schedule, Times::Every { millis: seconds * 1000, at_start: true })
            }
            (None, None) => {
                return Err("the recurring run has no trigger: give trigger.cron_schedule or \
                            trigger.periodic_schedule"
                    .into());
            }
        };
        let moment = |name: &str| match rest::field(schedule, name) {
            None => Ok(None),
            Some(value) => match value.as_str().and_then(time::parse) {
                Some(0) => Ok(None),
                Some(at) => Ok(Some(at)),
                None => Err(format!("{name} is no RFC 3339 time")),
            },
        };
        Ok(Self { times, start: moment("start_time")?, end: moment("end_time")? })
    }

    /// The first moment after `last` (or after the start, or creation) at which it fires.
    pub(super) fn next(&self, created: i64, last: Option<i64>) -> Option<i64> {
        let at = match &self.times {
            Times::Every { millis, at_start } => match (last, self.start) {
                (Some(last), _) => last + millis,
                (None, Some(start)) if *at_start => start,
                (None, start) => start.unwrap_or(created) + millis,
            },
            Times::Cron { cron, zone } => {
                let after = last.or(self.start).unwrap_or(created).max(self.start.unwrap_or(i64::MIN));
                millis(&cron.find_next_occurrence(&zoned(after, zone)?, false).ok()?)
            }
        };
        self.end.is_none_or(|end| at <= end).then_some(at)
    }

    /// The firing that is due at `now`, if any; without catching up, the latest of several.
    pub(super) fn due(&self, created: i64, last: Option<i64>, now: i64, catch_up: bool) -> Option<i64> {
        let first = self.next(created, last).filter(|at| *at <= now)?;
        if catch_up {
            return Some(first);
        }
        let until = self.end.map_or(now, |end| end.min(now));
        match &self.times {
            Times::Every { millis, .. } => Some(first + (until - first) / millis * millis),
            Times::Cron { cron, zone } => {
                let latest = cron.find_previous_occurrence(&zoned(until, zone)?, true).ok()?;
                Some(millis(&latest).max(first))
            }
        }
    }
}

fn zoned(at: i64, zone: &TimeZone) -> Option<Zoned> {
    Some(Timestamp::from_millisecond(at).ok()?.to_zoned(zone.clone()))
}

fn millis(at: &Zoned) -> i64 {
    at.timestamp().as_millisecond()
}

fn expression(text: &str) -> Result<Times, String> {
    let mut text = text.trim();
    let mut zone = TimeZone::UTC;
    for prefix in ["CRON_TZ=", "TZ="] {
        if let Some(rest) = text.strip_prefix(prefix) {
            let (name, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            zone = TimeZone::get(name).map_err(|_| format!("the cron expression names no time zone: {name:?}"))?;
            text = rest.trim();
        }
    }
    if let Some(every) = text.strip_prefix("@every ") {
        let refused = || format!("{text:?} is no interval from {SHORTEST} seconds to a year, such as \"@every 1h30m\"");
        let every: SignedDuration = every.trim().parse().map_err(|_| refused())?;
        return match every.as_secs() {
            seconds @ SHORTEST..=LONGEST => Ok(Times::Every { millis: seconds * 1000, at_start: false }),
            _ => Err(refused()),
        };
    }
    let refused = |why: String| {
        format!(
            "the cron expression {text:?} cannot be used: {why}; its fields are seconds, minutes, hours, day of the \
             month, month, and day of the week, such as \"0 30 2 * * *\" for 02:30 each day"
        )
    };
    let six = match text.split_whitespace().count() {
        5 => format!("{text} *"),
        6 => text.to_owned(),
        1 if text.starts_with('@') => text.to_owned(),
        fields => return Err(refused(format!("it has {fields} fields"))),
    };
    let parser = CronParser::builder().seconds(Seconds::Optional).build();
    let cron = parser.parse(&six).map_err(|error| refused(error.to_string()))?;
    shortest(&cron, &zone).map_err(refused)?;
    Ok(Times::Cron { cron: Box::new(cron), zone })
}

/// An expression that fires too often is mostly one whose author took the first field for minutes.
fn shortest(cron: &Cron, zone: &TimeZone) -> Result<(), String> {
    let mut last = zoned(0, zone).ok_or("the time zone has no time")?;
    for n in 0..SAMPLED {
        let Ok(next) = cron.find_next_occurrence(&last, false) else {
            return if n == 0 { Err("it never comes true".into()) } else { Ok(()) };
        };
        if n > 0 && millis(&next) - millis(&last) < SHORTEST * 1000 {
            return Err(format!("it fires more often than every {SHORTEST} seconds"));
        }
        last = next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cron(text: &str) -> Result<Trigger, String> {
        Trigger::parse(&json!({"cron_schedule": {"cron": text}}))
    }

    fn at(text: &str) -> i64 {
        time::parse(text).unwrap()
    }

    #[test]
    fn an_interval_fires_once_and_catches_up_only_if_asked() {
        let p = Trigger::parse(&json!({"periodic_schedule": {"interval_second": "60"}})).unwrap();
        assert_eq!(p.next(1000, None), Some(61_000));
        assert_eq!(p.due(1000, None, 60_999, true), None);
        assert_eq!(p.due(1000, None, 200_000, true), Some(61_000));
        assert_eq!(p.due(1000, None, 200_000, false), Some(181_000));
        assert_eq!(p.next(1000, Some(181_000)), Some(241_000));
        let ended = Trigger { end: Some(100_000), ..p };
        assert_eq!(ended.due(1000, None, 500_000, false), Some(61_000));
        assert_eq!(ended.next(1000, Some(61_000)), None);
        assert!(Trigger::parse(&json!({"periodic_schedule": {"interval_second": 1}})).is_err());
        assert!(Trigger::parse(&json!({})).is_err());
        assert!(
            Trigger::parse(&json!({"periodic_schedule": {"interval_second": 60}, "cron_schedule": {"cron": "@daily"}}))
                .is_err()
        );
    }

    #[test]
    fn cron_expressions_begin_with_seconds_as_upstream() {
        let created = at("2027-03-01T10:02:03Z");
        for (text, first, second) in [
            ("0 30 2 * * *", "2027-03-02T02:30:00Z", "2027-03-03T02:30:00Z"),
            ("0 0 9 ? * 2-6", "2027-03-02T09:00:00Z", "2027-03-03T09:00:00Z"),
            ("0 */5 * * * *", "2027-03-01T10:05:00Z", "2027-03-01T10:10:00Z"),
            // Five fields: the day of the week is the one left out.
            ("15 0 * * *", "2027-03-01T11:00:15Z", "2027-03-01T12:00:15Z"),
            ("0 0 0 1 JAN *", "2028-01-01T00:00:00Z", "2029-01-01T00:00:00Z"),
            ("@hourly", "2027-03-01T11:00:00Z", "2027-03-01T12:00:00Z"),
            ("@every 1h30m", "2027-03-01T11:32:03Z", "2027-03-01T13:02:03Z"),
            ("CRON_TZ=Europe/Berlin 0 0 12 * * *", "2027-03-01T11:00:00Z", "2027-03-02T11:00:00Z"),
        ] {
            let trigger = cron(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            let next = trigger.next(created, None).unwrap();
            assert_eq!(time::format(next), first.replace('Z', ".000Z"), "{text}");
            let next = trigger.next(created, Some(next)).unwrap();
            assert_eq!(time::format(next), second.replace('Z', ".000Z"), "{text}");
        }
    }

    #[test]
    fn cron_expressions_catch_up_one_by_one_or_jump_to_the_latest() {
        let created = at("2027-03-01T10:02:03Z");
        let now = at("2027-03-01T13:30:00Z");
        let mut trigger = cron("0 0 * * * *").unwrap();
        assert_eq!(trigger.due(created, None, now, true), Some(at("2027-03-01T11:00:00Z")));
        assert_eq!(trigger.due(created, None, now, false), Some(at("2027-03-01T13:00:00Z")));
        assert_eq!(trigger.due(created, Some(at("2027-03-01T13:00:00Z")), now, false), None);
        trigger.end = Some(at("2027-03-01T12:30:00Z"));
        assert_eq!(trigger.due(created, None, now, false), Some(at("2027-03-01T12:00:00Z")));
        assert_eq!(trigger.next(created, Some(at("2027-03-01T12:00:00Z"))), None);
        trigger = Trigger { start: Some(at("2027-03-02T00:00:00Z")), end: None, ..trigger };
        assert_eq!(trigger.next(created, None), Some(at("2027-03-02T01:00:00Z")), "after its start, as upstream");
    }

    #[test]
    fn expressions_that_cannot_be_used_say_why() {
        for (text, why) in [
            ("", "0 fields"),
            ("* * * *", "4 fields"),
            ("0 0 0 30 2 *", "never"),
            ("*/5 * * * *", "more often than every 10 seconds"),
            ("0 61 * * * *", "cannot be used"),
            ("@sometimes", "cannot be used"),
            ("@every 1s", "no interval"),
            ("TZ=Nowhere/Else 0 0 0 * * *", "time zone"),
        ] {
            let error = cron(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
