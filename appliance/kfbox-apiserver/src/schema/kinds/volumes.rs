//! Volumes of pods. Upstream: `ValidateVolumes` in `pkg/apis/core/validation`.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::super::quantity;
use super::{Check, containers, element, join, list, members, meta, names, storage, text};

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const MORE: &str = "may not specify more than 1 volume type";

/// Sources in the order in which upstream looks at them, which decides which of two is one too many.
const SOURCES: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// Checks the volumes and gives the sound ones by name: containers may mount no others.
pub(super) fn check<'a>(
    c: &mut Check,
    spec: &'a Value,
    path: &str,
    pod_name: Option<&str>,
) -> HashMap<&'a str, &'a Value> {
    let mut found: HashMap<&str, &Value> = HashMap::new();
    let all = list(spec, "/volumes");
    let pod_name = pod_name.filter(|name| !name.is_empty());
    let made: HashSet<String> = pod_name.map_or_else(HashSet::new, |pod| {
        let ephemeral = all.iter().filter(|v| v.get("ephemeral").is_some());
        ephemeral.map(|v| format!("{pod}-{}", text(v, "/name"))).collect()
    });
    for (at, volume) in all.iter().enumerate() {
        let path = element(path, "volumes", at);
        let before = c.errors.len();
        sources(c, volume, &path, pod_name);
        let name = c.named(volume, &path, "name", names::dns_label);
        if found.contains_key(name) {
            c.duplicate(&join(&path, "name"), name);
        }
        if c.errors.len() == before {
            found.insert(name, volume);
        }
        let claim = text(volume, "/persistentVolumeClaim/claimName");
        if made.contains(claim) {
            let why = "must not reference a PVC that gets created for an ephemeral volume";
            c.invalid(&join(&path, "persistentVolumeClaim.claimName"), claim, why);
        }
    }
    found
}

fn sources(c: &mut Check, volume: &Value, path: &str, pod_name: Option<&str>) {
    let mut found = SOURCES.iter().filter_map(|kind| Some((*kind, volume.get(*kind)?)));
    let Some((kind, source)) = found.next() else { return c.required(path, "must specify a volume type") };
    volume_source(c, kind, source, &join(path, kind));
    for (kind, _) in found {
        c.forbidden(&join(path, kind), MORE);
    }
    if kind == "ephemeral"
        && let Some(pod) = pod_name
        && !text(volume, "/name").is_empty()
    {
        let claim = format!("{pod}-{}", text(volume, "/name"));
        for why in names::dns_subdomain(&claim) {
            c.invalid(&join(path, "name"), text(volume, "/name"), &format!("PVC name {claim:?}: {why}"));
        }
    }
}

/// What the sources of storage systems cannot do without.
fn needed(kind: &str) -> &'static [&'static str] {
    match kind {
        "gitRepo" => &["repository"],
        "gcePersistentDisk" => &["pdName"],
        "awsElasticBlockStore" | "cinder" | "portworxVolume" => &["volumeID"],
        "iscsi" => &["targetPortal", "iqn"],
        "glusterfs" => &["endpoints", "path"],
        "quobyte" => &["registry", "volume"],
        "flexVolume" | "csi" => &["driver"],
        "azureFile" => &["secretName", "shareName"],
        "azureDisk" => &["diskName", "diskURI"],
        "vsphereVolume" => &["volumePath"],
        "photonPersistentDisk" => &["pdID"],
        "scaleIO" => &["gateway", "system", "volumeName"],
        "rbd" => &["image"],
        "storageos" => &["volumeName"],
        "nfs" => &["server", "path"],
        "persistentVolumeClaim" => &["claimName"],
        "secret" => &["secretName"],
        "configMap" => &["name"],
        _ => &[],
    }
}

/// A source of a pod's volume or of a PersistentVolume.
pub(super) fn volume_source(c: &mut Check, kind: &str, source: &Value, path: &str) {
    for name in needed(kind) {
        c.needs(source, path, name);
    }
    match kind {
        "hostPath" | "local" => {
            let host_path = c.needs(source, path, "path");
            no_backsteps(c, &join(path, "path"), host_path);
            let kinds =
                ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
            c.one_of(source, path, "type", &kinds);
        }
        "emptyDir" if source.get("sizeLimit").and_then(quantity::of).is_some_and(|n| n < 0) => {
            c.forbidden(&join(path, "sizeLimit"), "SizeLimit field must be a valid resource quantity");
        }
        "nfs" => {
            let exported = text(source, "/path");
            if !exported.is_empty() && !exported.starts_with('/') {
                c.invalid(&join(path, "path"), exported, "must be an absolute path");
            }
        }
        "rbd" | "cephfs" if list(source, "/monitors").is_empty() => c.required(&join(path, "monitors"), ""),
        "gitRepo" => relative(c, &join(path, "directory"), text(source, "/directory")),
        "csi" => {
            let driver = text(source, "/driver");
            if !driver.is_empty() {
                c.holds(&join(path, "driver"), driver, |name| names::dns_subdomain(&name.to_lowercase()));
            }
        }
        "secret" | "configMap" => {
            mode(c, source, path, "defaultMode");
            keys(c, source, path);
        }
        "downwardAPI" => {
            mode(c, source, path, "defaultMode");
            downward(c, source, path);
        }
        "projected" => projected(c, source, path),
        "ephemeral" => match source.get("volumeClaimTemplate") {
            None => c.required(&join(path, "volumeClaimTemplate"), ""),
            Some(template) => {
                let path = join(path, "volumeClaimTemplate");
                let metadata = template.get("metadata").unwrap_or(&Value::Null);
                meta::labels(c, metadata, &join(&path, "metadata"));
                for (name, _) in members(metadata, "").filter(|(n, _)| !matches!(n.as_str(), "labels" | "annotations"))
                {
                    c.forbidden(&join(&join(&path, "metadata"), name), "cannot be set");
                }
                storage::claim_spec(c, template.get("spec").unwrap_or(&Value::Null), &join(&path, "spec"));
            }
        },
        "image" => {
            let reference = c.needs(source, path, "reference");
            if reference != reference.trim() {
                c.invalid(&join(path, "reference"), reference, "must not have leading or trailing whitespace");
            }
            c.one_of(source, path, "pullPolicy", &["Always", "IfNotPresent", "Never"]);
        }
        _ => {}
    }
}

fn mode(c: &mut Check, source: &Value, path: &str, name: &str) {
    if let Some(mode) = source.get(name).and_then(Value::as_i64).filter(|m| !(0..=0o777).contains(m)) {
        c.invalid(&join(path, name), mode, MODE);
    }
}

/// `items` of a Secret or ConfigMap.
fn keys(c: &mut Check, source: &Value, path: &str) {
    for (at, item) in list(source, "/items").iter().enumerate() {
        let path = element(path, "items", at);
        c.needs(item, &path, "key");
        let target = c.needs(item, &path, "path");
        unreserved(c, &join(&path, "path"), target);
        mode(c, item, &path, "mode");
    }
}

/// Upstream names the files of the downward API without their index.
fn downward(c: &mut Check, source: &Value, path: &str) {
    for file in list(source, "/items") {
        let target = c.needs(file, path, "path");
        unreserved(c, &join(path, "path"), target);
        match (file.get("fieldRef"), file.get("resourceFieldRef")) {
            (Some(_), Some(_)) => {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                c.invalid(path, "resource", why);
            }
            (Some(field), None) => {
                let known =
                    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
                containers::field_ref(c, field, &join(path, "fieldRef"), &known);
            }
            (None, Some(field)) => containers::resource_field_ref(c, field, &join(path, "resourceFieldRef"), true),
            (None, None) => c.required(path, "one of fieldRef and resourceFieldRef is required"),
        }
        mode(c, file, path, "mode");
    }
}

/// The shortest and longest life of a projected token.
const MIN_TOKEN_SECONDS: i64 = 600;
const MAX_TOKEN_SECONDS: i64 = 1 << 32;

fn projected(c: &mut Check, source: &Value, path: &str) {
    mode(c, source, path, "defaultMode");
    let mut taken: HashSet<&str> = HashSet::new();
    for (at, part) in list(source, "/sources").iter().enumerate() {
        let part_path = element(path, "sources", at);
        let kinds =
            ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];
        let mut found = kinds.iter().filter_map(|kind| Some((*kind, part.get(*kind)?)));
        let Some((kind, inner)) = found.next() else { continue };
        let inner_path = join(&part_path, kind);
        match kind {
            "secret" | "configMap" => {
                c.needs(inner, &inner_path, "name");
                keys(c, inner, &inner_path);
            }
            "downwardAPI" => downward(c, inner, &inner_path),
            "serviceAccountToken" => {
                let field = join(&inner_path, "expirationSeconds");
                match inner.get("expirationSeconds").and_then(Value::as_i64) {
                    Some(n) if n < MIN_TOKEN_SECONDS => {
                        c.invalid(&field, n, "may not specify a duration less than 10 minutes");
                    }
                    Some(n) if n > MAX_TOKEN_SECONDS => {
                        c.invalid(&field, n, "may not specify a duration larger than 2^32 seconds");
                    }
                    _ => {}
                }
                let target = c.needs(inner, &inner_path, "path");
                unreserved(c, &join(&inner_path, "path"), target);
            }
            "clusterTrustBundle" => {
                let target = c.needs(inner, &inner_path, "path");
                unreserved(c, &join(&inner_path, "path"), target);
            }
            _ => {}
        }
        for target in list(inner, "/items").iter().map(|item| text(item, "/path")).filter(|p| !p.is_empty()) {
            if !taken.insert(target) {
                c.invalid(path, text(inner, "/name"), "conflicting duplicate paths");
            }
        }
        for (kind, _) in found {
            c.forbidden(&join(&part_path, kind), MORE);
        }
    }
}

pub(super) fn no_backsteps(c: &mut Check, field: &str, path: &str) {
    if path.split('/').any(|part| part == "..") {
        c.invalid(field, path, "must not contain '..'");
    }
}

/// A path below the place it is given at.
pub(super) fn relative(c: &mut Check, field: &str, path: &str) {
    if path.starts_with('/') {
        c.invalid(field, path, "must be a relative path");
    }
    no_backsteps(c, field, path);
}

/// As [`relative`], and not one of the names that the node keeps for itself.
fn unreserved(c: &mut Check, field: &str, path: &str) {
    relative(c, field, path);
    if path.starts_with("..") && !path.starts_with("../") && path != ".." {
        c.invalid(field, path, "must not start with '..'");
    }
}
