//! Lists: filters, sorting and pages. Invariants: a column reaches SQL only from the tables below, a value only as a
//! bound parameter; a page token is signed and bound to its list, so a made-up one is refused.

mod filter;

use crate::error::{ApiError, ApiResult};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
pub use filter::normalized;
use hmac::{Hmac, KeyInit, Mac};
use kfbox_db::rusqlite::{Connection, Row, params_from_iter, types::Value as Sql};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::Sha256;

/// Upstream's default, and a bound on what one answer holds.
const DEFAULT_PAGE: u32 = 20;
const MAX_PAGE: u32 = 200;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// A state: v1beta1's names for it are understood too.
    State,
    /// RFC 3339 outside (or seconds since 1970), milliseconds inside.
    Time,
}

/// A listable table: its name, and its columns by the names that callers use.
pub struct Table {
    pub name: &'static str,
    pub columns: &'static [(&'static str, &'static str, Kind)],
}

pub const EXPERIMENTS: Table = Table {
    name: "experiments",
    columns: &[
        ("id", "id", Kind::Text),
        ("experiment_id", "id", Kind::Text),
        ("display_name", "display_name", Kind::Text),
        ("name", "display_name", Kind::Text),
        ("description", "description", Kind::Text),
        ("namespace", "namespace", Kind::Text),
        ("created_at", "created_at", Kind::Time),
        ("last_run_created_at", "last_run_created_at", Kind::Time),
        ("storage_state", "storage_state", Kind::State),
    ],
};

pub const PIPELINES: Table = Table {
    name: "pipelines",
    columns: &[
        ("id", "id", Kind::Text),
        ("pipeline_id", "id", Kind::Text),
        ("display_name", "display_name", Kind::Text),
        ("name", "name", Kind::Text),
        ("description", "description", Kind::Text),
        ("namespace", "namespace", Kind::Text),
        ("created_at", "created_at", Kind::Time),
    ],
};

pub const VERSIONS: Table = Table {
    name: "pipeline_versions",
    columns: &[
        ("id", "id", Kind::Text),
        ("pipeline_version_id", "id", Kind::Text),
        ("display_name", "display_name", Kind::Text),
        ("name", "name", Kind::Text),
        ("description", "description", Kind::Text),
        ("created_at", "created_at", Kind::Time),
    ],
};

pub const RUNS: Table = Table {
    name: "runs",
    columns: &[
        ("id", "id", Kind::Text),
        ("run_id", "id", Kind::Text),
        ("display_name", "display_name", Kind::Text),
        ("name", "display_name", Kind::Text),
        ("description", "description", Kind::Text),
        ("namespace", "namespace", Kind::Text),
        ("experiment_id", "experiment_id", Kind::Text),
        ("pipeline_version_id", "pipeline_version_id", Kind::Text),
        ("pipeline_id", "pipeline_id", Kind::Text),
        ("recurring_run_id", "recurring_run_id", Kind::Text),
        ("created_at", "created_at", Kind::Time),
        ("scheduled_at", "scheduled_at", Kind::Time),
        ("finished_at", "finished_at", Kind::Time),
        ("state", "state", Kind::State),
        ("status", "state", Kind::State),
        ("state_history", "state_history", Kind::Text),
        ("storage_state", "storage_state", Kind::State),
    ],
};

pub const RECURRING: Table = Table {
    name: "recurring_runs",
    columns: &[
        ("id", "id", Kind::Text),
        ("recurring_run_id", "id", Kind::Text),
        ("display_name", "display_name", Kind::Text),
        ("name", "display_name", Kind::Text),
        ("namespace", "namespace", Kind::Text),
        ("experiment_id", "experiment_id", Kind::Text),
        ("created_at", "created_at", Kind::Time),
        ("updated_at", "updated_at", Kind::Time),
        ("description", "coalesce(json_extract(body, '$.description'), '')", Kind::Text),
        ("status", "status", Kind::State),
    ],
};

/// What a caller asked for, as it came.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Query {
    pub page_token: String,
    pub page_size: Option<i64>,
    pub sort_by: String,
    pub filter: String,
}

/// A checked query over one table, within `scope`: a column and the values it may have.
pub struct Listing {
    table: &'static Table,
    scope: Vec<(&'static str, Vec<String>)>,
    conditions: Vec<(String, Vec<Sql>)>,
    order: Order,
    descending: bool,
    after: Option<(Sql, String)>,
    size: u32,
    fingerprint: String,
    sort_by: String,
    filter: String,
}

enum Order {
    Column(&'static str),
    /// The value of a metric that runs reported; those without it come as the smallest.
    Metric(String),
}

impl Order {
    fn sql(&self) -> &'static str {
        match self {
            Self::Column(column) => column,
            Self::Metric(_) => {
                "coalesce((SELECT max(m.number_value) FROM run_metrics m WHERE m.run_id = runs.id AND m.name = ?), -1.7e308)"
            }
        }
    }

    fn bound(&self) -> Option<Sql> {
        match self {
            Self::Column(_) => None,
            Self::Metric(name) => Some(Sql::Text(name.clone())),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Token {
    /// What list it belongs to.
    f: String,
    /// The last row's sort value and id.
    v: Value,
    i: String,
    /// `sort_by` and `filter`, which a caller need not repeat.
    #[serde(default)]
    s: String,
    #[serde(default)]
    q: String,
}

pub struct Page<T> {
    pub rows: Vec<T>,
    pub total: i64,
    pub next_page_token: String,
}

fn column(table: &Table, name: &str) -> ApiResult<(&'static str, Kind)> {
    // Upstream's own pages qualify some names with the table.
    let name = name.rsplit('.').next().unwrap_or(name);
    let snake = crate::rest::snake_case(name);
    table.columns.iter().find(|(known, ..)| *known == snake).map(|(_, column, kind)| (*column, *kind)).ok_or_else(
        || {
            let known: Vec<&str> = table.columns.iter().map(|(n, ..)| *n).collect();
            ApiError::invalid(format!(
                "there is no field `{name}` to sort or filter by; there are {}",
                known.join(", ")
            ))
        },
    )
}

fn order(table: &'static Table, sort_by: &str) -> ApiResult<(Order, bool)> {
    let mut words = sort_by.split_whitespace();
    let order = match words.next() {
        Some(name) if table.name == "runs" && name.starts_with("metric:") => {
            Order::Metric(name["metric:".len()..].to_owned())
        }
        Some(name) => Order::Column(column(table, &name.to_ascii_lowercase())?.0),
        None => Order::Column("created_at"),
    };
    let descending = match words.next().map(str::to_ascii_lowercase).as_deref() {
        None | Some("asc") => false,
        Some("desc") => true,
        Some(_) => return Err(sort_form(sort_by)),
    };
    if words.next().is_some() { Err(sort_form(sort_by)) } else { Ok((order, descending)) }
}

fn sort_form(given: &str) -> ApiError {
    ApiError::invalid(format!("sort_by is `{given}`, and should be a field's name, alone or with asc or desc"))
}

impl Listing {
    pub fn new(
        table: &'static Table,
        query: &Query,
        scope: Vec<(&'static str, Vec<String>)>,
        key: &[u8],
    ) -> ApiResult<Self> {
        let size = match query.page_size.unwrap_or(0) {
            0 => DEFAULT_PAGE,
            size if size < 0 => return Err(ApiError::invalid("page_size should not be negative")),
            size => u32::try_from(size).unwrap_or(MAX_PAGE).min(MAX_PAGE),
        };
        let token = match query.page_token.as_str() {
            "" => None,
            text => Some(open(key, text).ok_or_else(not_ours)?),
        };
        // A caller who repeats neither goes on with what the first page was asked with.
        let (sort_by, text) = match &token {
            Some(token) if query.sort_by.is_empty() && query.filter.is_empty() => (token.s.clone(), token.q.clone()),
            _ => (query.sort_by.clone(), query.filter.clone()),
        };
        let (order, descending) = order(table, &sort_by)?;
        let conditions = filter::filter(table, &text)?;
        let fingerprint = hex::encode(mac(key, format!("{}|{scope:?}|{sort_by}|{text}", table.name).as_bytes()));
        let after = match token {
            None => None,
            Some(token) if token.f != fingerprint => return Err(not_ours()),
            Some(Token { v, i, .. }) => Some((
                match &v {
                    Value::Number(n) => {
                        n.as_i64().map_or_else(|| Sql::Real(n.as_f64().unwrap_or_default()), Sql::Integer)
                    }
                    other => Sql::Text(other.as_str().unwrap_or_default().into()),
                },
                i,
            )),
        };
        Ok(Self { table, scope, conditions, order, descending, after, size, fingerprint, sort_by, filter: text })
    }

    /// One page. The rows' ids are found first, over indexes; whole rows are read only for the page.
    pub fn run<T>(
        &self,
        connection: &Connection,
        key: &[u8],
        columns: &str,
        read: impl Fn(&Row<'_>) -> kfbox_db::rusqlite::Result<T>,
    ) -> kfbox_db::rusqlite::Result<Page<T>> {
        let (wheres, values) = self.wheres();
        let total = connection
            .prepare_cached(&format!("SELECT count(*) FROM {}{}", self.table.name, clause(&wheres)))?
            .query_row(params_from_iter(values), |r| r.get(0))?;
        let (sql, values) = self.statement(columns);
        let mut statement = connection.prepare_cached(&sql)?;
        let mut found = statement.query(params_from_iter(values))?;
        let (mut rows, mut last, mut next_page_token) = (Vec::new(), None, String::new());
        while let Some(row) = found.next()? {
            if rows.len() >= self.size as usize {
                if let Some((value, id)) = last {
                    let token = Token {
                        f: self.fingerprint.clone(),
                        v: value,
                        i: id,
                        s: self.sort_by.clone(),
                        q: self.filter.clone(),
                    };
                    next_page_token = seal(key, &token);
                }
                break;
            }
            let value = match row.get::<_, Sql>(0)? {
                Sql::Integer(n) => Value::from(n),
                Sql::Real(n) => Value::from(n),
                Sql::Text(text) => Value::from(text),
                _ => Value::Null,
            };
            last = Some((value, row.get::<_, String>(1)?));
            rows.push(read(row)?);
        }
        Ok(Page { rows, total, next_page_token })
    }

    /// How SQLite goes about the page.
    #[cfg(test)]
    pub fn explain(&self, connection: &Connection) -> kfbox_db::rusqlite::Result<String> {
        let (sql, values) = self.statement("display_name, spec");
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
        let steps = statement.query_map(params_from_iter(values), |r| r.get::<_, String>(3))?;
        Ok(steps.collect::<kfbox_db::rusqlite::Result<Vec<_>>>()?.join("\n"))
    }

    fn wheres(&self) -> (Vec<String>, Vec<Sql>) {
        let (mut wheres, mut values) = (Vec::new(), Vec::<Sql>::new());
        for (column, allowed) in &self.scope {
            wheres.push(match allowed.len() {
                // Said so that an index gives the order too.
                1 => format!("{column} = ?"),
                n => format!("{column} IN ({})", vec!["?"; n].join(",")),
            });
            values.extend(allowed.iter().cloned().map(Sql::Text));
        }
        for (condition, bound) in &self.conditions {
            wheres.push(condition.clone());
            values.extend(bound.iter().cloned());
        }
        (wheres, values)
    }

    fn statement(&self, columns: &str) -> (String, Vec<Sql>) {
        let (mut wheres, conditions) = self.wheres();
        let (order, table) = (self.order.sql(), self.table.name);
        let (direction, sign) = if self.descending { ("DESC", "<") } else { ("ASC", ">") };
        let mut values: Vec<Sql> = self.order.bound().into_iter().chain(conditions).collect();
        if let Some((value, id)) = &self.after {
            wheres.push(format!("({order}, id) {sign} (?, ?)"));
            values.extend(self.order.bound());
            values.extend([value.clone(), Sql::Text(id.clone())]);
        }
        let sql = format!(
            "SELECT page_sort, page_id, {columns} FROM
                (SELECT {order} AS page_sort, id AS page_id, rowid AS page_row FROM {table}{}
                 ORDER BY 1 {direction}, 2 {direction} LIMIT {})
             CROSS JOIN {table} ON {table}.rowid = page_row ORDER BY 1 {direction}, 2 {direction}",
            clause(&wheres),
            self.size + 1
        );
        (sql, values)
    }
}

fn clause(wheres: &[String]) -> String {
    if wheres.is_empty() { String::new() } else { format!(" WHERE {}", wheres.join(" AND ")) }
}

fn not_ours() -> ApiError {
    ApiError::invalid(
        "the page token is not one that this list gave out; repeat the sort_by and filter that it came from, or neither",
    )
}

fn mac(key: &[u8], content: &[u8]) -> [u8; 16] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
    mac.update(content);
    let mut short = [0; 16];
    short.copy_from_slice(&mac.finalize().into_bytes()[..16]);
    short
}

fn seal(key: &[u8], token: &Token) -> String {
    let body = serde_json::to_vec(token).unwrap_or_default();
    let mut sealed = mac(key, &body).to_vec();
    sealed.extend(body);
    URL_SAFE_NO_PAD.encode(sealed)
}

fn open(key: &[u8], text: &str) -> Option<Token> {
    let sealed = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (tag, body) = sealed.split_at_checked(16)?;
    let good: bool = subtle::ConstantTimeEq::ct_eq(tag, mac(key, body).as_slice()).into();
    if good { serde_json::from_slice(body).ok() } else { None }
}
