//! What a namespace owns here, and its end.

use super::Store;
use crate::error::ApiResult;
use kfbox_db::rusqlite;

/// What a namespace owned when it ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forgotten {
    pub runs: usize,
    pub recurring_runs: usize,
    pub pipelines: usize,
    pub experiments: usize,
}

impl Store {
    pub async fn namespaces_in_use(&self) -> ApiResult<Vec<String>> {
        self.db
            .read(|c| {
                let mut statement = c.prepare(
                    "SELECT namespace FROM experiments UNION SELECT namespace FROM pipelines
                     UNION SELECT namespace FROM runs UNION SELECT namespace FROM recurring_runs
                     UNION SELECT namespace FROM cache UNION SELECT namespace FROM leftovers",
                )?;
                let names = statement.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
                Ok(names)
            })
            .await
    }

    pub async fn runs_of(&self, namespace: &str) -> ApiResult<Vec<String>> {
        let namespace = namespace.to_owned();
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached("SELECT id FROM runs WHERE namespace = ?1")?;
                let ids = statement.query_map([namespace], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
                Ok(ids)
            })
            .await
    }

    /// So that no more runs come of them.
    pub async fn forget_recurring_of(&self, namespace: &str) -> ApiResult<usize> {
        let namespace = namespace.to_owned();
        self.db.write(move |tx| Ok(tx.execute("DELETE FROM recurring_runs WHERE namespace = ?1", [namespace])?)).await
    }

    /// All but its runs, which are gone already. Their artifacts stay known as leftovers until they are deleted too.
    pub async fn forget_namespace(&self, namespace: &str) -> ApiResult<Forgotten> {
        let namespace = namespace.to_owned();
        self.db
            .write(move |tx| {
                let versions = "DELETE FROM pipeline_versions
                    WHERE pipeline_id IN (SELECT id FROM pipelines WHERE namespace = ?1)";
                tx.execute(versions, [&namespace])?;
                let pipelines = tx.execute("DELETE FROM pipelines WHERE namespace = ?1", [&namespace])?;
                let experiments = tx.execute("DELETE FROM experiments WHERE namespace = ?1", [&namespace])?;
                tx.execute("DELETE FROM cache WHERE namespace = ?1", [&namespace])?;
                tx.execute("DELETE FROM leftovers WHERE namespace = ?1", [&namespace])?;
                Ok(Forgotten { pipelines, experiments, ..Forgotten::default() })
            })
            .await
    }
}
