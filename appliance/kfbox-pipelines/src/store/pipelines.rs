//! Pipelines and their versions.

use super::{
    PIPELINE, PipelineRow, Store, VERSION, VersionRow, documents_text,
    listing::{Listing, Page},
    pipeline, unique, version,
};
use crate::error::{ApiError, ApiResult, Code};
use kfbox_db::rusqlite::{self, params};

impl Store {
    pub async fn pipeline(&self, id: &str) -> ApiResult<Option<PipelineRow>> {
        self.one(format!("SELECT 0, id, {PIPELINE} FROM pipelines WHERE id = ?1"), vec![id.into()], pipeline).await
    }

    pub async fn pipeline_by_name(&self, namespace: &str, name: &str) -> ApiResult<Option<PipelineRow>> {
        let sql = format!("SELECT 0, id, {PIPELINE} FROM pipelines WHERE namespace = ?1 AND name = ?2");
        self.one(sql, vec![namespace.into(), name.into()], pipeline).await
    }

    pub async fn pipelines(&self, listing: Listing) -> ApiResult<Page<PipelineRow>> {
        self.page(listing, PIPELINE, pipeline).await
    }

    /// Both or neither.
    pub async fn create_pipeline(&self, new: PipelineRow, first: Option<VersionRow>) -> ApiResult<PipelineRow> {
        self.db
            .write(move |tx| {
                tx.execute(
                    "INSERT INTO pipelines (id, namespace, name, display_name, description, created_at, tags, resource) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                    params![new.id, new.namespace, new.name, new.display_name, new.description, new.created_at, new.tags.to_string(), new.resource],
                )
                .map_err(|e| unique(e, || format!("a pipeline named {} already exists in {}; upload a new version of it", new.name, new.namespace)))?;
                if let Some(version) = &first {
                    insert_version(tx, version)?;
                }
                Ok(new)
            })
            .await
    }

    pub async fn update_pipeline(&self, row: PipelineRow) -> ApiResult<()> {
        self.db
            .write(move |tx| {
                tx.execute(
                    "UPDATE pipelines SET display_name = ?2, description = ?3, tags = ?4 WHERE id = ?1",
                    params![row.id, row.display_name, row.description, row.tags.to_string()],
                )?;
                Ok(())
            })
            .await
    }

    pub async fn delete_pipeline(&self, id: &str, cascade: bool) -> ApiResult<()> {
        let id = id.to_owned();
        self.db
            .write(move |tx| {
                let versions: i64 =
                    tx.query_row("SELECT count(*) FROM pipeline_versions WHERE pipeline_id = ?1", [&id], |r| r.get(0))?;
                if versions > 0 && !cascade {
                    return Err(still_has(versions));
                }
                tx.execute("DELETE FROM pipeline_versions WHERE pipeline_id = ?1", [&id])?;
                tx.execute("DELETE FROM pipelines WHERE id = ?1", [&id])?;
                Ok(())
            })
            .await
    }

    pub async fn version(&self, id: &str) -> ApiResult<Option<VersionRow>> {
        self.one(format!("SELECT 0, id, {VERSION} FROM pipeline_versions WHERE id = ?1"), vec![id.into()], version)
            .await
    }

    pub async fn latest_version(&self, pipeline_id: &str) -> ApiResult<Option<VersionRow>> {
        let sql = format!(
            "SELECT 0, id, {VERSION} FROM pipeline_versions WHERE pipeline_id = ?1 ORDER BY created_at DESC, rowid DESC LIMIT 1"
        );
        self.one(sql, vec![pipeline_id.into()], version).await
    }

    /// The one chosen with v1beta1's `default_version`, else the latest.
    pub async fn default_version(&self, pipeline_id: &str) -> ApiResult<Option<VersionRow>> {
        let sql = format!(
            "SELECT 0, id, {VERSION} FROM pipeline_versions AS v WHERE pipeline_id = ?1
             ORDER BY id = (SELECT default_version_id FROM pipelines WHERE id = v.pipeline_id) DESC,
                      created_at DESC, rowid DESC LIMIT 1"
        );
        self.one(sql, vec![pipeline_id.into()], version).await
    }

    /// Until the next version is added, as upstream.
    pub async fn set_default_version(&self, pipeline_id: &str, version_id: &str) -> ApiResult<()> {
        let values = [version_id.to_owned(), pipeline_id.to_owned()];
        let sql = "UPDATE pipelines SET default_version_id = ?1 WHERE id = ?2";
        self.db.write(move |tx| Ok(tx.execute(sql, values).map(drop)?)).await
    }

    pub async fn versions(&self, listing: Listing) -> ApiResult<Page<VersionRow>> {
        self.page(listing, VERSION, version).await
    }

    pub async fn create_version(&self, new: VersionRow) -> ApiResult<VersionRow> {
        self.db
            .write(move |tx| {
                insert_version(tx, &new)?;
                Ok(new)
            })
            .await
    }

    pub async fn update_version(&self, row: VersionRow) -> ApiResult<()> {
        self.db
            .write(move |tx| {
                tx.execute(
                    "UPDATE pipeline_versions SET display_name = ?2, description = ?3, tags = ?4 WHERE id = ?1",
                    params![row.id, row.display_name, row.description, row.tags.to_string()],
                )?;
                Ok(())
            })
            .await
    }

    pub async fn delete_version(&self, id: &str) -> ApiResult<()> {
        let id = id.to_owned();
        self.db.write(move |tx| Ok(tx.execute("DELETE FROM pipeline_versions WHERE id = ?1", [id]).map(drop)?)).await
    }
}

pub(super) fn still_has(versions: i64) -> ApiError {
    ApiError::new(
        Code::FailedPrecondition,
        format!("the pipeline still has {versions} versions; delete them first, or delete with cascade=true"),
    )
}

pub(super) fn insert_version(tx: &rusqlite::Transaction<'_>, new: &VersionRow) -> ApiResult<()> {
    tx.execute(
        "INSERT INTO pipeline_versions (id, pipeline_id, name, display_name, description, created_at, code_source_url, tags, spec, resource)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            new.id,
            new.pipeline_id,
            new.name,
            new.display_name,
            new.description,
            new.created_at,
            new.code_source_url,
            new.tags.to_string(),
            documents_text(&new.spec),
            new.resource
        ],
    )
    .map_err(|e| unique(e, || format!("a version named {} already exists for this pipeline", new.name)))?;
    tx.execute("UPDATE pipelines SET default_version_id = '' WHERE id = ?1", [&new.pipeline_id])?;
    Ok(())
}
