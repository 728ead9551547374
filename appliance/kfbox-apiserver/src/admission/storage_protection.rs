//! StorageObjectInUseProtection: claims and volumes carry a finalizer, which a controller takes away when nothing uses
//! them any more.

use super::{Request, push};
use serde_json::Value;

pub fn mutate(request: &Request, object: &mut Value) {
    let finalizer = if request.creates("persistentvolumeclaims") {
        "kubernetes.io/pvc-protection"
    } else if request.creates("persistentvolumes") {
        "kubernetes.io/pv-protection"
    } else {
        return;
    };
    let metadata = &mut object["metadata"];
    if !metadata["finalizers"].as_array().into_iter().flatten().any(|f| f == finalizer) {
        push(metadata, "finalizers", finalizer.into());
    }
}
