//! The three patch types: JSON Patch (RFC 6902), JSON Merge Patch (RFC 7396), strategic merge.
//!
//! Invariant: the object given is never changed; a patch applies whole or not at all.
//! Upstream: <https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/>.

mod strategic;

pub use strategic::strategic;

use serde_json::Value;

use crate::{negotiate::MAX_NESTING, object::nesting};

/// As upstream: a JSON patch of more operations is refused.
const MAX_OPERATIONS: usize = 10_000;
/// What `copy` operations may add in all; doubling copies would otherwise grow without end. Upstream: 3 MiB.
const MAX_COPIED: usize = 3 << 20;

/// Members of values that operations may move deeper, in all: a few seconds' work at most.
const MAX_LOOKED_AT: usize = 20_000_000;

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The body is no patch of its type: 400 BadRequest.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well formed but does not fit the object (a failed `test`, a missing path): 422 Invalid.
    #[error("{0}")]
    Unprocessable(String),
    /// Past a limit: 413 RequestEntityTooLarge.
    #[error("{0}")]
    TooLarge(String),
}

/// Applies a JSON Patch, a list of operations.
pub fn json(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::Malformed(format!("error decoding patch: {error}")))?;
    if operations.0.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.0.len()
        )));
    }
    let mut out = object.clone();
    let mut copied = 0_usize;
    let mut looked_at = 0_usize;
    for operation in &operations.0 {
        // Copies and moves into themselves would else nest without end, and every walk over the object recurses.
        if depth_after(&out, operation, &mut looked_at) > MAX_NESTING {
            return Err(PatchError::TooLarge(format!(
                "the patched object would nest deeper than {MAX_NESTING} levels"
            )));
        }
        if looked_at > MAX_LOOKED_AT {
            return Err(PatchError::TooLarge("the patch moves too much too often".to_owned()));
        }
        if let json_patch::PatchOperation::Copy(copy) = operation {
            let size = out.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
            copied = copied.saturating_add(size);
            if copied > MAX_COPIED {
                return Err(PatchError::TooLarge(format!("copy operations of the patch exceed {MAX_COPIED} bytes")));
            }
        }
        // As upstream's library has it, and as clients that add the first finalizer rely on: what is absent equals null.
        if let json_patch::PatchOperation::Test(test) = operation
            && test.value.is_null()
            && out.pointer(test.path.as_str()).is_none()
        {
            continue;
        }
        json_patch::patch(&mut out, std::slice::from_ref(operation))
            .map_err(|error| PatchError::Unprocessable(error.to_string()))?;
    }
    Ok(out)
}

/// How deep what an operation places will lie: its path's length and its own nesting.
fn depth_after(object: &Value, operation: &json_patch::PatchOperation, looked_at: &mut usize) -> usize {
    use json_patch::PatchOperation;
    let steps = |path: &str| path.matches('/').count();
    let mut below = |from: &str, path: &str| {
        let moved = object.pointer(from).filter(|_| steps(path) > steps(from));
        moved.map_or(0, |value| steps(path) + measure(value, looked_at))
    };
    match operation {
        PatchOperation::Add(add) => steps(add.path.as_str()) + nesting(&add.value),
        PatchOperation::Replace(replace) => steps(replace.path.as_str()) + nesting(&replace.value),
        PatchOperation::Move(moved) => below(moved.from.as_str(), moved.path.as_str()),
        PatchOperation::Copy(copied) => below(copied.from.as_str(), copied.path.as_str()),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => 0,
    }
}

/// The nesting of a value, counting what it took to find out.
fn measure(value: &Value, looked_at: &mut usize) -> usize {
    *looked_at += 1;
    match value {
        Value::Object(map) => 1 + map.values().map(|v| measure(v, looked_at)).max().unwrap_or(0),
        Value::Array(items) => 1 + items.iter().map(|v| measure(v, looked_at)).max().unwrap_or(0),
        _ => 0,
    }
}

/// Applies a JSON Merge Patch: null removes, objects merge, everything else replaces.
pub fn merge(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed("a merge patch must be a JSON object".to_owned()));
    }
    let mut out = object.clone();
    merge_into(&mut out, patch);
    Ok(out)
}

fn merge_into(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(map) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            map.remove(name);
        } else {
            merge_into(map.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests;
