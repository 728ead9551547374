//! Recurring runs. Invariants: what is due is decided from the database alone; a firing is stored before its run is; the
//! owner's rights are asked anew each time.

mod trigger;

pub(crate) use trigger::Trigger;

use crate::{Inner, rest, store::RecurringRow, time};
use kfbox_base::UserInfo;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::Notify;

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
    let trigger = Trigger::parse(rest::field(&row.body, "trigger")?).ok()?;
    let last = row.body.get("kfbox_last").and_then(Value::as_i64);
    let catch_up = rest::field(&row.body, "no_catchup").and_then(Value::as_bool) != Some(true);
    let Some(at) = trigger.due(row.created_at, last, now, catch_up) else {
        return trigger.next(row.created_at, last);
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
    trigger.next(row.created_at, Some(at))
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
