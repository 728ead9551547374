//! Lists: filters, sorting and pages. Invariants: a column reaches SQL only from the tables below, a value only as a
//! bound parameter; a page token is signed and bound to its list, so a made-up one is refused.

use crate::error::{ApiError, ApiResult};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use kfbox_db::rusqlite::{Connection, Row, ToSql, types::Value as Sql};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::Sha256;

/// Upstream's default, and a bound on what one answer holds.
const DEFAULT_PAGE: u32 = 20;
const MAX_PAGE: u32 = 200;
/// Predicates in one filter.
const MAX_PREDICATES: usize = 50;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// RFC 3339 outside, milliseconds inside.
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
        ("storage_state", "storage_state", Kind::Text),
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
        ("state", "state", Kind::Text),
        ("status", "state", Kind::Text),
        ("storage_state", "storage_state", Kind::Text),
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
        ("status", "status", Kind::Text),
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
    order: &'static str,
    descending: bool,
    after: Option<(Sql, String)>,
    size: u32,
    fingerprint: String,
}

#[derive(Serialize, Deserialize)]
struct Token {
    /// What list it belongs to.
    f: String,
    /// The last row's sort value and id.
    v: Value,
    i: String,
}

pub struct Page<T> {
    pub rows: Vec<T>,
    pub total: i64,
    pub next_page_token: String,
}

fn column(table: &Table, name: &str) -> ApiResult<(&'static str, Kind)> {
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
        let mut sort = query.sort_by.split_whitespace();
        let (order, _) = match sort.next() {
            Some(name) => column(table, name)?,
            None => ("created_at", Kind::Time),
        };
        let descending = match sort.next().map(str::to_ascii_lowercase).as_deref() {
            None | Some("asc") => false,
            Some("desc") => true,
            Some(other) => {
                return Err(ApiError::invalid(format!("sort_by ends in `{other}`, which is neither asc nor desc")));
            }
        };
        let conditions = filter(table, &query.filter)?;
        let fingerprint =
            hex::encode(mac(key, format!("{}|{scope:?}|{}|{}", table.name, query.sort_by, query.filter).as_bytes()));
        let after = if query.page_token.is_empty() {
            None
        } else {
            let token = open(key, &query.page_token)
                .filter(|t| t.f == fingerprint)
                .ok_or_else(|| ApiError::invalid("the page token is not one that this list gave out"))?;
            Some((
                if let Some(n) = token.v.as_i64() {
                    Sql::Integer(n)
                } else {
                    Sql::Text(token.v.as_str().unwrap_or_default().into())
                },
                token.i,
            ))
        };
        Ok(Self { table, scope, conditions, order, descending, after, size, fingerprint })
    }

    pub fn run<T>(
        &self,
        connection: &Connection,
        key: &[u8],
        columns: &str,
        read: impl Fn(&Row<'_>) -> kfbox_db::rusqlite::Result<T>,
    ) -> kfbox_db::rusqlite::Result<Page<T>> {
        let (mut wheres, mut values) = (Vec::new(), Vec::<Sql>::new());
        for (column, allowed) in &self.scope {
            wheres.push(format!("{column} IN ({})", vec!["?"; allowed.len()].join(",")));
            values.extend(allowed.iter().cloned().map(Sql::Text));
        }
        for (condition, bound) in &self.conditions {
            wheres.push(condition.clone());
            values.extend(bound.iter().cloned());
        }
        let of = |wheres: &[String]| {
            if wheres.is_empty() { String::new() } else { format!(" WHERE {}", wheres.join(" AND ")) }
        };
        let bind = |values: &[Sql]| -> Vec<Box<dyn ToSql>> {
            values.iter().cloned().map(|v| Box::new(v) as Box<dyn ToSql>).collect()
        };
        let total = {
            let bound = bind(&values);
            let refs: Vec<&dyn ToSql> = bound.iter().map(AsRef::as_ref).collect();
            connection.query_row(
                &format!("SELECT count(*) FROM {}{}", self.table.name, of(&wheres)),
                refs.as_slice(),
                |r| r.get(0),
            )?
        };
        let (order, direction, sign) =
            (self.order, if self.descending { "DESC" } else { "ASC" }, if self.descending { "<" } else { ">" });
        if let Some((value, id)) = &self.after {
            wheres.push(format!("({order}, id) {sign} (?, ?)"));
            values.push(value.clone());
            values.push(Sql::Text(id.clone()));
        }
        let sql = format!(
            "SELECT {order}, id, {columns} FROM {}{} ORDER BY {order} {direction}, id {direction} LIMIT {}",
            self.table.name,
            of(&wheres),
            self.size + 1
        );
        let bound = bind(&values);
        let refs: Vec<&dyn ToSql> = bound.iter().map(AsRef::as_ref).collect();
        let mut statement = connection.prepare(&sql)?;
        let mut found = statement.query(refs.as_slice())?;
        let (mut rows, mut last, mut next_page_token) = (Vec::new(), None, String::new());
        while let Some(row) = found.next()? {
            if rows.len() >= self.size as usize {
                if let Some((value, id)) = last {
                    next_page_token = seal(key, &Token { f: self.fingerprint.clone(), v: value, i: id });
                }
                break;
            }
            let value = match row.get::<_, Sql>(0)? {
                Sql::Integer(n) => Value::from(n),
                Sql::Text(text) => Value::from(text),
                _ => Value::Null,
            };
            last = Some((value, row.get::<_, String>(1)?));
            rows.push(read(row)?);
        }
        Ok(Page { rows, total, next_page_token })
    }
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

/// The filter of `filter.proto` upstream, in JSON; operations by name or by number, as the SDK sends them.
fn filter(table: &Table, text: &str) -> ApiResult<Vec<(String, Vec<Sql>)>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let parsed: Value = serde_json::from_str(text)
        .or_else(|_| serde_json::from_str(&percent_encoding::percent_decode_str(text).decode_utf8_lossy()))
        .map_err(|e| ApiError::invalid(format!("the filter is no JSON: {e}")))?;
    let predicates = parsed.get("predicates").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if predicates.len() > MAX_PREDICATES {
        return Err(ApiError::invalid(format!("the filter has more than {MAX_PREDICATES} predicates")));
    }
    predicates.iter().map(|p| predicate(table, p)).collect()
}

fn predicate(table: &Table, predicate: &Value) -> ApiResult<(String, Vec<Sql>)> {
    const NAMES: [&str; 10] = [
        "OPERATION_UNSPECIFIED",
        "EQUALS",
        "NOT_EQUALS",
        "GREATER_THAN",
        "GREATER_THAN_EQUALS",
        "LESS_THAN",
        "LESS_THAN_EQUALS",
        "",
        "IN",
        "IS_SUBSTRING",
    ];
    let field = |name: &str| crate::rest::field(predicate, name);
    let key = field("key")
        .and_then(Value::as_str)
        .ok_or_else(|| ApiError::invalid("a predicate of the filter has no key"))?;
    let (column, kind) = column(table, key)?;
    let operation = match field("operation") {
        Some(Value::String(name)) => name.as_str(),
        Some(Value::Number(n)) => n.as_u64().and_then(|n| NAMES.get(usize::try_from(n).ok()?)).copied().unwrap_or(""),
        _ => "EQUALS",
    };
    let one = |value: &Value| -> ApiResult<Sql> {
        match (kind, value) {
            (Kind::Text, Value::String(text)) => Ok(Sql::Text(text.clone())),
            (Kind::Time, Value::String(text)) => crate::time::parse(text).map(Sql::Integer).ok_or_else(|| {
                ApiError::invalid(format!("`{text}` is no RFC 3339 time, which the filter on {key} needs"))
            }),
            (Kind::Time, Value::Number(seconds)) => {
                Ok(Sql::Integer(seconds.as_i64().unwrap_or_default().saturating_mul(1000)))
            }
            _ => Err(ApiError::invalid(format!("the filter on {key} has a value of the wrong kind"))),
        }
    };
    let single = ["string_value", "timestamp_value", "int_value", "long_value"].iter().find_map(|n| field(n));
    let value = || single.map_or_else(|| Err(ApiError::invalid(format!("the filter on {key} has no value"))), one);
    Ok(match operation {
        "EQUALS" => (format!("{column} = ?"), vec![value()?]),
        "NOT_EQUALS" => (format!("{column} <> ?"), vec![value()?]),
        "GREATER_THAN" => (format!("{column} > ?"), vec![value()?]),
        "GREATER_THAN_EQUALS" => (format!("{column} >= ?"), vec![value()?]),
        "LESS_THAN" => (format!("{column} < ?"), vec![value()?]),
        "LESS_THAN_EQUALS" => (format!("{column} <= ?"), vec![value()?]),
        "IS_SUBSTRING" => (format!("instr(lower({column}), lower(?)) > 0"), vec![value()?]),
        "IN" => {
            let list = ["string_values", "int_values", "long_values"].iter().find_map(|n| field(n));
            let values = list.and_then(|l| l.get("values")).and_then(Value::as_array);
            let values = values.ok_or_else(|| ApiError::invalid(format!("the filter on {key} has no values")))?;
            if values.len() > 1000 {
                return Err(ApiError::invalid(format!("the filter on {key} has more than 1000 values")));
            }
            let values = values.iter().map(one).collect::<ApiResult<Vec<_>>>()?;
            (format!("{column} IN ({})", vec!["?"; values.len()].join(",")), values)
        }
        other => return Err(ApiError::invalid(format!("the filter's operation `{other}` does not exist"))),
    })
}
