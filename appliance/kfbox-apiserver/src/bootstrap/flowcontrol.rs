//! The FlowSchemas and PriorityLevelConfigurations that upstream starts with, with upstream's values (apiserver
//! `pkg/apis/flowcontrol/bootstrap/default.go`), and their upkeep: the mandatory ones are always as they should be, the
//! suggested ones as long as nobody took their annotation away
//! (<https://kubernetes.io/docs/concepts/cluster-administration/flow-control/#defaults>).

use crate::object::now;
use serde_json::{Value, json};

const GROUP: &str = "flowcontrol.apiserver.k8s.io/v1";
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

/// Name, shares, percent lendable, and of queuing ones queues and hand size.
type Level = (&'static str, i64, i64, Option<(i64, i64)>);
const LEVELS: [Level; 7] = [
    ("catch-all", 5, 0, None),
    ("system", 30, 33, Some((64, 6))),
    ("node-high", 40, 25, Some((64, 6))),
    ("leader-election", 10, 0, Some((16, 4))),
    ("workload-high", 40, 50, Some((128, 6))),
    ("workload-low", 100, 90, Some((128, 6))),
    ("global-default", 20, 50, Some((128, 6))),
];
const QUEUE_LENGTH: i64 = 50;

fn level(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": GROUP, "kind": "PriorityLevelConfiguration",
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}}, "spec": spec,
    })
}

fn schema(name: &str, level: &str, precedence: i64, by: &str, rule: Value) -> Value {
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": [rule],
    });
    if !by.is_empty() {
        spec["distinguisherMethod"] = json!({"type": by});
    }
    json!({
        "apiVersion": GROUP, "kind": "FlowSchema",
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}}, "spec": spec,
    })
}

fn groups(names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| json!({"kind": "Group", "group": {"name": name}})).collect()
}

fn users(names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| json!({"kind": "User", "user": {"name": name}})).collect()
}

fn resources(verbs: &[&str], groups: &[&str], resources: &[&str], cluster: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": resources, "namespaces": ["*"]});
    if cluster {
        rule["clusterScope"] = true.into();
    }
    rule
}

/// Everything that these subjects ask.
fn all_of(subjects: Vec<Value>) -> Value {
    json!({
        "subjects": subjects, "resourceRules": [resources(&["*"], &["*"], &["*"], true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    })
}

pub fn default_objects() -> Vec<Value> {
    const EVERYBODY: &[&str] = &["system:unauthenticated", "system:authenticated"];
    const USER: &str = "ByUser";
    const NAMESPACE: &str = "ByNamespace";
    let mut all = vec![level(
        "exempt",
        json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}),
    )];
    all.extend(LEVELS.map(|(name, shares, lendable, queues)| {
        let response = match queues {
            None => json!({"type": "Reject"}),
            Some((queues, hand)) => json!({
                "type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": QUEUE_LENGTH},
            }),
        };
        let limited =
            json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response});
        level(name, json!({"type": "Limited", "limited": limited}))
    }));
    let kube_system = || json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}});
    let leases = |verbs: &[&str]| resources(verbs, &["coordination.k8s.io"], &["leases"], false);
    let mut electors = users(&["system:kube-controller-manager", "system:kube-scheduler"]);
    electors.push(kube_system());
    let nodes = || groups(&["system:nodes"]);
    all.extend([
        schema("exempt", "exempt", 1, "", all_of(groups(&["system:masters"]))),
        schema(
            "probes",
            "exempt",
            2,
            "",
            json!({
                "subjects": groups(EVERYBODY),
                "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}],
            }),
        ),
        schema(
            "system-leader-election",
            "leader-election",
            100,
            USER,
            json!({"subjects": electors, "resourceRules": [leases(&["get", "create", "update"])]}),
        ),
        schema(
            "system-node-high",
            "node-high",
            400,
            USER,
            json!({
                "subjects": nodes(),
                "resourceRules": [resources(&["*"], &[""], &["nodes", "nodes/status"], true), leases(&["*"])],
            }),
        ),
        schema("system-nodes", "system", 500, USER, all_of(nodes())),
        schema(
            "kube-controller-manager",
            "workload-high",
            800,
            NAMESPACE,
            all_of(users(&["system:kube-controller-manager"])),
        ),
        schema("kube-scheduler", "workload-high", 800, NAMESPACE, all_of(users(&["system:kube-scheduler"]))),
        schema("kube-system-service-accounts", "workload-high", 900, NAMESPACE, all_of(vec![kube_system()])),
        schema("service-accounts", "workload-low", 9000, USER, all_of(groups(&["system:serviceaccounts"]))),
        schema("global-default", "global-default", 9900, USER, all_of(groups(EVERYBODY))),
        schema("catch-all", "catch-all", 10_000, USER, all_of(groups(EVERYBODY))),
    ]);
    all
}

/// What a stored default object should be instead, if anything.
pub fn reconcile(stored: &Value, wanted: &Value) -> Option<Value> {
    let mandatory = MANDATORY.iter().any(|name| wanted["metadata"]["name"] == *name);
    if !mandatory && stored["metadata"]["annotations"][AUTO_UPDATE] != "true" {
        return None;
    }
    let mut better = stored.clone();
    better["spec"] = wanted["spec"].clone();
    // How much the exempt lend, and how much of the whole is theirs, is the administrator's to say.
    if stored["spec"]["exempt"].is_object() && wanted["spec"]["type"] == "Exempt" {
        better["spec"]["exempt"] = stored["spec"]["exempt"].clone();
    }
    if mandatory {
        better["metadata"]["annotations"][AUTO_UPDATE] = "true".into();
    }
    (better != *stored).then_some(better)
}

/// A FlowSchema with the condition that tells whether its level is there, if that is news.
pub fn with_dangling(schema: &Value, level_exists: impl Fn(&str) -> bool) -> Option<Value> {
    let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
    let (status, reason, tail) = if level_exists(level) {
        ("False", "Found", "it exists")
    } else {
        ("True", "NotFound", "there is no such object")
    };
    let joint = if status == "False" { "and" } else { "but" };
    let message =
        format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {joint} {tail}");
    let mut conditions = schema["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter_mut().find(|c| c["type"] == "Dangling");
    if found.as_ref().is_some_and(|c| c["status"] == status && c["reason"] == reason && c["message"] == message) {
        return None;
    }
    let new = json!({
        "type": "Dangling", "status": status, "reason": reason, "message": message, "lastTransitionTime": now(),
    });
    match found {
        Some(old) => *old = new,
        None => conditions.push(new),
    }
    let mut out = schema.clone();
    out["status"]["conditions"] = conditions.into();
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mandatory_objects_come_back_and_suggested_ones_are_the_administrators_who_says_so() {
        let objects = default_objects();
        assert_eq!(objects.iter().filter(|o| o["kind"] == "FlowSchema").count(), 11);
        assert_eq!(objects.iter().filter(|o| o["kind"] == "PriorityLevelConfiguration").count(), 8);
        let find = |kind: &str, name: &str| {
            objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name).unwrap()
        };
        let catch_all = find("FlowSchema", "catch-all");
        let mut stored = catch_all.clone();
        stored["spec"]["matchingPrecedence"] = 5.into();
        stored["metadata"]["annotations"][AUTO_UPDATE] = "false".into();
        assert_eq!(reconcile(&stored, catch_all).as_ref(), Some(catch_all));
        let low = find("PriorityLevelConfiguration", "workload-low");
        let mut stored = low.clone();
        stored["spec"]["limited"]["nominalConcurrencyShares"] = 7.into();
        assert_eq!(reconcile(&stored, low).as_ref(), Some(low));
        stored["metadata"]["annotations"][AUTO_UPDATE] = "false".into();
        assert_eq!(reconcile(&stored, low), None);
        let exempt = find("PriorityLevelConfiguration", "exempt");
        let mut stored = exempt.clone();
        stored["spec"]["exempt"]["lendablePercent"] = 50.into();
        assert_eq!(reconcile(&stored, exempt), None);
    }

    #[test]
    fn a_schema_tells_whether_its_level_is_there() {
        let all = default_objects();
        let schema = all.iter().find(|o| o["kind"] == "FlowSchema").unwrap();
        let found = with_dangling(schema, |_| true).unwrap();
        assert_eq!(found["status"]["conditions"][0]["status"], "False");
        assert_eq!(with_dangling(&found, |_| true), None);
        assert_eq!(with_dangling(&found, |_| false).unwrap()["status"]["conditions"][0]["reason"], "NotFound");
    }
}
