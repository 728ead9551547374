//! What may go: runs by age and by number, logs by age, and the folders of runs that were deleted.

use super::Store;
use crate::error::ApiResult;
use kfbox_db::rusqlite::{self, OptionalExtension, params};

/// A deleted run's folder in the artifact store.
#[derive(Debug, Clone)]
pub struct Leftover {
    pub run_id: String,
    pub namespace: String,
    pub root: String,
}

const ENDED: &str = "state IN ('SUCCEEDED', 'FAILED', 'CANCELED', 'SKIPPED') AND finished_at > 0";

impl Store {
    /// Runs that ended before `cutoff`, in milliseconds; the oldest first.
    pub async fn runs_ended_before(&self, cutoff: i64, limit: u32) -> ApiResult<Vec<String>> {
        let sql = format!("SELECT id FROM runs WHERE {ENDED} AND finished_at < ?1 ORDER BY finished_at LIMIT ?2");
        self.ids(sql, cutoff, limit).await
    }

    /// Ended runs beyond the newest `kept` of their experiment. Runs that go on count for nothing.
    pub async fn runs_beyond(&self, kept: u32, limit: u32) -> ApiResult<Vec<String>> {
        let sql = format!(
            "SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY experiment_id ORDER BY created_at DESC, id DESC)
             AS place FROM runs WHERE {ENDED}) WHERE place > ?1 LIMIT ?2"
        );
        self.ids(sql, kept.into(), limit).await
    }

    async fn ids(&self, sql: String, bound: i64, limit: u32) -> ApiResult<Vec<String>> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(&sql)?;
                let ids = statement.query_map(params![bound, limit], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
                Ok(ids)
            })
            .await
    }

    /// When a run ended; `None` while it goes on, and for one that is not known.
    pub async fn run_ended_at(&self, id: &str) -> ApiResult<Option<i64>> {
        let id = id.to_owned();
        let sql = format!("SELECT finished_at FROM runs WHERE id = ?1 AND {ENDED}");
        self.db.read(move |c| Ok(c.query_row(&sql, [id], |r| r.get(0)).optional()?)).await
    }

    pub async fn leftovers(&self) -> ApiResult<Vec<Leftover>> {
        self.db
            .read(|c| {
                let mut statement = c.prepare_cached("SELECT run_id, namespace, root FROM leftovers")?;
                let rows = statement
                    .query_map([], |r| Ok(Leftover { run_id: r.get(0)?, namespace: r.get(1)?, root: r.get(2)? }))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    pub async fn forget_leftover(&self, run_id: &str) -> ApiResult<()> {
        let run_id = run_id.to_owned();
        self.db.write(move |tx| Ok(tx.execute("DELETE FROM leftovers WHERE run_id = ?1", [run_id]).map(drop)?)).await
    }

    /// The artifacts below `root` that runs use.
    pub async fn borrowed_below(&self, root: &str) -> ApiResult<Vec<String>> {
        // The character after `/` ends the range.
        let (from, to) = (format!("{root}/"), format!("{root}0"));
        self.db
            .read(move |c| {
                let mut statement =
                    c.prepare_cached("SELECT DISTINCT uri FROM borrowed WHERE uri >= ?1 AND uri < ?2")?;
                let uris = statement.query_map([from, to], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
                Ok(uris)
            })
            .await
    }
}
