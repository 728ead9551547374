//! Pages of nodes. A page token holds only where the page ended: the scope, the filter and the order of the request
//! apply again to the next one, so a forged token shows nothing that the caller could not list anyway.

use crate::{
    Error, Scope, filter,
    node::{Kind, Node},
    proto::{self, list_operation_options::order_by_field::Field},
    rows::select,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rusqlite::{Connection, types::Value};
use serde::{Deserialize, Serialize};

/// As upstream: a larger page is cut to this.
const MAX_PAGE: usize = 100;

#[derive(Debug, Serialize, Deserialize)]
struct Token {
    field: i32,
    ascending: bool,
    filter: String,
    value: i64,
    id: i64,
}

pub(crate) fn list(
    c: &Connection,
    scope: &Scope,
    kind: Kind,
    condition: &str,
    mut parameters: Vec<Value>,
    options: Option<&proto::ListOperationOptions>,
) -> Result<(Vec<Node>, Option<String>), Error> {
    let Some(options) = options else {
        return Ok((select(c, scope, kind, &format!("{condition} ORDER BY n.id"), parameters)?, None));
    };
    let size = usize::try_from(options.max_result_size())
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| Error::InvalidArgument("max_result_size must be greater than 0".into()))?
        .min(MAX_PAGE);
    let order = options.order_by_field.unwrap_or_default();
    let (field, ascending) = (order.field(), order.is_asc());
    let column = match field {
        Field::CreateTime => "n.created",
        Field::LastUpdateTime => "n.updated",
        Field::Id | Field::Unspecified => "n.id",
    };
    let mut sql = condition.to_owned();
    let query = options.filter_query().trim();
    if !query.is_empty() {
        let filter = filter::parse(kind, query)?;
        sql.push_str(" AND ");
        sql.push_str(&filter.sql);
        parameters.extend(filter.parameters);
    }
    let (compare, direction) = if ascending { (">", "ASC") } else { ("<", "DESC") };
    if let Some(text) = options.next_page_token.as_deref().filter(|t| !t.is_empty()) {
        let token: Option<Token> =
            BASE64_URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let token = token
            .filter(|t| t.field == field as i32 && t.ascending == ascending && t.filter == query)
            .ok_or_else(|| Error::InvalidArgument("next_page_token is not of this listing".into()))?;
        sql.push_str(&format!(" AND ({column}, n.id) {compare} (?, ?)"));
        parameters.extend([Value::Integer(token.value), Value::Integer(token.id)]);
    }
    sql.push_str(&format!(" ORDER BY {column} {direction}, n.id {direction} LIMIT {}", size + 1));
    let mut nodes = select(c, scope, kind, &sql, parameters)?;
    let more = nodes.len() > size;
    nodes.truncate(size);
    let next = nodes.last().filter(|_| more).map(|last| Token {
        field: field as i32,
        ascending,
        filter: query.to_owned(),
        value: match field {
            Field::CreateTime => last.created,
            Field::LastUpdateTime => last.updated,
            Field::Id | Field::Unspecified => last.id,
        }
        .unwrap_or_default(),
        id: last.id.unwrap_or_default(),
    });
    let next = next.map(|t| serde_json::to_vec(&t)).transpose()?;
    Ok((nodes, next.map(|bytes| BASE64_URL_SAFE_NO_PAD.encode(bytes))))
}
