//! PersistentVolumeClaimResize: only a bound claim grows, and only where its class allows it.

use super::Request;
use crate::{schema::quantity, status::ApiError, store::Key};
use serde_json::Value;

pub fn validate(request: &Request, claim: &Value) -> Result<(), ApiError> {
    let Some(old) = request.old.filter(|_| request.is("persistentvolumeclaims")) else { return Ok(()) };
    let size = |claim: &Value| quantity::of(&claim["spec"]["resources"]["requests"]["storage"]).unwrap_or(0);
    if size(claim) <= size(old) {
        return Ok(());
    }
    if old["status"]["phase"] != "Bound" {
        return Err(request.forbid("Only bound persistent volume claims can be expanded".to_owned()));
    }
    let name = class(claim);
    let allowed = !name.is_empty()
        && name == class(old)
        && request
            .call
            .core
            .store
            .get("storageclasses.storage.k8s.io", &Key::new("", name))
            .is_some_and(|class| class.value()["allowVolumeExpansion"] == true);
    if allowed {
        return Ok(());
    }
    Err(request.forbid(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"
            .to_owned(),
    ))
}

fn class(claim: &Value) -> &str {
    claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"]
        .as_str()
        .or_else(|| claim["spec"]["storageClassName"].as_str())
        .unwrap_or_default()
}
