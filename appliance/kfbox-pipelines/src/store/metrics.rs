//! Metrics that runs reported through v1beta1.

use super::Store;
use crate::error::ApiResult;
use kfbox_db::rusqlite::{self, params, params_from_iter};

#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    pub run_id: String,
    pub name: String,
    /// The task, or whatever the reporter calls its node.
    pub node_id: String,
    pub number_value: f64,
    /// `UNSPECIFIED`, `RAW` or `PERCENTAGE`.
    pub format: String,
}

impl Store {
    /// False when the run has this metric of this node already: the first report stays.
    pub async fn report_metric(&self, new: Metric) -> ApiResult<bool> {
        self.db
            .write(move |tx| {
                let added = tx.execute(
                    "INSERT OR IGNORE INTO run_metrics (run_id, name, node_id, number_value, format)
                     SELECT ?1, ?2, ?3, ?4, ?5 WHERE EXISTS (SELECT 1 FROM runs WHERE id = ?1)",
                    params![new.run_id, new.name, new.node_id, new.number_value, new.format],
                )?;
                Ok(added > 0)
            })
            .await
    }

    /// Those of several runs: a page's at most.
    pub async fn metrics(&self, runs: Vec<String>) -> ApiResult<Vec<Metric>> {
        self.db
            .read(move |c| {
                let sql = format!(
                    "SELECT run_id, name, node_id, number_value, format FROM run_metrics WHERE run_id IN ({})
                     ORDER BY run_id, name, node_id",
                    vec!["?"; runs.len()].join(",")
                );
                let mut statement = c.prepare_cached(&sql)?;
                let rows = statement.query_map(params_from_iter(runs), |r| {
                    Ok(Metric {
                        run_id: r.get(0)?,
                        name: r.get(1)?,
                        node_id: r.get(2)?,
                        number_value: r.get(3)?,
                        format: r.get(4)?,
                    })
                })?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }
}
