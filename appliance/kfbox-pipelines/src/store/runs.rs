//! Runs, their tasks, and the cache of finished steps.

use super::{
    Store, documents, documents_text, json,
    listing::{Listing, Page},
};
use crate::{
    engine::model::{RunState, State, StateChange, Task, TaskError},
    error::{ApiError, ApiResult, Code},
    ports::LineageContexts,
    spec::Documents,
};
use kfbox_db::rusqlite::{self, OptionalExtension, Row, params};
use serde_json::{Map, Value};

/// A run without its tasks.
#[derive(Debug, Clone)]
pub struct RunRow {
    pub id: String,
    pub namespace: String,
    pub experiment_id: String,
    pub display_name: String,
    pub description: String,
    pub storage_state: String,
    pub state: State,
    pub created_at: i64,
    pub scheduled_at: i64,
    pub finished_at: Option<i64>,
    pub service_account: String,
    pub pipeline_id: String,
    pub pipeline_version_id: String,
    pub recurring_run_id: String,
    pub pipeline_name: String,
    /// Where this run's artifacts go, without a trailing slash.
    pub pipeline_root: String,
    pub spec: Documents,
    /// As the caller gave it: `{parameters, pipeline_root}`.
    pub runtime_config: Value,
    pub error: Option<TaskError>,
    pub state_history: Vec<StateChange>,
    pub contexts: LineageContexts,
}

#[derive(Debug, Clone)]
pub struct CacheEntry {
    pub run_id: String,
    pub task_id: String,
    pub outputs: crate::engine::model::Io,
    pub execution_id: i64,
}

const RUN: &str = "namespace, experiment_id, display_name, description, storage_state, state, created_at, scheduled_at, \
                   finished_at, service_account, pipeline_id, pipeline_version_id, recurring_run_id, pipeline_name, \
                   pipeline_root, spec, runtime_config, error, state_history, context_ids";

fn run(row: &Row<'_>) -> rusqlite::Result<RunRow> {
    let finished: i64 = row.get(10)?;
    let contexts: (i64, i64) = serde_json::from_str(&row.get::<_, String>(21)?).unwrap_or_default();
    Ok(RunRow {
        id: row.get(1)?,
        namespace: row.get(2)?,
        experiment_id: row.get(3)?,
        display_name: row.get(4)?,
        description: row.get(5)?,
        storage_state: row.get(6)?,
        state: State::parse(&row.get::<_, String>(7)?),
        created_at: row.get(8)?,
        scheduled_at: row.get(9)?,
        finished_at: (finished > 0).then_some(finished),
        service_account: row.get(11)?,
        pipeline_id: row.get(12)?,
        pipeline_version_id: row.get(13)?,
        recurring_run_id: row.get(14)?,
        pipeline_name: row.get(15)?,
        pipeline_root: row.get(16)?,
        spec: documents(&row.get::<_, String>(17)?),
        runtime_config: json(&row.get::<_, String>(18)?),
        error: serde_json::from_str(&row.get::<_, String>(19)?).ok(),
        state_history: serde_json::from_str(&row.get::<_, String>(20)?).unwrap_or_default(),
        contexts: LineageContexts { pipeline: contexts.0, run: contexts.1 },
    })
}

fn text<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".into())
}

/// URIs of artifacts that are not in the run's own folder.
fn borrowed(root: &str, tasks: &[Task]) -> Vec<String> {
    let own = format!("{root}/");
    let all = tasks.iter().flat_map(|t| t.inputs.artifacts.values().chain(t.outputs.artifacts.values())).flatten();
    let mut uris: Vec<String> = all.map(|a| &a.uri).filter(|u| !u.starts_with(&own)).cloned().collect();
    uris.sort_unstable();
    uris.dedup();
    uris
}

impl Store {
    pub async fn run(&self, id: &str) -> ApiResult<Option<RunRow>> {
        self.one(format!("SELECT 0, id, {RUN} FROM runs WHERE id = ?1"), vec![id.into()], run).await
    }

    pub async fn runs(&self, listing: Listing) -> ApiResult<Page<RunRow>> {
        self.page(listing, RUN, run).await
    }

    /// Ids of the runs that the engine has to carry on with.
    pub async fn open_runs(&self) -> ApiResult<Vec<String>> {
        self.db
            .read(|c| {
                let mut statement = c.prepare(
                    "SELECT id FROM runs WHERE state IN ('PENDING', 'RUNNING', 'CANCELING') ORDER BY created_at",
                )?;
                let ids = statement.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
                Ok(ids)
            })
            .await
    }

    pub async fn tasks(&self, run_id: &str) -> ApiResult<Vec<Task>> {
        let run_id = run_id.to_owned();
        let bodies: Vec<String> = self
            .db
            .read(move |c| {
                let mut statement = c.prepare_cached("SELECT body FROM tasks WHERE run_id = ?1 ORDER BY rowid")?;
                let bodies = statement.query_map([run_id], |r| r.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
                Ok::<_, ApiError>(bodies)
            })
            .await?;
        bodies
            .iter()
            .map(|b| serde_json::from_str(b).map_err(|e| ApiError::internal("reading a stored task", e)))
            .collect()
    }

    pub async fn task(&self, id: &str) -> ApiResult<Option<Task>> {
        let body =
            self.one("SELECT body FROM tasks WHERE id = ?1".into(), vec![id.into()], |r| r.get::<_, String>(0)).await?;
        body.map(|b| serde_json::from_str(&b).map_err(|e| ApiError::internal("reading a stored task", e))).transpose()
    }

    pub async fn create_run(&self, new: RunRow) -> ApiResult<RunRow> {
        self.db
            .write(move |tx| {
                let contexts = text(&(new.contexts.pipeline, new.contexts.run));
                tx.execute(
                    &format!("INSERT INTO runs (id, {RUN}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,?21)"),
                    params![
                        new.id,
                        new.namespace,
                        new.experiment_id,
                        new.display_name,
                        new.description,
                        new.storage_state,
                        new.state.name(),
                        new.created_at,
                        new.scheduled_at,
                        new.finished_at.unwrap_or(0),
                        new.service_account,
                        new.pipeline_id,
                        new.pipeline_version_id,
                        new.recurring_run_id,
                        new.pipeline_name,
                        new.pipeline_root,
                        documents_text(&new.spec),
                        new.runtime_config.to_string(),
                        text(&new.error),
                        text(&new.state_history),
                        contexts
                    ],
                )?;
                tx.execute("UPDATE experiments SET last_run_created_at = ?2 WHERE id = ?1", params![new.experiment_id, new.created_at])?;
                Ok(new)
            })
            .await
    }

    /// One step of a run: the run's own state, the tasks that changed, those that a retry takes away, and what may now
    /// be reused. All or nothing.
    pub(crate) async fn save(
        &self,
        run: &RunState,
        changed: Vec<Task>,
        removed: Vec<String>,
        cached: Vec<(String, String, CacheEntry)>,
    ) -> ApiResult<()> {
        let id = run.id.clone();
        let (state, finished) = (run.state.name(), run.finished_at.unwrap_or(0));
        let (error, history) = (text(&run.error), text(&run.history));
        let contexts = text(&(run.contexts.pipeline, run.contexts.run));
        let borrowed = borrowed(&run.pipeline_root, &changed);
        self.db
            .write(move |tx| {
                let known = tx.execute(
                    "UPDATE runs SET
                        -- A request to cancel that came between is not lost.
                        state = CASE WHEN state = 'CANCELING' AND ?2 IN ('PENDING', 'RUNNING') AND finished_at = 0 THEN state ELSE ?2 END,
                        finished_at = ?3, error = ?4, state_history = ?5, context_ids = ?6 WHERE id = ?1",
                    params![id, state, finished, error, history, contexts],
                )?;
                if known == 0 {
                    return Err(ApiError::not_found("run", &id));
                }
                for task in removed {
                    tx.execute("DELETE FROM tasks WHERE id = ?1", [task])?;
                }
                for task in &changed {
                    tx.prepare_cached("INSERT INTO tasks (id, run_id, body) VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE SET body = excluded.body")?
                        .execute(params![task.id, id, text(task)])?;
                }
                for uri in borrowed {
                    tx.prepare_cached("INSERT OR IGNORE INTO borrowed (run_id, uri) VALUES (?1, ?2)")?
                        .execute([&id, &uri])?;
                }
                for (namespace, fingerprint, entry) in cached {
                    tx.execute(
                        "INSERT OR REPLACE INTO cache (namespace, fingerprint, run_id, task_id, outputs, execution_id, created_at)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                        params![namespace, fingerprint, entry.run_id, entry.task_id, text(&entry.outputs), entry.execution_id, crate::time::now()],
                    )?;
                }
                Ok(())
            })
            .await
    }

    pub async fn cached(&self, namespace: &str, fingerprint: &str) -> ApiResult<Option<CacheEntry>> {
        let (namespace, fingerprint) = (namespace.to_owned(), fingerprint.to_owned());
        self.db
            .read(move |c| {
                let found = c
                    .query_row(
                        "SELECT run_id, task_id, outputs, execution_id FROM cache WHERE namespace = ?1 AND fingerprint = ?2",
                        [namespace, fingerprint],
                        |r| Ok((r.get(0)?, r.get(1)?, r.get::<_, String>(2)?, r.get(3)?)),
                    )
                    .optional()?;
                Ok(found.and_then(|(run_id, task_id, outputs, execution_id)| {
                    let outputs = serde_json::from_str(&outputs).ok()?;
                    Some(CacheEntry { run_id, task_id, outputs, execution_id })
                }))
            })
            .await
    }

    /// A cached result whose artifacts are gone.
    pub async fn forget_cached(&self, namespace: &str, fingerprint: &str) -> ApiResult<()> {
        let (namespace, fingerprint) = (namespace.to_owned(), fingerprint.to_owned());
        self.db
            .write(move |tx| {
                tx.execute("DELETE FROM cache WHERE namespace = ?1 AND fingerprint = ?2", [namespace, fingerprint])?;
                Ok(())
            })
            .await
    }

    pub async fn set_run_storage(&self, id: &str, state: &'static str) -> ApiResult<()> {
        let id = id.to_owned();
        self.db
            .write(move |tx| {
                Ok(tx.execute("UPDATE runs SET storage_state = ?2 WHERE id = ?1", params![id, state]).map(drop)?)
            })
            .await
    }

    /// Stored first, then the engine is told: a terminated run stays terminated over a restart.
    pub async fn request_cancel(&self, id: &str) -> ApiResult<()> {
        let id = id.to_owned();
        self.db
            .write(move |tx| {
                let (state, history): (String, String) =
                    tx.query_row("SELECT state, state_history FROM runs WHERE id = ?1", [&id], |r| {
                        Ok((r.get(0)?, r.get(1)?))
                    })?;
                let state = State::parse(&state);
                if state == State::Canceling {
                    return Ok(());
                }
                if state.is_final() {
                    return Err(ApiError::new(
                        Code::FailedPrecondition,
                        format!("the run has already ended: it is {}", state.name()),
                    ));
                }
                let mut history: Vec<StateChange> = serde_json::from_str(&history).unwrap_or_default();
                history.push(StateChange::now(State::Canceling));
                tx.execute(
                    "UPDATE runs SET state = ?2, state_history = ?3 WHERE id = ?1",
                    params![id, State::Canceling.name(), text(&history)],
                )?;
                Ok(())
            })
            .await
    }

    /// With what could be reused of it. Its artifacts are left over, for whoever clears them away.
    pub async fn delete_run(&self, id: &str) -> ApiResult<()> {
        let id = id.to_owned();
        self.db
            .write(move |tx| {
                tx.execute(
                    "INSERT OR IGNORE INTO leftovers (run_id, namespace, root)
                     SELECT id, namespace, pipeline_root FROM runs WHERE id = ?1",
                    [&id],
                )?;
                tx.execute("DELETE FROM cache WHERE run_id = ?1", [&id])?;
                tx.execute("DELETE FROM runs WHERE id = ?1", [&id])?;
                Ok(())
            })
            .await
    }

    /// Run counts by state, in namespaces.
    pub async fn count_runs(&self, namespaces: Vec<String>) -> ApiResult<Map<String, Value>> {
        self.db
            .read(move |c| {
                let mut counts = Map::new();
                let mut statement = c.prepare("SELECT state, count(*) FROM runs WHERE namespace = ?1 AND storage_state = 'AVAILABLE' GROUP BY state")?;
                for namespace in &namespaces {
                    let rows = statement.query_map([namespace], |r| Ok((r.get::<_, String>(0)?, r.get::<_, i64>(1)?)))?;
                    for row in rows {
                        let (state, count) = row?;
                        let sum = counts.get(&state).and_then(Value::as_i64).unwrap_or(0) + count;
                        counts.insert(state, sum.into());
                    }
                }
                Ok(counts)
            })
            .await
    }
}
