//! What a container in a user namespace of its pod's own is to find, and where: in [`STAGE`], which the shim lays out.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// How many ids of the host a pod has: all that 16 bits can name, as the kubelet.
pub const IDS: u32 = 65_536;
/// Empty on the host, and the same for every container: each shim sees its own.
pub const STAGE: &str = "/run/kfbox-stage";

/// What the shim lays out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Users {
    /// The host's id of the pod's root; [`IDS`] are the pod's from there on.
    pub first: u32,
    /// The kept user namespace.
    pub namespace: PathBuf,
    pub staged: Vec<Staged>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Staged {
    pub source: PathBuf,
    pub target: PathBuf,
    /// Files whose owners are to be the pod's. A namespace has none.
    pub mapped: bool,
}

/// Where the container's root is.
pub fn rootfs() -> PathBuf {
    Path::new(STAGE).join("rootfs")
}
