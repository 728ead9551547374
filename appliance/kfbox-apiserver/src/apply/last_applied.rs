//! From `kubectl apply` on the client to `kubectl apply --server-side`: what the first said in its annotation is no
//! conflict for the second while the object still says the same, and the annotation follows the second.
//! Upstream: structured-merge-diff's `lastappliedmanager.go` and `lastappliedupdater.go` in apimachinery.

use super::{Set, walk, without_managed_fields};
use crate::schema::Schema;
use serde_json::Value;

/// The manager that both of kubectl's ways stand for; others who apply have conflicts like anyone.
pub const KUBECTL: &str = "kubectl";

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Together the annotations may not be larger.
const LIMIT: usize = 256 << 10;

fn configuration(object: &Value) -> Option<&str> {
    object["metadata"]["annotations"][ANNOTATION].as_str().filter(|text| !text.is_empty())
}

/// The fields that the annotation sets to what they still are.
pub fn still_so(schema: &Schema, live: &Value) -> Set {
    let Some(Ok(last)) = configuration(live).map(serde_json::from_str::<Value>) else { return Set::default() };
    let node = Some(schema.root());
    let Ok(mut fields) = walk::fields_of(node, &last) else { return Set::default() };
    let difference = walk::compare(node, schema.is_builtin, &last, &without_managed_fields(live));
    fields.subtract(&difference.changed);
    fields.subtract(&difference.removed);
    fields
}

/// Writes what was applied into the annotation, where there is one.
pub fn follow(applied: &Value, merged: &mut Value) {
    if configuration(merged).is_none() {
        return;
    }
    let mut said = without_managed_fields(applied);
    if let Some(annotations) = said.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(ANNOTATION);
    }
    let Some(annotations) = merged.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else { return };
    annotations.insert(ANNOTATION.to_owned(), format!("{said}\n").into());
    let size = |(key, value): (&String, &Value)| key.len() + value.as_str().map_or(0, str::len);
    if annotations.iter().map(size).sum::<usize>() > LIMIT {
        annotations.remove(ANNOTATION);
    }
}
