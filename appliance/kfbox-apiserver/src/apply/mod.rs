//! Server-side apply and the book-keeping of who set which field.
//!
//! Guarantees: applying the same configuration twice changes nothing, not even times; a field set by others is changed
//! only with `force`; a field that its only owner no longer applies goes.
//! Upstream: <https://kubernetes.io/docs/reference/using-api/server-side-apply/>.

mod last_applied;
mod managed;
mod set;
mod walk;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use crate::schema::Schema;
use managed::Entry;
use set::Set;

/// One apply. `now` goes into the entry's time.
#[derive(Clone, Copy, Debug)]
pub struct ApplyRequest<'a> {
    pub schema: &'a Schema,
    pub live: Option<&'a Value>,
    pub applied: &'a Value,
    pub manager: &'a str,
    pub force: bool,
    pub subresource: &'a str,
    pub api_version: &'a str,
    pub now: DateTime<Utc>,
}

/// A create, update or patch that is about to be stored.
#[derive(Debug)]
pub struct TrackRequest<'a> {
    pub schema: &'a Schema,
    pub old: Option<&'a Value>,
    pub new: &'a mut Value,
    pub manager: &'a str,
    pub subresource: &'a str,
    /// The kind has a status subresource, through which alone its status is written.
    pub has_status: bool,
    pub api_version: &'a str,
    pub now: DateTime<Utc>,
}

/// One field in conflict: a cause of the `Status` (reason `FieldManagerConflict`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// `conflict with "kubectl" using apps/v1`
    pub message: String,
    /// `.spec.replicas`
    pub field: String,
}

/// Why an apply is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Fields belong to others and `force` was not given: 409 Conflict.
    #[error("{}", conflict_text(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration cannot be applied: 400 BadRequest.
    #[error("{0}")]
    Invalid(String),
}

fn conflict_text(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!("Apply failed with 1 conflict: {}: {}", only.message, only.field);
    }
    let mut lines: Vec<String> = Vec::new();
    let mut last = "";
    for conflict in conflicts {
        if conflict.message != last {
            lines.push(format!("{}:", conflict.message.replacen("conflict with", "conflicts with", 1)));
            last = &conflict.message;
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// What no manager owns.
const UNOWNED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

fn strip(set: &mut Set) {
    for path in UNOWNED {
        set.remove_path(path);
    }
}

/// The object without its book-keeping, which is compared and merged separately.
fn without_managed_fields(object: &Value) -> Value {
    let mut out = object.clone();
    if let Some(metadata) = out.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    out
}

fn empty_object() -> Value {
    let mut map = Map::new();
    map.insert("metadata".to_owned(), Value::Object(Map::new()));
    Value::Object(map)
}

/// The object after the apply, `managedFields` included.
pub fn apply(request: ApplyRequest<'_>) -> Result<Value, ApplyError> {
    let result = merge(request);
    if request.manager != last_applied::KUBECTL {
        return result;
    }
    let result = match (result, request.live) {
        (Err(ApplyError::Conflicts(mut conflicts)), Some(live)) => {
            let own = last_applied::still_so(request.schema, live).paths();
            conflicts.retain(|conflict| !own.contains(&conflict.field));
            if conflicts.is_empty() {
                merge(ApplyRequest { force: true, ..request })
            } else {
                Err(ApplyError::Conflicts(conflicts))
            }
        }
        (result, _) => result,
    };
    result.map(|mut merged| {
        last_applied::follow(request.applied, &mut merged);
        merged
    })
}

fn merge(request: ApplyRequest<'_>) -> Result<Value, ApplyError> {
    let ApplyRequest { schema, live, applied, manager, force, subresource, api_version, now } = request;
    if !applied.is_object() {
        return Err(ApplyError::Invalid("the applied configuration must be an object".to_owned()));
    }
    let node = Some(schema.root());
    let mut applied = without_managed_fields(applied);
    if schema.is_builtin {
        crate::schema::drop_nulls(schema.root(), &mut applied);
    }
    let mut set = walk::fields_of(node, &applied).map_err(|error| ApplyError::Invalid(error.to_string()))?;
    strip(&mut set);
    if subresource == "status" {
        set.remove_path(&["spec"]);
        set.children.remove(&set::Element::Field("spec".to_owned()));
    }

    let mut entries = match live {
        Some(live) => managed::read(live).map_err(|error| ApplyError::Invalid(error.to_string()))?,
        None => Vec::new(),
    };
    let base = live.map_or_else(empty_object, without_managed_fields);
    if let Some(live) = live
        && entries.is_empty()
        && live.pointer("/metadata/managedFields").is_none()
    {
        // Somebody wrote this before anyone kept book.
        let mut fields = walk::fields_of(node, &base).unwrap_or_default();
        strip(&mut fields);
        entries.push(Entry {
            manager: "before-first-apply".to_owned(),
            is_apply: false,
            api_version: api_version.to_owned(),
            subresource: String::new(),
            time: Some(managed::stamp(now)),
            fields,
        });
    }
    let mut merged = walk::merge(node, false, &base, &applied);
    let mine = entries.iter().position(|e| e.is(manager, true, api_version, subresource));
    let last = mine.map(|at| entries.remove(at));
    if let Some(last) = &last {
        let mut keep = set.clone();
        entries.iter().for_each(|e| keep.absorb(e.fields.clone()));
        for path in UNOWNED {
            let mut kept = Set::leaf();
            for name in path.iter().rev() {
                let mut outer = Set::default();
                outer.add(set::Element::Field((*name).to_owned()), kept);
                kept = outer;
            }
            keep.absorb(kept);
        }
        walk::remove(node, &mut merged, &last.fields, &keep);
    }

    let mut difference = walk::compare(node, schema.is_builtin, &base, &merged);
    strip(&mut difference.changed);
    let mut conflicts = Vec::new();
    for entry in &mut entries {
        let clash = entry.fields.intersection(&difference.changed);
        if !force {
            conflicts.extend(
                clash
                    .paths()
                    .into_iter()
                    .map(|field| Conflict { message: format!("conflict with {}", entry.title()), field }),
            );
        }
        entry.fields.subtract(&clash);
        entry.fields.subtract(&difference.removed);
    }
    if !conflicts.is_empty() {
        conflicts.sort_by(|a, b| (&a.message, &a.field).cmp(&(&b.message, &b.field)));
        return Err(ApplyError::Conflicts(conflicts));
    }
    // An apply that sets nothing new keeps its time, so that it is no change at all.
    let time = match &last {
        Some(last)
            if last.fields == set
                && last.api_version == api_version
                && difference.changed.is_empty()
                && difference.removed.is_empty() =>
        {
            last.time.clone()
        }
        _ => Some(managed::stamp(now)),
    };
    entries.push(Entry {
        manager: manager.to_owned(),
        is_apply: true,
        api_version: api_version.to_owned(),
        subresource: subresource.to_owned(),
        time,
        fields: set,
    });
    managed::write(&mut merged, entries);
    Ok(merged)
}

/// Keeps book of a write that is not an apply: the manager owns what it changed, others lose it.
pub fn track_update(request: TrackRequest<'_>) {
    let TrackRequest { schema, old, new, manager, subresource, has_status, api_version, now } = request;
    if !new.get("metadata").is_some_and(Value::is_object) {
        return;
    }
    let given = new.pointer("/metadata/managedFields").cloned();
    // An explicit empty list clears the book.
    let reset = given
        .as_ref()
        .and_then(Value::as_array)
        .is_some_and(|list| list.is_empty() || (list.len() == 1 && list[0].as_object().is_some_and(Map::is_empty)));
    if reset && old.is_some() {
        managed::write(new, Vec::new());
        return;
    }
    // Clients may edit entries; what cannot be read is replaced by what was there.
    let kept = |object: Option<&Value>| object.and_then(|o| managed::read(o).ok()).filter(|e| !e.is_empty());
    let mut entries = kept(Some(new)).or_else(|| kept(old)).unwrap_or_default();
    let base = old.map_or_else(empty_object, without_managed_fields);
    let plain = without_managed_fields(new);
    let mut difference = walk::compare(Some(schema.root()), schema.is_builtin, &base, &plain);
    strip(&mut difference.changed);
    strip(&mut difference.removed);
    // The status of a new object is the server's own.
    if old.is_none() && has_status {
        difference.changed.children.remove(&set::Element::Field("status".to_owned()));
    }
    let mine = entries.iter().position(|e| e.is(manager, false, api_version, subresource));
    for (at, entry) in entries.iter_mut().enumerate() {
        if Some(at) != mine {
            entry.fields.subtract(&difference.changed);
        }
        entry.fields.subtract(&difference.removed);
    }
    if !difference.changed.is_empty() {
        let stamp = Some(managed::stamp(now));
        match mine {
            Some(at) => {
                entries[at].fields.absorb(difference.changed);
                entries[at].time = stamp;
            }
            None => entries.push(Entry {
                manager: manager.to_owned(),
                is_apply: false,
                api_version: api_version.to_owned(),
                subresource: subresource.to_owned(),
                time: stamp,
                fields: difference.changed,
            }),
        }
    }
    managed::write(new, entries);
}

#[cfg(test)]
mod tests;
