//! The rules that the level `restricted` adds: what a pod must give up.

use super::{
    Subject, Violation, bad_settings, baseline::bad_seccomp, containers_named, name, plural, quoted, setters, violation,
};
use serde_json::Value;
use std::collections::BTreeSet;

const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

const OTHER_VOLUMES: [&str; 21] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "nfs",
    "iscsi",
    "glusterfs",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "fc",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "storageos",
];

pub fn privilege_escalation(pod: Subject<'_>) -> Option<Violation> {
    let bad = pod.containers_where(|c| c["securityContext"]["allowPrivilegeEscalation"] != false);
    if bad.is_empty() {
        return None;
    }
    violation(
        "allowPrivilegeEscalation != false",
        format!("{} must set securityContext.allowPrivilegeEscalation=false", containers_named(&bad)),
    )
}

pub fn capabilities(pod: Subject<'_>) -> Option<Violation> {
    let listed = |container: &Value, list: &str| -> Vec<String> {
        let names = container["securityContext"]["capabilities"][list].as_array();
        names.into_iter().flatten().filter_map(|c| c.as_str().map(str::to_owned)).collect()
    };
    let keeping = pod.containers_where(|c| !listed(c, "drop").iter().any(|c| c == "ALL"));
    let mut added = BTreeSet::new();
    let adding = pod.containers_where(|c| {
        let others: Vec<String> = listed(c, "add").into_iter().filter(|c| c != "NET_BIND_SERVICE").collect();
        let any = !others.is_empty();
        added.extend(others);
        any
    });
    let mut wrong = Vec::new();
    if !keeping.is_empty() {
        wrong.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers_named(&keeping)));
    }
    if !adding.is_empty() {
        wrong.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers_named(&adding),
            quoted(added)
        ));
    }
    if wrong.is_empty() { None } else { violation("unrestricted capabilities", wrong.join("; ")) }
}

pub fn volumes(pod: Subject<'_>) -> Option<Violation> {
    let has = |volume: &Value, kind: &str| !volume[kind].is_null();
    let mut kinds = BTreeSet::new();
    let mut bad = Vec::new();
    for volume in pod.volumes().filter(|v| !VOLUMES.iter().any(|kind| has(v, kind))) {
        bad.push(name(volume));
        kinds.insert(OTHER_VOLUMES.into_iter().find(|kind| has(volume, kind)).unwrap_or("unknown"));
    }
    if bad.is_empty() {
        return None;
    }
    let (noun, uses) = (plural("volume", "volumes", bad.len()), plural("uses", "use", bad.len()));
    let what = plural("restricted volume type", "restricted volume types", kinds.len());
    violation("restricted volume types", format!("{noun} {} {uses} {what} {}", quoted(&bad), quoted(kinds)))
}

pub fn run_as_non_root(pod: Subject<'_>) -> Option<Violation> {
    let of_pod = pod.spec["securityContext"]["runAsNonRoot"].as_bool();
    let of = |c: &Value| c["securityContext"]["runAsNonRoot"].as_bool();
    let explicit = pod.containers_where(|c| of(c) == Some(false));
    if let Some(who) = setters(of_pod == Some(false), &explicit) {
        return violation("runAsNonRoot != true", format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let silent = pod.containers_where(|c| of(c).is_none() && of_pod != Some(true));
    if silent.is_empty() {
        return None;
    }
    violation(
        "runAsNonRoot != true",
        format!("pod or {} must set securityContext.runAsNonRoot=true", containers_named(&silent)),
    )
}

pub fn run_as_user(pod: Subject<'_>) -> Option<Violation> {
    let root = |context: &Value| context["runAsUser"] == 0;
    let containers = pod.containers_where(|c| root(&c["securityContext"]));
    let who = setters(root(&pod.spec["securityContext"]), &containers)?;
    violation("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

pub fn seccomp(pod: Subject<'_>) -> Option<Violation> {
    if let Some((who, values)) = bad_settings(pod, bad_seccomp) {
        let detail = format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values));
        return violation("seccompProfile", detail);
    }
    let set = |context: &Value| context["seccompProfile"].is_object();
    if set(&pod.spec["securityContext"]) {
        return None;
    }
    let silent = pod.containers_where(|c| !set(&c["securityContext"]));
    if silent.is_empty() {
        return None;
    }
    violation(
        "seccompProfile",
        format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            containers_named(&silent)
        ),
    )
}
