//! LimitRanger: containers get the requests and limits that a namespace's LimitRanges give by default, and pods and claims
//! beyond their bounds are refused. Upstream: <https://kubernetes.io/docs/concepts/policy/limit-range/>.

use super::{
    Request,
    amounts::{self, Amounts, Quantity},
    pod_resources::{self, Parts},
};
use crate::{
    object::{is_deleting, member_mut},
    status::ApiError,
};
use serde_json::Value;
use std::collections::BTreeSet;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// LimitRanges bound what is asked for, not what is given, nor what the runtime adds.
const ASKED: Parts = Parts { status: false, overhead: false };

enum Subject {
    Pod,
    Claim,
}

fn subject(request: &Request) -> Option<Subject> {
    if request.old.is_some_and(is_deleting) {
        return None;
    }
    match (&*request.call.resource.collection, request.subresource, request.old) {
        ("pods", "", None) | ("pods", "resize", Some(_)) => Some(Subject::Pod),
        ("persistentvolumeclaims", "", _) => Some(Subject::Claim),
        _ => None,
    }
}

fn ranges(request: &Request) -> Result<Vec<Value>, ApiError> {
    let call = request.call;
    let stored = call.core.store.list("limitranges", Some(call.namespace()), None, None)?;
    Ok(stored.objects.iter().map(|o| o.value()).collect())
}

/// The items of a LimitRange that bound things of this type.
fn items<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    range["spec"]["limits"].as_array().into_iter().flatten().filter(move |item| item["type"] == kind)
}

pub fn mutate(request: &Request, object: &mut Value) -> Result<(), ApiError> {
    if matches!(subject(request), Some(Subject::Pod)) {
        for range in ranges(request)? {
            fill(object, &range);
        }
    }
    Ok(())
}

fn fill(pod: &mut Value, range: &Value) {
    let mut defaults = [("requests", serde_json::Map::new()), ("limits", serde_json::Map::new())];
    for item in items(range, "Container") {
        for (at, from) in ["defaultRequest", "default"].iter().enumerate() {
            defaults[at].1.extend(item[*from].as_object().cloned().unwrap_or_default());
        }
    }
    let mut notes = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter(|c| c.is_object()) {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for ((part, defaults), noun) in defaults.iter().zip(["request", "limit"]) {
                let missing: Vec<&String> =
                    defaults.keys().filter(|key| container["resources"][part].get(key.as_str()).is_none()).collect();
                if missing.is_empty() {
                    continue;
                }
                member_mut(container, "resources");
                let own = member_mut(&mut container["resources"], part);
                for key in &missing {
                    own.insert((*key).clone(), defaults[*key].clone());
                }
                // Names in a map are sorted.
                let names: Vec<&str> = missing.iter().map(|key| key.as_str()).collect();
                notes.push(format!("{} {noun} for {what} {name}", names.join(", ")));
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        member_mut(pod, "metadata");
        member_mut(&mut pod["metadata"], "annotations").insert(ANNOTATION.to_owned(), note.into());
    }
}

pub fn validate(request: &Request, object: &Value) -> Result<(), ApiError> {
    let Some(subject) = subject(request) else { return Ok(()) };
    for range in ranges(request)? {
        let errors = match subject {
            Subject::Pod => pod_errors(&range, object, request.old),
            Subject::Claim => claim_errors(&range, object, request.old),
        };
        if !errors.is_empty() {
            return Err(request.forbid(joined(errors)));
        }
    }
    Ok(())
}

/// Several errors as one, each once (apimachinery `pkg/util/errors`).
fn joined(errors: Vec<String>) -> String {
    let mut seen = BTreeSet::new();
    let mut errors: Vec<String> = errors.into_iter().filter(|error| seen.insert(error.clone())).collect();
    if errors.len() == 1 { errors.remove(0) } else { format!("[{}]", errors.join(", ")) }
}

/// What a container or pod asks for.
struct Asked {
    requests: Amounts,
    limits: Amounts,
}

impl Asked {
    fn of_container(container: &Value) -> Self {
        let list = |part: &str| amounts::of(&container["resources"][part]);
        Self { requests: list("requests"), limits: list("limits") }
    }

    fn of_pod(pod: &Value) -> Self {
        Self { requests: pod_resources::requests(pod, ASKED), limits: pod_resources::limits(pod, ASKED) }
    }

    /// What an update leaves as it is was accepted before.
    fn same(&self, before: Option<&Self>, name: &str) -> bool {
        before.is_some_and(|b| {
            b.requests.get(name) == self.requests.get(name) && b.limits.get(name) == self.limits.get(name)
        })
    }
}

fn pod_errors(range: &Value, pod: &Value, old: Option<&Value>) -> Vec<String> {
    let mut errors = Vec::new();
    for item in items(range, "Container") {
        for list in ["containers", "initContainers"] {
            for container in pod["spec"][list].as_array().into_iter().flatten() {
                let before = old
                    .and_then(|old| old["spec"][list].as_array()?.iter().find(|c| c["name"] == container["name"]))
                    .map(Asked::of_container);
                bounds(item, "Container", &Asked::of_container(container), before.as_ref(), &mut errors);
            }
        }
    }
    for item in items(range, "Pod") {
        bounds(item, "Pod", &Asked::of_pod(pod), old.map(Asked::of_pod).as_ref(), &mut errors);
    }
    errors
}

fn bounds(item: &Value, kind: &str, asked: &Asked, before: Option<&Asked>, errors: &mut Vec<String>) {
    for (name, least) in amounts::of(&item["min"]).iter().filter(|(name, _)| !asked.same(before, name)) {
        errors.extend(too_little(kind, name, *least, &asked.requests, &asked.limits));
    }
    for (name, most) in amounts::of(&item["max"]).iter().filter(|(name, _)| !asked.same(before, name)) {
        let start = format!("maximum {name} usage per {kind} is {most}");
        let (request, limit) = (asked.requests.get(name), asked.limits.get(name));
        errors.extend(match limit {
            None => Some(format!("{start}.  No limit is specified")),
            Some(limit) if limit > most => Some(format!("{start}, but limit is {limit}")),
            Some(_) => request.filter(|r| *r > most).map(|request| format!("{start}, but request is {request}")),
        });
    }
    for (name, ratio) in amounts::of(&item["maxLimitRequestRatio"]).iter().filter(|(name, _)| !asked.same(before, name))
    {
        let given = |list: &Amounts| list.get(name).copied().filter(|amount| !amount.is_zero());
        let start = format!("{name} max limit to request ratio per {kind} is {ratio}");
        errors.extend(match (given(&asked.requests), given(&asked.limits)) {
            (None, _) => Some(format!("{start}, but no request is specified or request is 0")),
            (_, None) => Some(format!("{start}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                over_ratio(request, limit, *ratio).map(|found| format!("{start}, but provided ratio is {found:.6}"))
            }
        });
    }
}

fn too_little(kind: &str, name: &str, least: Quantity, requests: &Amounts, limits: &Amounts) -> Option<String> {
    let start = format!("minimum {name} usage per {kind} is {least}");
    match requests.get(name) {
        None => Some(format!("{start}.  No request is specified")),
        Some(request) if *request < least => Some(format!("{start}, but request is {request}")),
        Some(_) => {
            limits.get(name).filter(|limit| **limit < least).map(|limit| format!("{start}, but limit is {limit}"))
        }
    }
}

/// The ratio of limit to request, if it is more than it may be.
#[expect(clippy::cast_precision_loss, reason = "for people to read, and for amounts beyond 10^29, which nobody has")]
fn over_ratio(request: Quantity, limit: Quantity, most: Quantity) -> Option<f64> {
    const UNIT: i128 = 1_000_000_000;
    let ratio = limit.nano() as f64 / request.nano() as f64;
    let over = match (limit.nano().checked_mul(UNIT), request.nano().checked_mul(most.nano())) {
        (Some(limit), Some(allowed)) => limit > allowed,
        _ => ratio > most.nano() as f64 / UNIT as f64,
    };
    over.then_some(ratio)
}

fn claim_errors(range: &Value, claim: &Value, old: Option<&Value>) -> Vec<String> {
    let requests = |claim: &Value| amounts::of(&claim["spec"]["resources"]["requests"]);
    let asked = requests(claim);
    let before = old.map(requests).unwrap_or_default();
    let kind = "PersistentVolumeClaim";
    let changed = |name: &str| asked.get(name).is_none_or(|now| before.get(name) != Some(now));
    let mut errors = Vec::new();
    for item in items(range, kind) {
        for (name, least) in amounts::of(&item["min"]).iter().filter(|(name, _)| changed(name)) {
            errors.extend(too_little(kind, name, *least, &asked, &Amounts::new()));
        }
        for (name, most) in amounts::of(&item["max"]).iter().filter(|(name, _)| changed(name)) {
            let start = format!("maximum {name} usage per {kind} is {most}");
            errors.extend(match asked.get(name) {
                None => Some(format!("{start}.  No request is specified")),
                Some(request) => (request > most).then(|| format!("{start}, but request is {request}")),
            });
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn range(item: Value) -> Value {
        json!({"spec": {"limits": [item]}})
    }

    fn pod(requests: Value, limits: Value) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]}})
    }

    #[test]
    fn defaults_fill_what_is_missing_and_are_noted() {
        let range = range(
            json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}}),
        );
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}}],
            "initContainers": [{"name": "i", "resources": {"limits": {"memory": "2Gi"}}}]}});
        fill(&mut pod, &range);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            pod["spec"]["containers"][1]["resources"],
            json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; memory limit for \
             container b; cpu request for init container i; cpu limit for init container i"
        );
        let before = pod.clone();
        fill(&mut pod, &range);
        assert_eq!(pod, before, "once is enough");
    }

    #[test]
    fn bounds_are_told_as_upstream_tells_them() {
        let errors =
            |item: Value, requests: Value, limits: Value| pod_errors(&range(item), &pod(requests, limits), None);
        let min = json!({"type": "Container", "min": {"cpu": "100m"}});
        assert_eq!(
            errors(min.clone(), json!({}), json!({})),
            ["minimum cpu usage per Container is 100m.  No request is specified"]
        );
        assert_eq!(
            errors(min.clone(), json!({"cpu": "50m"}), json!({})),
            ["minimum cpu usage per Container is 100m, but request is 50m"]
        );
        assert_eq!(
            errors(min, json!({"cpu": "100m"}), json!({"cpu": "10m"})),
            ["minimum cpu usage per Container is 100m, but limit is 10m"]
        );
        let max = json!({"type": "Pod", "max": {"memory": "1Gi"}});
        assert_eq!(
            errors(max.clone(), json!({}), json!({})),
            ["maximum memory usage per Pod is 1Gi.  No limit is specified"]
        );
        assert_eq!(
            errors(max.clone(), json!({}), json!({"memory": "2Gi"})),
            ["maximum memory usage per Pod is 1Gi, but limit is 2Gi"]
        );
        assert_eq!(
            errors(max, json!({"memory": "2Gi"}), json!({"memory": "1Gi"})),
            ["maximum memory usage per Pod is 1Gi, but request is 2Gi"]
        );
        let ratio = json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}});
        assert_eq!(errors(ratio.clone(), json!({"cpu": "1"}), json!({"cpu": "2"})), Vec::<String>::new());
        assert_eq!(
            errors(ratio.clone(), json!({"cpu": "300m"}), json!({"cpu": "1"})),
            ["cpu max limit to request ratio per Container is 2, but provided ratio is 3.333333"]
        );
        assert_eq!(
            errors(ratio.clone(), json!({"cpu": "0"}), json!({"cpu": "1"})),
            ["cpu max limit to request ratio per Container is 2, but no request is specified or request is 0"]
        );
        assert_eq!(
            errors(ratio, json!({"cpu": "1"}), json!({})),
            ["cpu max limit to request ratio per Container is 2, but no limit is specified or limit is 0"]
        );
        assert_eq!(joined(vec!["a".into(), "b".into(), "a".into()]), "[a, b]");
    }

    #[test]
    fn what_an_update_leaves_alone_is_not_judged_again() {
        let max = range(json!({"type": "Container", "max": {"cpu": "1", "memory": "1Gi"}}));
        let old = pod(json!({}), json!({"cpu": "4", "memory": "1Gi"}));
        let new = pod(json!({}), json!({"cpu": "4", "memory": "2Gi"}));
        assert_eq!(pod_errors(&max, &new, Some(&old)), ["maximum memory usage per Container is 1Gi, but limit is 2Gi"]);
        let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        let bounds =
            range(json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}));
        assert_eq!(claim_errors(&bounds, &claim("3Gi"), Some(&claim("3Gi"))), Vec::<String>::new());
        assert_eq!(
            claim_errors(&bounds, &claim("4Gi"), Some(&claim("3Gi"))),
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 4Gi"]
        );
        assert_eq!(
            claim_errors(&bounds, &claim("512Mi"), None),
            ["minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 512Mi"]
        );
    }
}
