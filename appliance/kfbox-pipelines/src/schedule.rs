//! Recurring runs with a periodic schedule (`interval_second`, with optional start and end). Invariants: what is due is
//! decided from the database alone; a firing is stored before its run is; the owner's rights are asked anew each time.

use crate::{Inner, rest, store::RecurringRow, time};
use kfbox_base::UserInfo;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::Notify;

/// The shortest interval; upstream's is one second, which only fills the disk.
const SHORTEST: i64 = 10;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Periodic {
    interval_ms: i64,
    start: Option<i64>,
    end: Option<i64>,
}

impl Periodic {
    pub(crate) fn parse(trigger: &Value) -> Result<Self, String> {
        let Some(schedule) = rest::field(trigger, "periodic_schedule") else {
            return Err("the recurring run has no trigger: give trigger.periodic_schedule".into());
        };
        let seconds = rest::field(schedule, "interval_second");
        let seconds = seconds.and_then(|v| v.as_i64().or_else(|| v.as_str()?.parse().ok())).unwrap_or(0);
        if !(SHORTEST..=366 * 86_400).contains(&seconds) {
            return Err(format!("interval_second should be from {SHORTEST} to a year, and is {seconds}"));
        }
        let moment = |name: &str| match rest::field(schedule, name) {
            None => Ok(None),
            Some(value) => match value.as_str().and_then(time::parse) {
                Some(0) | None if value.as_str() == Some("1970-01-01T00:00:00Z") => Ok(None),
                Some(at) => Ok(Some(at)),
                None => Err(format!("{name} is no RFC 3339 time")),
            },
        };
        Ok(Self { interval_ms: seconds * 1000, start: moment("start_time")?, end: moment("end_time")? })
    }

    /// The first moment after `last` (or after creation) at which it fires.
    fn next(&self, created: i64, last: Option<i64>) -> Option<i64> {
        let at = match (last, self.start) {
            (Some(last), _) => last + self.interval_ms,
            (None, Some(start)) => start,
            (None, None) => created + self.interval_ms,
        };
        self.end.is_none_or(|end| at <= end).then_some(at)
    }

    /// The firing that is due at `now`, if any; without catching up, the latest of several.
    fn due(&self, created: i64, last: Option<i64>, now: i64, catch_up: bool) -> Option<i64> {
        let first = self.next(created, last).filter(|at| *at <= now)?;
        if catch_up {
            return Some(first);
        }
        let now = self.end.map_or(now, |end| end.min(now));
        Some(first + (now - first) / self.interval_ms * self.interval_ms)
    }
}

#[derive(Default)]
pub(crate) struct Schedule {
    changed: Notify,
}

impl Schedule {
    /// Something was created, enabled, disabled or deleted.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }
}

/// Runs until shutdown.
pub(crate) async fn run(inner: Arc<Inner>) -> Result<(), kfbox_base::BoxError> {
    let shutdown = inner.tasks.shutdown();
    loop {
        let now = time::now();
        let mut next: Option<i64> = None;
        match inner.store.enabled_recurring().await {
            Ok(rows) => {
                for row in rows {
                    let at = consider(&inner, row, now).await;
                    next = next.into_iter().chain(at).min();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the recurring runs cannot be read; trying again");
                next = Some(now + 5000);
            }
        }
        let wait = async {
            match next {
                Some(at) => {
                    tokio::time::sleep(Duration::from_millis(u64::try_from(at - time::now()).unwrap_or(0).max(100)))
                        .await
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = inner.schedule.changed.notified() => {}
            () = wait => {}
        }
    }
}

/// Fires what is due; returns when to look again.
async fn consider(inner: &Inner, mut row: RecurringRow, now: i64) -> Option<i64> {
    let periodic = Periodic::parse(rest::field(&row.body, "trigger")?).ok()?;
    let last = row.body.get("kfbox_last").and_then(Value::as_i64);
    let catch_up = rest::field(&row.body, "no_catchup").and_then(Value::as_bool) != Some(true);
    let Some(at) = periodic.due(row.created_at, last, now, catch_up) else {
        return periodic.next(row.created_at, last);
    };
    let most = rest::field(&row.body, "max_concurrency")
        .and_then(|v| v.as_i64().or_else(|| v.as_str()?.parse().ok()))
        .unwrap_or(1)
        .max(1);
    match open_runs(inner, &row.id).await {
        // Looked at again soon; the firing stays due.
        Ok(open) if open >= most => return Some(now + 1000),
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(%error, "the open runs of a recurring run cannot be counted");
            return Some(now + 5000);
        }
    }
    row.body["kfbox_last"] = json!(at);
    if let Err(error) = inner.store.put_recurring(row.clone()).await {
        tracing::warn!(%error, recurring_run = %row.id, "a recurring run cannot be stored");
        return Some(now + 5000);
    }
    if let Err(error) = fire(inner, &row, at).await {
        tracing::warn!(%error, recurring_run = %row.id, "a recurring run could not start its run");
    }
    periodic.next(row.created_at, Some(at))
}

async fn open_runs(inner: &Inner, id: &str) -> crate::error::ApiResult<i64> {
    let id = id.to_owned();
    inner
        .store
        .db
        .read(move |c| {
            let sql = "SELECT count(*) FROM runs WHERE recurring_run_id = ?1 AND state IN ('PENDING', 'RUNNING', 'CANCELING')";
            Ok(c.query_row(sql, [id], |r| r.get(0))?)
        })
        .await
}

async fn fire(inner: &Inner, row: &RecurringRow, at: i64) -> crate::error::ApiResult<()> {
    let owner: UserInfo = serde_json::from_value(row.body.get("kfbox_owner").cloned().unwrap_or_default())
        .map_err(|e| crate::error::ApiError::internal("reading a recurring run's owner", e))?;
    let mut body = row.body.clone();
    body["display_name"] = json!(format!("{} {}", row.display_name, time::format(at)));
    body["experiment_id"] = json!(row.experiment_id);
    let mut run = rest::new_run(inner, &owner, &body, &row.experiment_id).await?;
    row.id.clone_into(&mut run.recurring_run_id);
    run.scheduled_at = at;
    rest::submit(inner, run).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_fires_once_an_interval_and_catches_up_only_if_asked() {
        let p = Periodic::parse(&json!({"periodic_schedule": {"interval_second": "60"}})).unwrap();
        assert_eq!(p.next(1000, None), Some(61_000));
        assert_eq!(p.due(1000, None, 60_999, true), None);
        assert_eq!(p.due(1000, None, 200_000, true), Some(61_000));
        assert_eq!(p.due(1000, None, 200_000, false), Some(181_000));
        assert_eq!(p.next(1000, Some(181_000)), Some(241_000));
        let ended = Periodic { end: Some(100_000), ..p };
        assert_eq!(ended.due(1000, None, 500_000, false), Some(61_000));
        assert_eq!(ended.next(1000, Some(61_000)), None);
        assert!(Periodic::parse(&json!({"periodic_schedule": {"interval_second": 1}})).is_err());
        assert!(Periodic::parse(&json!({})).is_err());
    }
}
