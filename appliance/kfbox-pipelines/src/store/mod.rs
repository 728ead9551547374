//! `pipelines.db`: experiments, pipelines, versions, runs with their tasks, the cache. Storage knows no HTTP and no
//! rights; it answers `ApiError` only for what a caller's own input causes (a name taken, an id unknown).

pub mod listing;
mod metrics;
mod namespaces;
mod pipelines;
mod resources;
mod retention;
mod runs;
mod schema;

pub use metrics::Metric;
pub use namespaces::Forgotten;
pub use retention::Leftover;
pub use runs::{CacheEntry, RunRow};

use crate::{
    error::{ApiError, ApiResult, Code},
    spec::Documents,
};
use kfbox_db::{Database, rusqlite};
use listing::{Listing, Page};
use rand::Rng;
use rusqlite::{OptionalExtension, Row, params};
use serde_json::Value;
use std::path::Path;

pub const AVAILABLE: &str = "AVAILABLE";
pub const ARCHIVED: &str = "ARCHIVED";

#[derive(Clone)]
pub struct Store {
    pub(crate) db: Database,
    /// Signs page tokens and derives task tokens; made once, kept in the database.
    pub(crate) key: std::sync::Arc<[u8; 32]>,
}

#[derive(Debug, Clone)]
pub struct Experiment {
    pub id: String,
    pub namespace: String,
    pub display_name: String,
    pub description: String,
    pub created_at: i64,
    pub last_run_created_at: i64,
    pub storage_state: String,
}

#[derive(Debug, Clone)]
pub struct PipelineRow {
    pub id: String,
    pub namespace: String,
    pub name: String,
    pub display_name: String,
    pub description: String,
    pub created_at: i64,
    pub tags: Value,
    /// The name of the cluster's object that it shows; empty for one made by REST.
    pub resource: String,
}

#[derive(Debug, Clone)]
pub struct VersionRow {
    pub id: String,
    pub pipeline_id: String,
    pub name: String,
    pub display_name: String,
    pub description: String,
    pub created_at: i64,
    pub code_source_url: String,
    pub tags: Value,
    pub spec: Documents,
    /// As of [`PipelineRow`].
    pub resource: String,
}

#[derive(Debug, Clone)]
pub struct RecurringRow {
    pub id: String,
    pub namespace: String,
    pub experiment_id: String,
    pub display_name: String,
    pub created_at: i64,
    pub updated_at: i64,
    pub status: String,
    /// The request, and under names that begin with `kfbox_` what the daemon adds.
    pub body: Value,
}

impl RecurringRow {
    /// The name of the cluster's ScheduledWorkflow that it shows.
    pub fn resource(&self) -> Option<&str> {
        self.body.get("kfbox_resource")?.as_str()
    }
}

const EXPERIMENT: &str = "namespace, display_name, description, created_at, last_run_created_at, storage_state";
const PIPELINE: &str = "namespace, name, display_name, description, created_at, tags, resource";
const VERSION: &str = "pipeline_id, name, display_name, description, created_at, code_source_url, tags, spec, resource";
const RECURRING: &str = "namespace, experiment_id, display_name, created_at, updated_at, status, body";

pub(crate) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

pub(crate) fn documents_text(documents: &Documents) -> String {
    serde_json::json!({"pipeline_spec": documents.pipeline_spec, "platform_spec": documents.platform_spec}).to_string()
}

pub(crate) fn documents(text: &str) -> Documents {
    let mut value = json(text);
    let platform = value.get_mut("platform_spec").map(Value::take).filter(|v| !v.is_null());
    Documents {
        pipeline_spec: value.get_mut("pipeline_spec").map(Value::take).unwrap_or_default(),
        platform_spec: platform,
    }
}

// Every reader below is given rows whose first columns are the sort value and the id.
fn experiment(row: &Row<'_>) -> rusqlite::Result<Experiment> {
    Ok(Experiment {
        id: row.get(1)?,
        namespace: row.get(2)?,
        display_name: row.get(3)?,
        description: row.get(4)?,
        created_at: row.get(5)?,
        last_run_created_at: row.get(6)?,
        storage_state: row.get(7)?,
    })
}

fn pipeline(row: &Row<'_>) -> rusqlite::Result<PipelineRow> {
    Ok(PipelineRow {
        id: row.get(1)?,
        namespace: row.get(2)?,
        name: row.get(3)?,
        display_name: row.get(4)?,
        description: row.get(5)?,
        created_at: row.get(6)?,
        tags: json(&row.get::<_, String>(7)?),
        resource: row.get(8)?,
    })
}

fn version(row: &Row<'_>) -> rusqlite::Result<VersionRow> {
    Ok(VersionRow {
        id: row.get(1)?,
        pipeline_id: row.get(2)?,
        name: row.get(3)?,
        display_name: row.get(4)?,
        description: row.get(5)?,
        created_at: row.get(6)?,
        code_source_url: row.get(7)?,
        tags: json(&row.get::<_, String>(8)?),
        spec: documents(&row.get::<_, String>(9)?),
        resource: row.get(10)?,
    })
}

fn recurring(row: &Row<'_>) -> rusqlite::Result<RecurringRow> {
    Ok(RecurringRow {
        id: row.get(1)?,
        namespace: row.get(2)?,
        experiment_id: row.get(3)?,
        display_name: row.get(4)?,
        created_at: row.get(5)?,
        updated_at: row.get(6)?,
        status: row.get(7)?,
        body: json(&row.get::<_, String>(8)?),
    })
}

fn unique(error: rusqlite::Error, what: impl FnOnce() -> String) -> ApiError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::ConstraintViolation) => ApiError::new(Code::AlreadyExists, what()),
        _ => error.into(),
    }
}

impl Store {
    pub fn open(path: &Path) -> Result<Self, kfbox_db::OpenError> {
        let db = Database::open(path, &schema::SCHEMA)?;
        kfbox_db::fill_log(path);
        let mut fresh = [0u8; 32];
        rand::rng().fill_bytes(&mut fresh);
        let failed = |error: kfbox_db::Error| kfbox_db::OpenError::Sqlite {
            name: schema::SCHEMA.name,
            path: path.to_owned(),
            source: rusqlite::Error::ToSqlConversionFailure(Box::new(error)),
        };
        let key: [u8; 32] = db
            .write_blocking(move |tx| {
                tx.execute("INSERT OR IGNORE INTO secrets (name, value) VALUES ('signing', ?1)", [fresh.as_slice()])?;
                tx.query_row("SELECT value FROM secrets WHERE name = 'signing'", [], |r| r.get(0))
                    .map_err(kfbox_db::Error::from)
            })
            .map_err(failed)?;
        Ok(Self { db, key: std::sync::Arc::new(key) })
    }

    async fn one<T: Send + 'static>(
        &self,
        sql: String,
        values: Vec<String>,
        read: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> ApiResult<Option<T>> {
        self.db
            .read(move |c| {
                let values: Vec<&dyn rusqlite::ToSql> = values.iter().map(|v| v as &dyn rusqlite::ToSql).collect();
                Ok(c.query_row(&sql, values.as_slice(), read).optional()?)
            })
            .await
    }

    async fn page<T: Send + 'static>(
        &self,
        listing: Listing,
        columns: &'static str,
        read: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> ApiResult<Page<T>> {
        let key = self.key.clone();
        self.db.read(move |c| Ok(listing.run(c, key.as_slice(), columns, read)?)).await
    }

    // experiments

    pub async fn experiment(&self, id: &str) -> ApiResult<Option<Experiment>> {
        self.one(format!("SELECT 0, id, {EXPERIMENT} FROM experiments WHERE id = ?1"), vec![id.into()], experiment)
            .await
    }

    pub async fn experiments(&self, listing: Listing) -> ApiResult<Page<Experiment>> {
        self.page(listing, EXPERIMENT, experiment).await
    }

    pub async fn create_experiment(&self, new: Experiment) -> ApiResult<Experiment> {
        self.db
            .write(move |tx| {
                tx.execute(
                    "INSERT INTO experiments (id, namespace, display_name, description, created_at, last_run_created_at, storage_state)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![new.id, new.namespace, new.display_name, new.description, new.created_at, new.last_run_created_at, new.storage_state],
                )
                .map_err(|e| unique(e, || format!("an experiment named {} already exists in {}", new.display_name, new.namespace)))?;
                Ok(new)
            })
            .await
    }

    /// The experiment of runs that name none; made on first use.
    pub async fn default_experiment(&self, namespace: &str) -> ApiResult<Experiment> {
        let (namespace, id) = (namespace.to_owned(), uuid::Uuid::new_v4().to_string());
        self.db
            .write(move |tx| {
                tx.execute(
                    "INSERT OR IGNORE INTO experiments (id, namespace, display_name, description, created_at, last_run_created_at, storage_state)
                     VALUES (?1, ?2, 'Default', 'All runs created without specifying an experiment will be grouped here.', ?3, 0, 'AVAILABLE')",
                    params![id, namespace, crate::time::now()],
                )?;
                Ok(tx.query_row(
                    &format!("SELECT 0, id, {EXPERIMENT} FROM experiments WHERE namespace = ?1 AND display_name = 'Default'"),
                    [namespace],
                    experiment,
                )?)
            })
            .await
    }

    /// Archiving an experiment archives its runs; unarchiving it leaves them archived, as upstream.
    pub async fn set_experiment_storage(&self, id: &str, state: &'static str) -> ApiResult<()> {
        let id = id.to_owned();
        self.db
            .write(move |tx| {
                tx.execute("UPDATE experiments SET storage_state = ?2 WHERE id = ?1", params![id, state])?;
                if state == ARCHIVED {
                    tx.execute("UPDATE runs SET storage_state = ?2 WHERE experiment_id = ?1", params![id, state])?;
                }
                Ok(())
            })
            .await
    }

    pub async fn delete_experiment(&self, id: &str) -> ApiResult<()> {
        let id = id.to_owned();
        self.db
            .write(move |tx| {
                let runs: i64 =
                    tx.query_row("SELECT count(*) FROM runs WHERE experiment_id = ?1", [&id], |r| r.get(0))?;
                if runs > 0 {
                    return Err(ApiError::new(
                        Code::FailedPrecondition,
                        format!("the experiment still has {runs} runs; delete or move them first"),
                    ));
                }
                tx.execute("DELETE FROM recurring_runs WHERE experiment_id = ?1", [&id])?;
                tx.execute("DELETE FROM experiments WHERE id = ?1", [&id])?;
                Ok(())
            })
            .await
    }

    // recurring runs

    pub async fn recurring(&self, id: &str) -> ApiResult<Option<RecurringRow>> {
        self.one(format!("SELECT 0, id, {RECURRING} FROM recurring_runs WHERE id = ?1"), vec![id.into()], recurring)
            .await
    }

    pub async fn recurring_runs(&self, listing: Listing) -> ApiResult<Page<RecurringRow>> {
        self.page(listing, RECURRING, recurring).await
    }

    pub async fn put_recurring(&self, row: RecurringRow) -> ApiResult<RecurringRow> {
        self.db
            .write(move |tx| {
                tx.execute(
                    "INSERT OR REPLACE INTO recurring_runs (id, namespace, experiment_id, display_name, created_at, updated_at, status, body)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                    params![row.id, row.namespace, row.experiment_id, row.display_name, row.created_at, row.updated_at, row.status, row.body.to_string()],
                )?;
                Ok(row)
            })
            .await
    }

    /// False when it was disabled or deleted meanwhile; then nothing is stored.
    pub async fn put_recurring_state(&self, id: &str, body: &Value) -> ApiResult<bool> {
        let values = [id.to_owned(), body.to_string()];
        let sql = "UPDATE recurring_runs SET body = ?2 WHERE id = ?1 AND status = 'ENABLED'";
        self.db.write(move |tx| Ok(tx.execute(sql, values)? > 0)).await
    }

    /// Its state alone: a firing that is being stored is not undone.
    pub async fn switch_recurring(&self, id: &str, status: &'static str) -> ApiResult<()> {
        let id = id.to_owned();
        let sql = "UPDATE recurring_runs SET status = ?2, updated_at = ?3 WHERE id = ?1";
        self.db.write(move |tx| Ok(tx.execute(sql, params![id, status, crate::time::now()]).map(drop)?)).await
    }

    pub async fn enabled_recurring(&self) -> ApiResult<Vec<RecurringRow>> {
        self.db
            .read(|c| {
                let mut statement =
                    c.prepare(&format!("SELECT 0, id, {RECURRING} FROM recurring_runs WHERE status = 'ENABLED'"))?;
                let rows = statement.query_map([], recurring)?.collect::<rusqlite::Result<_>>()?;
                Ok(rows)
            })
            .await
    }

    pub async fn delete_recurring(&self, id: &str) -> ApiResult<()> {
        let id = id.to_owned();
        self.db.write(move |tx| Ok(tx.execute("DELETE FROM recurring_runs WHERE id = ?1", [id]).map(drop)?)).await
    }
}
