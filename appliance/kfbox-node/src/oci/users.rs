//! A container in a user namespace of its pod's own: what its specification says then. Pure.
//!
//! The container's runtime is a stranger on the host from the moment it enters the namespace: it could reach neither the
//! pod's folders nor its volumes. So the shim lays out all that it needs, with its owners mapped, in [`STAGE`], a folder
//! that only the shim's own mount namespace shows anything in; the specification names what is there.
//! Upstream: <https://kubernetes.io/docs/concepts/workloads/pods/user-namespaces/>

use super::identity::Identity;
pub use kfbox_shim::users::{IDS, STAGE, Staged, Users, rootfs};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {id} is outside of the pod's user namespace, which has the ids 0 to 65535")]
pub struct OutOfRange {
    what: &'static str,
    id: u32,
}

/// Whether the namespace has the ids that the container is to run with.
pub fn check(identity: &Identity) -> Result<(), OutOfRange> {
    let groups = identity.additional.iter().map(|id| ("the group", *id));
    let all = [("the user", identity.uid), ("the group", identity.gid)].into_iter().chain(groups);
    all.filter(|(_, id)| *id >= IDS).map(|(what, id)| Err(OutOfRange { what, id })).next().unwrap_or(Ok(()))
}

/// Changes a specification to name the stage, and says what must be there.
pub fn stage(spec: &mut Value, first: u32, namespace: &Path) -> Users {
    let mut staged = Vec::new();
    let mut put = |value: &mut Value, mapped| {
        let Some(source) = value.as_str().map(PathBuf::from) else { return };
        let target = Path::new(STAGE).join(staged.len().to_string());
        *value = json!(target);
        staged.push(Staged { source, target, mapped });
    };
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        if mount["type"] == "bind" {
            put(&mut mount["source"], true);
        }
    }
    // The user namespace itself is entered while the runtime is still at home.
    for kept in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
        if kept["type"] != "user" && kept.get("path").is_some() {
            put(&mut kept["path"], false);
        }
    }
    spec["root"]["path"] = json!(rootfs());
    Users { first, namespace: namespace.into(), staged }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_is_shown_nothing_but_the_stage() {
        let mut spec = json!({
            "root": { "path": "/var/lib/x/rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/data", "type": "bind", "source": "/var/lib/x/volumes/data" },
            ],
            "linux": { "namespaces": [
                { "type": "mount" },
                { "type": "user", "path": "/run/x/user" },
                { "type": "network", "path": "/run/x/net" },
            ] },
        });
        let users = stage(&mut spec, 1 << 20, Path::new("/run/x/user"));
        assert_eq!(spec["mounts"][0]["source"], "proc");
        assert_eq!(spec["mounts"][1]["source"], "/run/kfbox-stage/0");
        assert_eq!(spec["linux"]["namespaces"][1]["path"], "/run/x/user");
        assert_eq!(spec["linux"]["namespaces"][2]["path"], "/run/kfbox-stage/1");
        assert_eq!(spec["root"]["path"], "/run/kfbox-stage/rootfs");
        let shown: Vec<(&str, bool)> = users.staged.iter().map(|s| (s.source.to_str().unwrap(), s.mapped)).collect();
        assert_eq!(shown, [("/var/lib/x/volumes/data", true), ("/run/x/net", false)]);
    }

    #[test]
    fn ids_beyond_the_namespace_are_refused() {
        assert_eq!(check(&Identity { uid: 65_535, gid: 0, additional: vec![1] }), Ok(()));
        let error = check(&Identity { uid: 0, gid: 0, additional: vec![65_536] }).unwrap_err();
        assert!(error.to_string().starts_with("the group 65536 is outside"), "{error}");
        assert!(check(&Identity { uid: 100_000, gid: 0, additional: vec![] }).is_err());
    }
}
