//! Recurring runs. Invariants: what is due is decided from the database alone; a firing is stored before its run is; the
//! owner's rights are asked anew each time, and an owner whose account is disabled or gone starts nothing. A firing that
//! is refused is over: it is not made up for when the owner is back. The refusal is in the recurring run's `error`.

mod macros;
mod trigger;

pub(crate) use trigger::Trigger;

use crate::{
    Inner,
    error::{ApiError, ApiResult, Code},
    rest,
    store::{RecurringRow, RunRow},
    time,
};
use kfbox_base::UserInfo;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::{Notify, broadcast};

/// Firings that nobody has looked at yet; a reader who lags looks at all.
const FIRED: usize = 256;

pub(crate) struct Schedule {
    changed: Notify,
    /// The ids of recurring runs that fired.
    fired: broadcast::Sender<String>,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { changed: Notify::new(), fired: broadcast::Sender::new(FIRED) }
    }
}

impl Schedule {
    /// Something was created, enabled, disabled or deleted.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    pub(crate) fn fired(&self) -> broadcast::Receiver<String> {
        self.fired.subscribe()
    }

    fn tell_fired(&self, id: &str) {
        // Nobody listening is fine.
        drop(self.fired.send(id.to_owned()));
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

/// What a recurring run does next.
enum Plan {
    At(i64),
    Now(i64),
    Never,
}

/// When it fires, seen from now.
fn plan(row: &RecurringRow, now: i64) -> Plan {
    let last = row.body.get("kfbox_last").and_then(Value::as_i64);
    if is_once(row) {
        return if last.is_some() { Plan::Never } else { Plan::Now(row.created_at) };
    }
    let Some(Ok(trigger)) = rest::field(&row.body, "trigger").map(Trigger::parse) else { return Plan::Never };
    let catch_up = rest::field(&row.body, "no_catchup").and_then(Value::as_bool) != Some(true);
    match trigger.due(row.created_at, last, now, catch_up) {
        Some(at) => Plan::Now(at),
        None => trigger.next(row.created_at, last).map_or(Plan::Never, Plan::At),
    }
}

/// A single run, at once.
pub(crate) fn is_once(row: &RecurringRow) -> bool {
    row.body.get("kfbox_once") == Some(&Value::Bool(true))
}

/// The moment of the next firing, were it enabled.
pub(crate) fn next(row: &RecurringRow) -> Option<i64> {
    match plan(row, time::now()) {
        Plan::At(at) | Plan::Now(at) => Some(at),
        Plan::Never => None,
    }
}

/// Fires what is due; returns when to look again.
async fn consider(inner: &Inner, mut row: RecurringRow, now: i64) -> Option<i64> {
    let at = match plan(&row, now) {
        Plan::Now(at) => at,
        Plan::At(at) => return Some(at),
        Plan::Never => return None,
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
    let index = row.body.get("kfbox_index").and_then(Value::as_i64).unwrap_or(0) + 1;
    row.body["kfbox_last"] = json!(at);
    row.body["kfbox_index"] = json!(index);
    match inner.store.put_recurring_state(&row.id, &row.body).await {
        Ok(true) => {}
        Ok(false) => return None,
        Err(error) => {
            tracing::warn!(%error, recurring_run = %row.id, "a recurring run cannot be stored");
            return Some(now + 5000);
        }
    }
    let refused = fire(inner, &row, at, index).await.err();
    if let Some(error) = &refused {
        tracing::warn!(%error, recurring_run = %row.id, "a recurring run could not start its run");
    }
    note(inner, &mut row, refused).await;
    match plan(&row, now) {
        Plan::At(at) | Plan::Now(at) => Some(at),
        Plan::Never => None,
    }
}

/// Keeps why the last firing was refused, or that it was not.
async fn note(inner: &Inner, row: &mut RecurringRow, refused: Option<ApiError>) {
    let error = refused.map(|e| json!({"code": e.code as i32, "message": e.message, "details": []}));
    if row.body.get("error") != error.as_ref() {
        let Some(body) = row.body.as_object_mut() else { return };
        match error {
            Some(error) => drop(body.insert("error".into(), error)),
            None => drop(body.remove("error")),
        }
        if let Err(error) = inner.store.put_recurring_state(&row.id, &row.body).await {
            tracing::warn!(%error, recurring_run = %row.id, "a refusal cannot be stored");
        }
    }
    inner.schedule.tell_fired(&row.id);
}

async fn open_runs(inner: &Inner, id: &str) -> ApiResult<i64> {
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

/// Who a recurring run acts as: who made it, as they are now.
pub(crate) fn owner(inner: &Inner, row: &RecurringRow) -> ApiResult<UserInfo> {
    let owner: UserInfo = serde_json::from_value(row.body.get("kfbox_owner").cloned().unwrap_or_default())
        .map_err(|e| ApiError::internal("reading a recurring run's owner", e))?;
    let current = inner.deps.people.current(&owner);
    current.map_err(|why| {
        ApiError::new(Code::PermissionDenied, format!("no run is started for {}: {why}", owner.username))
    })
}

async fn fire(inner: &Inner, row: &RecurringRow, at: i64, index: i64) -> ApiResult<RunRow> {
    let owner = owner(inner, row)?;
    let mut body = row.body.clone();
    body["display_name"] = match row.resource() {
        Some(name) => json!(resource_run_name(name, index)),
        None => json!(format!("{} {}", row.display_name, time::format(at))),
    };
    body["experiment_id"] = json!(row.experiment_id);
    let mut run = rest::new_run(inner, &owner, &body, &row.experiment_id).await?;
    let macros = macros::Macros { scheduled: at, now: run.created_at, index, run_id: &run.id };
    if let Some(parameters) = run.runtime_config.get_mut("parameters") {
        macros.replace(parameters);
    }
    row.id.clone_into(&mut run.recurring_run_id);
    run.scheduled_at = at;
    rest::submit(inner, run).await
}

/// `NAME-INDEX-HASH`, as upstream's controller names what a ScheduledWorkflow starts; the hash is FNV-1a of 32 bits.
fn resource_run_name(name: &str, index: i64) -> String {
    let id = format!("{name}-{index}");
    let hash = id.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{id}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_resources_are_named_as_upstream_names_them() {
        // The published test values of FNV-1a.
        assert_eq!(resource_run_name("every-minute", 1).split('-').count(), 4);
        let hash = |text: &str| text.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        assert_eq!((hash(""), hash("a"), hash("foobar")), (0x811c_9dc5, 0xe40c_292c, 0xbf9c_f968));
    }
}
