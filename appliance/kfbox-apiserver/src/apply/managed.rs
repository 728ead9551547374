//! `metadata.managedFields`: reading, writing, and keeping the list short.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::set::{BadFields, Set};

/// As upstream: past this many Update entries the oldest are folded into one.
const MAX_UPDATE_ENTRIES: usize = 10;
const OLDEST: &str = "ancient-changes";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) manager: String,
    pub(super) is_apply: bool,
    pub(super) api_version: String,
    pub(super) subresource: String,
    pub(super) time: Option<String>,
    pub(super) fields: Set,
}

impl Entry {
    /// Whether both are by the same hand. An applier keeps its identity across versions.
    pub(super) fn is(&self, manager: &str, is_apply: bool, api_version: &str, subresource: &str) -> bool {
        self.manager == manager
            && self.is_apply == is_apply
            && self.subresource == subresource
            && (is_apply || self.api_version == api_version)
    }

    /// As upstream names a manager in conflicts.
    pub(super) fn title(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.is_apply {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }
}

pub(super) fn read(object: &Value) -> Result<Vec<Entry>, BadFields> {
    let all = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    let mut out = Vec::new();
    for entry in all.into_iter().flatten() {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some(fields) = entry.get("fieldsV1") else { continue };
        out.push(Entry {
            manager: text("manager"),
            is_apply: text("operation") == "Apply",
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: entry.get("time").and_then(Value::as_str).map(ToOwned::to_owned),
            fields: Set::from_fields(fields)?,
        });
    }
    Ok(out)
}

pub(super) fn stamp(now: DateTime<Utc>) -> String {
    now.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Folds the oldest Update entries of a version together until there are few enough.
fn cap(entries: &mut Vec<Entry>) {
    let count = |entries: &[Entry]| entries.iter().filter(|e| !e.is_apply).count();
    while count(entries) > MAX_UPDATE_ENTRIES {
        let oldest = entries
            .iter()
            .enumerate()
            .filter(|(_, e)| !e.is_apply && e.manager != OLDEST)
            .min_by(|(_, a), (_, b)| a.time.cmp(&b.time))
            .map(|(at, _)| at);
        let Some(at) = oldest else { return };
        let taken = entries.remove(at);
        match entries.iter_mut().find(|e| e.is(OLDEST, false, &taken.api_version, "")) {
            Some(bucket) => {
                bucket.fields.absorb(taken.fields);
                bucket.time = bucket.time.clone().max(taken.time);
            }
            None => entries.push(Entry { manager: OLDEST.to_owned(), subresource: String::new(), ..taken }),
        }
        // A bucket of its own for each version would not make the list shorter for ever.
        if entries.iter().all(|e| e.is_apply || e.manager == OLDEST) {
            return;
        }
    }
}

/// Writes the entries into `object`: appliers first, then by time and name, empty ones dropped.
pub(super) fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|e| !e.fields.is_empty());
    cap(&mut entries);
    entries.sort_by(|a, b| {
        let key =
            |e: &Entry| (!e.is_apply, e.time.clone(), e.manager.clone(), e.api_version.clone(), e.subresource.clone());
        key(a).cmp(&key(b))
    });
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if entries.is_empty() {
        metadata.remove("managedFields");
        return;
    }
    let list = entries.into_iter().map(|e| {
        let mut out = json!({
            "manager": e.manager,
            "operation": if e.is_apply { "Apply" } else { "Update" },
            "apiVersion": e.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": e.fields.to_fields(),
        });
        if let Some(time) = e.time {
            out["time"] = time.into();
        }
        if !e.subresource.is_empty() {
            out["subresource"] = e.subresource.into();
        }
        out
    });
    metadata.insert("managedFields".to_owned(), Value::Array(list.collect()));
}
