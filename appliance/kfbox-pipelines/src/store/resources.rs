//! Rows that show objects of the cluster: `Pipeline` and `PipelineVersion`. A row's id is its object's `uid`; what the
//! cluster no longer has, the database forgets.

use super::{
    PIPELINE, PipelineRow, Store, VersionRow, pipeline,
    pipelines::{insert_version, still_has},
    unique,
};
use crate::{
    error::{ApiError, ApiResult},
    time::format,
};
use kfbox_db::rusqlite::{self, OptionalExtension, Transaction, params};
use serde_json::{Value, json};
use std::collections::HashSet;

/// With its versions: they belong to it.
fn forget_pipeline(tx: &Transaction<'_>, id: &str) -> rusqlite::Result<()> {
    tx.execute("DELETE FROM pipeline_versions WHERE pipeline_id = ?1", [id])?;
    tx.execute("DELETE FROM pipelines WHERE id = ?1", [id])?;
    Ok(())
}

/// Of a status: a schedule has at most so many runs at once.
const MAX_ACTIVE: i64 = 100;

/// `WorkflowStatus`, with Argo's words for the phase.
fn workflow_status(row: &rusqlite::Row<'_>) -> rusqlite::Result<Value> {
    let (id, namespace, name, state): (String, String, String, String) =
        (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
    let (created, scheduled, finished): (i64, i64, i64) = (row.get(4)?, row.get(5)?, row.get(6)?);
    let phase = match state.as_str() {
        "SUCCEEDED" => "Succeeded",
        "FAILED" => "Failed",
        "CANCELED" => "Error",
        "PENDING" => "Pending",
        _ => "Running",
    };
    let moment = |at: i64| format(at / 1000 * 1000).replace(".000Z", "Z");
    let index = name.rsplit('-').nth(1).and_then(|n| n.parse::<i64>().ok());
    let mut status = json!({
        "name": name, "namespace": namespace, "uid": id, "phase": phase,
        "createdAt": moment(created), "startedAt": moment(created), "scheduledAt": moment(scheduled),
    });
    if finished > 0 {
        status["finishedAt"] = json!(moment(finished));
    }
    if let Some(index) = index {
        status["index"] = json!(index);
    }
    Ok(status)
}

impl Store {
    /// A pipeline as the cluster has it, new or changed.
    pub async fn put_resource_pipeline(&self, row: PipelineRow) -> ApiResult<()> {
        self.db
            .write(move |tx| {
                // One of the same name that the cluster had before, and whose end was not seen.
                let mut statement = tx.prepare_cached(
                    "SELECT id FROM pipelines WHERE namespace = ?1 AND name = ?2 AND id <> ?3 AND resource <> ''",
                )?;
                let values = [&row.namespace, &row.name, &row.id];
                let old: Vec<String> = statement.query_map(values, |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
                for id in old {
                    forget_pipeline(tx, &id)?;
                }
                tx.execute(
                    "INSERT INTO pipelines (id, namespace, name, display_name, description, created_at, tags, resource)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                     ON CONFLICT (id) DO UPDATE SET display_name = excluded.display_name,
                         description = excluded.description, tags = excluded.tags",
                    params![
                        row.id,
                        row.namespace,
                        row.name,
                        row.display_name,
                        row.description,
                        row.created_at,
                        row.tags.to_string(),
                        row.resource
                    ],
                )
                .map_err(|e| {
                    unique(e, || format!("a pipeline named {} already exists in {}", row.name, row.namespace))
                })?;
                Ok(())
            })
            .await
    }

    /// A version as the cluster has it. What it runs never changes.
    pub async fn put_resource_version(&self, row: VersionRow) -> ApiResult<()> {
        self.db
            .write(move |tx| {
                let changed = tx.execute(
                    "UPDATE pipeline_versions SET display_name = ?2, tags = ?3 WHERE id = ?1",
                    params![row.id, row.display_name, row.tags.to_string()],
                )?;
                if changed == 0 {
                    tx.execute(
                        "DELETE FROM pipeline_versions WHERE pipeline_id = ?1 AND name = ?2 AND resource = ?3",
                        params![row.pipeline_id, row.name, row.resource],
                    )?;
                    insert_version(tx, &row)?;
                }
                Ok(())
            })
            .await
    }

    /// The pipeline of that name that the cluster has.
    pub async fn resource_pipeline(&self, namespace: &str, name: &str) -> ApiResult<Option<PipelineRow>> {
        let sql =
            format!("SELECT 0, id, {PIPELINE} FROM pipelines WHERE namespace = ?1 AND name = ?2 AND resource <> ''");
        self.one(sql, vec![namespace.into(), name.into()], pipeline).await
    }

    /// Refuses for a pipeline that has versions.
    pub async fn without_versions(&self, id: &str) -> ApiResult<()> {
        let id = id.to_owned();
        let sql = "SELECT count(*) FROM pipeline_versions WHERE pipeline_id = ?1";
        let versions: i64 = self.db.read(move |c| c.query_row(sql, [id], |r| r.get(0)).map_err(ApiError::from)).await?;
        if versions == 0 { Ok(()) } else { Err(still_has(versions)) }
    }

    /// Ids and names of those of a pipeline's versions that the cluster has.
    pub async fn resource_versions_of(&self, id: &str) -> ApiResult<Vec<(String, String)>> {
        let id = id.to_owned();
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT id, resource FROM pipeline_versions WHERE pipeline_id = ?1 AND resource <> ''",
                )?;
                let rows = statement.query_map([id], |r| Ok((r.get(0)?, r.get(1)?)))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// The recurring run that started a run.
    pub async fn recurring_run_of(&self, run_id: &str) -> ApiResult<Option<String>> {
        let id = run_id.to_owned();
        let sql = "SELECT recurring_run_id FROM runs WHERE id = ?1 AND recurring_run_id <> ''";
        self.db.read(move |c| Ok(c.query_row(sql, [id], |r| r.get(0)).optional()?)).await
    }

    /// The runs of a recurring run as a ScheduledWorkflow's status lists them: those that go on, and the newest `kept`
    /// that ended.
    pub async fn runs_of_recurring(&self, id: &str, kept: i64) -> ApiResult<(Vec<Value>, Vec<Value>)> {
        let id = id.to_owned();
        self.db
            .read(move |c| {
                let list = |ended: bool, limit: i64| -> rusqlite::Result<Vec<Value>> {
                    let not = if ended { "NOT" } else { "" };
                    let mut statement = c.prepare_cached(&format!(
                        "SELECT id, namespace, display_name, state, created_at, scheduled_at, finished_at FROM runs
                         WHERE recurring_run_id = ?1 AND state {not} IN ('PENDING', 'RUNNING', 'CANCELING')
                         ORDER BY scheduled_at DESC LIMIT ?2"
                    ))?;
                    let rows = statement.query_map(params![id, limit], workflow_status)?;
                    rows.collect()
                };
                Ok((list(false, MAX_ACTIVE)?, list(true, kept)?))
            })
            .await
    }

    pub async fn forget_resource_pipeline(&self, id: &str) -> ApiResult<()> {
        let id = id.to_owned();
        self.db.write(move |tx| forget_pipeline(tx, &id).map_err(ApiError::from)).await
    }

    /// Forgets what is of the cluster and is not among `there`.
    pub async fn keep_resource_pipelines(&self, there: HashSet<String>) -> ApiResult<()> {
        self.db
            .write(move |tx| {
                let mut statement = tx.prepare("SELECT id FROM pipelines WHERE resource <> ''")?;
                let known: Vec<String> = statement.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
                for id in known.iter().filter(|id| !there.contains(*id)) {
                    forget_pipeline(tx, id)?;
                }
                Ok(())
            })
            .await
    }

    pub async fn keep_resource_versions(&self, there: HashSet<String>) -> ApiResult<()> {
        self.db
            .write(move |tx| {
                let mut statement = tx.prepare("SELECT id FROM pipeline_versions WHERE resource <> ''")?;
                let known: Vec<String> = statement.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
                for id in known.iter().filter(|id| !there.contains(*id)) {
                    tx.execute("DELETE FROM pipeline_versions WHERE id = ?1", [id])?;
                }
                Ok(())
            })
            .await
    }

    pub async fn keep_resource_schedules(&self, there: HashSet<String>) -> ApiResult<()> {
        self.db
            .write(move |tx| {
                let mut statement = tx.prepare(
                    "SELECT id FROM recurring_runs WHERE json_extract(body, '$.kfbox_resource') IS NOT NULL",
                )?;
                let known: Vec<String> = statement.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
                for id in known.iter().filter(|id| !there.contains(*id)) {
                    tx.execute("DELETE FROM recurring_runs WHERE id = ?1", [id])?;
                }
                Ok(())
            })
            .await
    }
}
