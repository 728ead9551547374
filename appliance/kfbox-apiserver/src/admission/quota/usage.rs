//! What an object costs in terms of a ResourceQuota, and which quotas mean it (`pkg/quota/v1/evaluator/core`). Pure.

use crate::admission::{
    amounts::{self, Amounts, Quantity},
    pod_resources::{self, Parts},
    pods,
};
use serde_json::Value;
use std::collections::BTreeSet;

const BY_CLASS: &str = ".storageclass.storage.k8s.io/";

/// Which objects a resource name of a quota speaks of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tracks {
    Pods,
    Services,
    Claims,
    /// The number of objects of a collection, `deployments.apps`.
    Count(String),
}

impl Tracks {
    /// Nothing for names that no object is measured in.
    pub fn of(name: &str) -> Option<Self> {
        if let Some(collection) = name.strip_prefix("count/") {
            return match collection {
                "" => None,
                "pods" => Some(Self::Pods),
                "services" => Some(Self::Services),
                "persistentvolumeclaims" => Some(Self::Claims),
                other => Some(Self::Count(other.to_owned())),
            };
        }
        if let Some((_, what)) = name.split_once(BY_CLASS) {
            return matches!(what, "persistentvolumeclaims" | "requests.storage").then_some(Self::Claims);
        }
        match name {
            "persistentvolumeclaims" | "requests.storage" => Some(Self::Claims),
            "services" | "services.nodeports" | "services.loadbalancers" => Some(Self::Services),
            "configmaps" | "secrets" | "resourcequotas" | "replicationcontrollers" => {
                Some(Self::Count(name.to_owned()))
            }
            "pods" => Some(Self::Pods),
            _ => {
                let asked = name.strip_prefix("requests.");
                let resource = asked.or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
                let compute = matches!(resource, "cpu" | "memory" | "ephemeral-storage");
                let huge = !name.starts_with("limits.") && resource.starts_with("hugepages-");
                let extended = asked.is_some() && !is_native(name);
                (compute || huge || extended).then_some(Self::Pods)
            }
        }
    }

    pub fn collection(&self) -> &str {
        match self {
            Self::Pods => "pods",
            Self::Services => "services",
            Self::Claims => "persistentvolumeclaims",
            Self::Count(collection) => collection,
        }
    }

    pub fn of_collection(collection: &str) -> Self {
        match collection {
            "pods" => Self::Pods,
            "services" => Self::Services,
            "persistentvolumeclaims" => Self::Claims,
            other => Self::Count(other.to_owned()),
        }
    }
}

/// Kubernetes' own resource, as opposed to `nvidia.com/gpu`.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// What is known of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    pub usage: Amounts,
    /// A pod whose node does not end it stops to count at this time, in seconds since the epoch.
    pub until: Option<i64>,
    scopes: Scopes,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Scopes {
    /// Only pods have any but classes of volume attributes, which only claims have.
    pod: bool,
    terminating: bool,
    best_effort: bool,
    cross_namespace: bool,
    priority_class: String,
    attribute_classes: BTreeSet<String>,
}

impl Facts {
    pub fn of(tracks: &Tracks, object: &Value) -> Self {
        match tracks {
            Tracks::Pods => pod(object),
            Tracks::Services => Self { usage: service(object), ..Self::default() },
            Tracks::Claims => claim(object),
            Tracks::Count(collection) => {
                let names = [format!("count/{collection}"), collection.clone()];
                Self { usage: names.into_iter().map(|name| (name, Quantity::count(1))).collect(), ..Self::default() }
            }
        }
    }

    /// At a time, in seconds since the epoch.
    pub fn at(&self, now: i64) -> Amounts {
        if self.until.is_some_and(|until| now > until) {
            return only_there();
        }
        self.usage.clone()
    }

    /// Whether an object is of the scope of a quota: of all its `scopes` and `scopeSelector` entries.
    pub fn is_in(&self, quota: &Value) -> bool {
        let scopes = quota["spec"]["scopes"].as_array().into_iter().flatten();
        let selectors = quota["spec"]["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
        scopes.clone().all(|scope| self.scopes.hold(scope.as_str().unwrap_or_default(), "Exists", &[]))
            && selectors.clone().all(|selector| {
                let text = |field: &str| selector[field].as_str().unwrap_or_default();
                let values = selector["values"].as_array().map(Vec::as_slice).unwrap_or_default();
                self.scopes.hold(text("scopeName"), text("operator"), values)
            })
    }
}

impl Scopes {
    fn hold(&self, scope: &str, operator: &str, values: &[Value]) -> bool {
        let selected = |name: &str| match operator {
            "Exists" => !name.is_empty(),
            "DoesNotExist" => name.is_empty(),
            "In" => values.iter().any(|value| value == name) && !name.is_empty(),
            "NotIn" => !values.iter().any(|value| value == name) || name.is_empty(),
            _ => false,
        };
        match scope {
            "VolumeAttributesClass" if !self.pod => match operator {
                _ if self.attribute_classes.is_empty() => selected(""),
                _ => self.attribute_classes.iter().any(|name| selected(name)),
            },
            _ if !self.pod => false,
            "Terminating" => self.terminating,
            "NotTerminating" => !self.terminating,
            "BestEffort" => self.best_effort,
            "NotBestEffort" => !self.best_effort,
            "PriorityClass" => selected(&self.priority_class),
            "CrossNamespacePodAffinity" => self.cross_namespace,
            _ => false,
        }
    }
}

fn only_there() -> Amounts {
    [("count/pods".to_owned(), Quantity::count(1))].into()
}

fn pod(pod: &Value) -> Facts {
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let mut usage = only_there();
    if !ended {
        let parts = Parts { status: true, overhead: true };
        amounts::add(&mut usage, &compute(&pod_resources::requests(pod, parts), &pod_resources::limits(pod, parts)));
    }
    let metadata = &pod["metadata"];
    let until = metadata["deletionTimestamp"]
        .as_str()
        .and_then(|at| chrono::DateTime::parse_from_rfc3339(at).ok())
        .zip(metadata["deletionGracePeriodSeconds"].as_i64())
        .map(|(at, grace)| at.timestamp().saturating_add(grace));
    let class = pod["status"]["qosClass"].as_str().unwrap_or_else(|| pods::quality(pod));
    let scopes = Scopes {
        pod: true,
        terminating: pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0),
        best_effort: class == "BestEffort",
        cross_namespace: reaches_across_namespaces(&pod["spec"]["affinity"]),
        priority_class: pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned(),
        attribute_classes: BTreeSet::new(),
    };
    Facts { usage, until, scopes }
}

/// Requests and limits under the names that quotas have for them.
fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut usage = Amounts::from([("pods".to_owned(), Quantity::count(1))]);
    for (name, amount) in requests {
        let own_name =
            matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        if own_name {
            usage.insert(name.clone(), *amount);
        }
        if own_name || !is_native(name) {
            usage.insert(format!("requests.{name}"), *amount);
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            usage.insert(format!("limits.{name}"), *amount);
        }
    }
    usage
}

fn reaches_across_namespaces(affinity: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let list = |name: &str| affinity[kind][name].as_array().into_iter().flatten();
        let required = list("requiredDuringSchedulingIgnoredDuringExecution");
        let preferred = list("preferredDuringSchedulingIgnoredDuringExecution").map(|t| &t["podAffinityTerm"]);
        required.chain(preferred).any(|term| {
            term["namespaces"].as_array().is_some_and(|names| !names.is_empty()) || !term["namespaceSelector"].is_null()
        })
    })
}

/// Names that a quota demands of each container and a container does not give, as upstream does for cpu and memory, with
/// the containers: `must specify limits.cpu for: a,b; requests.memory for: a`.
pub fn missing<'a>(pod: &Value, hard: impl Iterator<Item = &'a String>) -> Option<String> {
    if pod_resources::are_set_on_pod(pod) {
        return None;
    }
    let demanded: BTreeSet<&str> = hard
        .map(String::as_str)
        .filter(|name| {
            let resource = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
            matches!(resource, "cpu" | "memory")
        })
        .collect();
    let containers: Vec<(String, Amounts)> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten())
        .map(|container| {
            let list = |part: &str| amounts::of(&container["resources"][part]);
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            (name, compute(&list("requests"), &list("limits")))
        })
        .collect();
    let told: Vec<String> = demanded
        .into_iter()
        .filter_map(|name| {
            let without: BTreeSet<&str> =
                containers.iter().filter(|(_, has)| !has.contains_key(name)).map(|(c, _)| c.as_str()).collect();
            let without: Vec<&str> = without.into_iter().collect();
            (!without.is_empty()).then(|| format!("{name} for: {}", without.join(",")))
        })
        .collect();
    (!told.is_empty()).then(|| format!("must specify {}", told.join("; ")))
}

fn service(service: &Value) -> Amounts {
    let spec = &service["spec"];
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let balanced = spec["type"] == "LoadBalancer";
    let node_ports = match spec["type"].as_str() {
        Some("LoadBalancer") if spec["allocateLoadBalancerNodePorts"] == false => {
            ports.iter().filter(|port| port["nodePort"].as_i64().unwrap_or(0) != 0).count()
        }
        Some("NodePort" | "LoadBalancer") => ports.len(),
        _ => 0,
    };
    [
        ("count/services", 1),
        ("services", 1),
        ("services.loadbalancers", usize::from(balanced)),
        ("services.nodeports", node_ports),
    ]
    .into_iter()
    .map(|(name, count)| (name.to_owned(), Quantity::count(count)))
    .collect()
}

fn claim(claim: &Value) -> Facts {
    let (spec, status) = (&claim["spec"], &claim["status"]);
    let mut usage: Amounts = ["persistentvolumeclaims", "count/persistentvolumeclaims"]
        .into_iter()
        .map(|name| (name.to_owned(), Quantity::count(1)))
        .collect();
    let asked = Quantity::of(&spec["resources"]["requests"]["storage"]);
    let given = Quantity::of(&status["allocatedResources"]["storage"]);
    if let Some(asked) = asked {
        usage.insert("requests.storage".to_owned(), given.map_or(asked, |given| asked.max(given)).rounded_up());
    }
    let class = claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"]
        .as_str()
        .or_else(|| spec["storageClassName"].as_str())
        .unwrap_or_default();
    if !class.is_empty() {
        for name in ["persistentvolumeclaims", "requests.storage"] {
            if let Some(amount) = usage.get(name).copied() {
                usage.insert(format!("{class}{BY_CLASS}{name}"), amount);
            }
        }
    }
    let named = [
        &spec["volumeAttributesClassName"],
        &status["currentVolumeAttributesClassName"],
        &status["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
    ];
    let attribute_classes =
        named.iter().filter_map(|name| name.as_str()).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    Facts { usage, until: None, scopes: Scopes { attribute_classes, ..Scopes::default() } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_say_what_they_count() {
        for (name, tracks) in [
            ("pods", Some(Tracks::Pods)),
            ("count/pods", Some(Tracks::Pods)),
            ("cpu", Some(Tracks::Pods)),
            ("limits.memory", Some(Tracks::Pods)),
            ("requests.ephemeral-storage", Some(Tracks::Pods)),
            ("hugepages-2Mi", Some(Tracks::Pods)),
            ("requests.hugepages-2Mi", Some(Tracks::Pods)),
            ("limits.hugepages-2Mi", None),
            ("requests.nvidia.com/gpu", Some(Tracks::Pods)),
            ("limits.nvidia.com/gpu", None),
            ("nvidia.com/gpu", None),
            ("requests.storage", Some(Tracks::Claims)),
            ("count/persistentvolumeclaims", Some(Tracks::Claims)),
            ("gold.storageclass.storage.k8s.io/requests.storage", Some(Tracks::Claims)),
            ("gold.storageclass.storage.k8s.io/pods", None),
            ("services.nodeports", Some(Tracks::Services)),
            ("secrets", Some(Tracks::Count("secrets".into()))),
            ("count/secrets", Some(Tracks::Count("secrets".into()))),
            ("count/deployments.apps", Some(Tracks::Count("deployments.apps".into()))),
            ("count/", None),
            ("deployments.apps", None),
            ("requests.disk", None),
        ] {
            assert_eq!(Tracks::of(name), tracks, "{name}");
        }
    }

    fn listed(tracks: &Tracks, object: &Value) -> String {
        amounts::listed(&Facts::of(tracks, object).usage)
    }

    #[test]
    fn pods_cost_while_they_live() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "1", "nvidia.com/gpu": "2", "hugepages-2Mi": "4Mi"}, "limits": {"memory": "1Gi", "nvidia.com/gpu": "2"}}},
        ]}});
        assert_eq!(
            listed(&Tracks::Pods, &pod),
            "count/pods=1,cpu=1,hugepages-2Mi=4Mi,limits.memory=1Gi,pods=1,requests.cpu=1,requests.hugepages-2Mi=4Mi,requests.nvidia.com/gpu=2"
        );
        pod["metadata"] = json!({"deletionTimestamp": "1970-01-01T00:01:40Z", "deletionGracePeriodSeconds": 30});
        let facts = Facts::of(&Tracks::Pods, &pod);
        assert_eq!(facts.until, Some(130));
        assert!(facts.at(130).contains_key("pods"));
        assert_eq!(amounts::listed(&facts.at(131)), "count/pods=1", "its node is lost");
        pod["status"] = json!({"phase": "Succeeded"});
        assert_eq!(listed(&Tracks::Pods, &pod), "count/pods=1");
    }

    #[test]
    fn services_and_claims_cost_by_type_and_class() {
        let service = |spec: Value| listed(&Tracks::Services, &json!({"spec": spec}));
        let ports = json!([{"port": 1}, {"port": 2, "nodePort": 30000}]);
        assert_eq!(
            service(json!({"ports": ports})),
            "count/services=1,services=1,services.loadbalancers=0,services.nodeports=0"
        );
        assert!(service(json!({"ports": ports, "type": "NodePort"})).ends_with("nodeports=2"));
        assert!(
            service(json!({"ports": ports, "type": "LoadBalancer"})).ends_with("loadbalancers=1,services.nodeports=2")
        );
        assert!(
            service(json!({"ports": ports, "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false}))
                .ends_with("nodeports=1")
        );
        let mut claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1536Mi"}}}});
        assert_eq!(
            listed(&Tracks::Claims, &claim),
            "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,\
             gold.storageclass.storage.k8s.io/requests.storage=1536Mi,persistentvolumeclaims=1,requests.storage=1536Mi"
        );
        claim["status"]["allocatedResources"]["storage"] = "2Gi".into();
        assert!(listed(&Tracks::Claims, &claim).ends_with("requests.storage=2Gi"));
    }

    #[test]
    fn scopes_choose() {
        let in_scope = |pod: &Value, spec: Value| Facts::of(&Tracks::Pods, pod).is_in(&json!({"spec": spec}));
        let plain = json!({"spec": {"containers": [{"name": "a"}]}});
        let job = json!({"spec": {"activeDeadlineSeconds": 0, "priorityClassName": "high", "containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}],
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"podAffinityTerm": {"namespaceSelector": {}}}]}}}});
        for (scope, of_plain, of_job) in [
            ("Terminating", false, true),
            ("NotTerminating", true, false),
            ("BestEffort", true, false),
            ("NotBestEffort", false, true),
            ("PriorityClass", false, true),
            ("CrossNamespacePodAffinity", false, true),
            ("VolumeAttributesClass", false, false),
            ("Unheard", false, false),
        ] {
            let spec = json!({"scopes": [scope]});
            assert_eq!((in_scope(&plain, spec.clone()), in_scope(&job, spec)), (of_plain, of_job), "{scope}");
        }
        let selector = |operator: &str, values: Value| json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": values}]}});
        for (operator, values, of_plain, of_job) in [
            ("In", json!(["high", "low"]), false, true),
            ("In", json!(["low"]), false, false),
            ("NotIn", json!(["low"]), true, true),
            ("NotIn", json!(["high"]), true, false),
            ("Exists", json!([]), false, true),
            ("DoesNotExist", json!([]), true, false),
        ] {
            let spec = selector(operator, values);
            assert_eq!((in_scope(&plain, spec.clone()), in_scope(&job, spec)), (of_plain, of_job), "{operator}");
        }
        assert!(!in_scope(&job, json!({"scopes": ["Terminating", "BestEffort"]})), "all of them");
        let map = Facts::of(&Tracks::Count("configmaps".into()), &json!({}));
        assert!(map.is_in(&json!({"spec": {}})) && !map.is_in(&json!({"spec": {"scopes": ["NotTerminating"]}})));
        let claim = |name: Value| Facts::of(&Tracks::Claims, &json!({"spec": {"volumeAttributesClassName": name}}));
        assert!(claim(json!("fast")).is_in(&json!({"spec": {"scopes": ["VolumeAttributesClass"]}})));
        assert!(!claim(Value::Null).is_in(&json!({"spec": {"scopes": ["VolumeAttributesClass"]}})));
    }

    #[test]
    fn what_each_container_must_say_is_told() {
        let pod = json!({"spec": {"containers": [{"name": "b"}, {"name": "a", "resources": {"limits": {"cpu": "1"}}}],
            "initContainers": [{"name": "i", "resources": {"requests": {"memory": "1Gi"}, "limits": {"cpu": "1"}}}]}});
        let hard: Vec<String> =
            ["requests.memory", "limits.cpu", "pods", "requests.nvidia.com/gpu"].map(str::to_owned).into();
        assert_eq!(missing(&pod, hard.iter()).unwrap(), "must specify limits.cpu for: b; requests.memory for: a,b");
        assert_eq!(missing(&pod, ["pods".to_owned()].iter()), None);
        let mut own = pod;
        own["spec"]["resources"] = json!({"requests": {"memory": "1Gi"}});
        assert_eq!(missing(&own, hard.iter()), None, "the pod says it for all");
    }
}
