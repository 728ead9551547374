//! Which priority level and flow a request belongs to: FlowSchemas and PriorityLevelConfigurations of
//! `flowcontrol.apiserver.k8s.io/v1`, the cluster's own over upstream's defaults
//! (apiserver `pkg/apis/flowcontrol/bootstrap`, matching as in `pkg/util/flowcontrol/rule.go`).

use super::queue::{FlowKey, LevelConfig, QueueConfig};
use crate::bootstrap::flowcontrol::default_objects;
use kfbox_base::UserInfo;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

pub const SCHEMAS: &str = "flowschemas.flowcontrol.apiserver.k8s.io";
pub const LEVELS: &str = "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io";

const CATCH_ALL: &str = "catch-all";

/// What of a request decides where it belongs.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub user: &'a UserInfo,
    pub verb: &'a str,
    pub place: Place<'a>,
}

#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    Resource { group: &'a str, resource: &'a str, subresource: &'a str, namespace: &'a str },
    Path(&'a str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classified {
    pub level: Arc<str>,
    pub flow: FlowKey,
    /// The level's requests wait for nobody.
    pub exempt: bool,
    /// UIDs of the schema and the level, where the cluster has objects of them.
    pub uids: (Arc<str>, Arc<str>),
}

#[derive(Debug, Clone)]
struct Schema {
    name: Arc<str>,
    uid: Arc<str>,
    spec: SchemaSpec,
}

#[derive(Debug, Clone, Default)]
pub struct Schemas {
    /// By precedence, then by name.
    schemas: Vec<Schema>,
    levels: BTreeMap<Arc<str>, Level>,
}

#[derive(Debug, Clone)]
struct Level {
    uid: Arc<str>,
    /// None: exempt.
    config: Option<LevelConfig>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SchemaSpec {
    priority_level_configuration: Reference,
    matching_precedence: Option<i64>,
    distinguisher_method: Option<Distinguisher>,
    rules: Vec<Rules>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Reference {
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Distinguisher {
    #[serde(rename = "type")]
    by: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rules {
    subjects: Vec<Subject>,
    resource_rules: Vec<ResourceRule>,
    non_resource_rules: Vec<PathRule>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Subject {
    kind: String,
    user: Reference,
    group: Reference,
    service_account: Account,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Account {
    namespace: String,
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ResourceRule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    cluster_scope: bool,
    namespaces: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PathRule {
    verbs: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    paths: Vec<String>,
}

fn holds(list: &[String], item: &str) -> bool {
    list.iter().any(|x| x == "*" || x == item)
}

impl Subject {
    fn matches(&self, user: &UserInfo) -> bool {
        match &*self.kind {
            "User" => self.user.name == "*" || self.user.name == user.username,
            "Group" => self.group.name == "*" || user.groups.contains(&self.group.name),
            "ServiceAccount" => user.service_account().is_some_and(|(namespace, name)| {
                let Account { namespace: wanted, name: called } = &self.service_account;
                namespace == wanted && (called == "*" || name == called)
            }),
            _ => false,
        }
    }
}

impl ResourceRule {
    fn matches(&self, verb: &str, place: &Place<'_>) -> bool {
        let Place::Resource { group, resource, subresource, namespace } = place else { return false };
        let whole = if subresource.is_empty() { (*resource).to_owned() } else { format!("{resource}/{subresource}") };
        holds(&self.verbs, verb)
            && holds(&self.resources, &whole)
            && holds(&self.api_groups, group)
            && if namespace.is_empty() { self.cluster_scope } else { holds(&self.namespaces, namespace) }
    }
}

impl PathRule {
    fn matches(&self, verb: &str, place: &Place<'_>) -> bool {
        let Place::Path(path) = place else { return false };
        holds(&self.verbs, verb)
            && self.paths.iter().any(|pattern| {
                let prefix = pattern.strip_suffix('*').unwrap_or(pattern);
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
                pattern == "*" || pattern == path || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
            })
    }
}

impl Schemas {
    /// The cluster's objects, over upstream's defaults of other names.
    pub fn new(schemas: &[Value], levels: &[Value]) -> Self {
        let (own_schemas, own_levels) = defaults();
        let mut all = Self::default();
        own_levels.iter().chain(levels).for_each(|level| all.add_level(level));
        own_schemas.iter().chain(schemas).for_each(|schema| all.add_schema(schema));
        // One that names no level there is has no effect.
        let levels = &all.levels;
        all.schemas.retain(|s| levels.contains_key(&*s.spec.priority_level_configuration.name));
        all.schemas.sort_by(|a, b| a.order().cmp(&b.order()));
        all
    }

    fn add_level(&mut self, object: &Value) {
        let spec = &object["spec"];
        let number = |value: &Value, otherwise: u64| {
            usize::try_from(value.as_u64().unwrap_or(otherwise)).unwrap_or(usize::MAX).min(1_000_000)
        };
        let limited = &spec["limited"];
        let config = (spec["type"] != "Exempt").then(|| {
            let queuing = &limited["limitResponse"]["queuing"];
            let queue = (limited["limitResponse"]["type"] == "Queue").then(|| {
                // A flow may wait in as many queues as it is dealt; here each flow has its own.
                let length = number(&queuing["queueLengthLimit"], 50);
                QueueConfig {
                    per_flow: length.saturating_mul(number(&queuing["handSize"], 8)),
                    in_all: length.saturating_mul(number(&queuing["queues"], 64)),
                }
            });
            LevelConfig {
                shares: number(&limited["nominalConcurrencyShares"], 30),
                lendable_percent: number(&limited["lendablePercent"], 0).min(100),
                borrowing_percent: limited["borrowingLimitPercent"].as_u64().map(|p| number(&json!(p), 0)),
                queue,
            }
        });
        self.levels.insert(name(object).into(), Level { uid: uid(object), config });
    }

    fn add_schema(&mut self, object: &Value) {
        match SchemaSpec::deserialize(&object["spec"]) {
            Ok(spec) => {
                self.schemas.retain(|s| &*s.name != name(object));
                self.schemas.push(Schema { name: name(object).into(), uid: uid(object), spec });
            }
            Err(error) => tracing::warn!(schema = name(object), %error, "a FlowSchema cannot be read"),
        }
    }

    /// Levels that share the seats.
    pub fn limited(&self) -> BTreeMap<Arc<str>, LevelConfig> {
        self.levels.iter().filter_map(|(name, level)| Some((name.clone(), level.config.clone()?))).collect()
    }

    pub fn classify(&self, asked: &Asked<'_>) -> Classified {
        let matching = self.schemas.iter().find(|s| s.matches(asked));
        let Some(schema) = matching else {
            // Nobody who is told apart by groups is without one; but a catch-all may have been rewritten.
            let flow = FlowKey { schema: CATCH_ALL.into(), distinguisher: asked.user.username.clone() };
            return Classified { level: CATCH_ALL.into(), flow, exempt: false, uids: ("".into(), "".into()) };
        };
        let distinguisher = match schema.spec.distinguisher_method.as_ref().map(|d| &*d.by) {
            Some("ByUser") => asked.user.username.clone(),
            Some("ByNamespace") => match asked.place {
                Place::Resource { namespace, .. } => namespace.to_owned(),
                Place::Path(_) => String::new(),
            },
            _ => String::new(),
        };
        let level = &*schema.spec.priority_level_configuration.name;
        let (level, state) = match self.levels.get_key_value(level) {
            Some((name, state)) => (name.clone(), Some(state)),
            None => (level.into(), None),
        };
        Classified {
            exempt: state.is_some_and(|s| s.config.is_none()),
            uids: (schema.uid.clone(), state.map(|s| s.uid.clone()).unwrap_or_default()),
            flow: FlowKey { schema: schema.name.clone(), distinguisher },
            level,
        }
    }
}

impl Schema {
    fn order(&self) -> (i64, &str) {
        (self.spec.matching_precedence.unwrap_or(1000), &self.name)
    }

    fn matches(&self, asked: &Asked<'_>) -> bool {
        self.spec.rules.iter().any(|rules| {
            rules.subjects.iter().any(|s| s.matches(asked.user))
                && (rules.resource_rules.iter().any(|r| r.matches(asked.verb, &asked.place))
                    || rules.non_resource_rules.iter().any(|r| r.matches(asked.verb, &asked.place)))
        })
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn uid(object: &Value) -> Arc<str> {
    object["metadata"]["uid"].as_str().unwrap_or_default().into()
}

/// Upstream's mandatory and suggested FlowSchemas and PriorityLevelConfigurations, which the cluster begins with too.
pub fn defaults() -> (Vec<Value>, Vec<Value>) {
    default_objects().into_iter().partition(|object| object["kind"] == "FlowSchema")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, groups: &[&str]) -> UserInfo {
        UserInfo::new(name, groups.iter().map(|g| (*g).to_owned()))
    }

    fn classified(schemas: &Schemas, user: &UserInfo, verb: &str, place: Place<'_>) -> (String, String, String) {
        let c = schemas.classify(&Asked { user, verb, place });
        (c.flow.schema.to_string(), c.level.to_string(), c.flow.distinguisher)
    }

    fn pods(namespace: &str) -> Place<'_> {
        Place::Resource { group: "", resource: "pods", subresource: "", namespace }
    }

    #[test]
    fn each_caller_belongs_where_upstreams_defaults_put_it() {
        let schemas = Schemas::new(&[], &[]);
        let told = |schema: &str, level: &str, by: &str| (schema.to_owned(), level.to_owned(), by.to_owned());
        let account = |name: &str, namespace: &str| {
            user(&format!("system:serviceaccount:{namespace}:{name}"), &["system:serviceaccounts"])
        };
        let (ada, node) = (user("ada", &[]), user("system:node:n", &["system:nodes"]));
        let cases = [
            (user("root", &[UserInfo::MASTERS]), "list", pods("a"), told("exempt", "exempt", "")),
            (ada.clone(), "list", pods("a"), told("global-default", "global-default", "ada")),
            (UserInfo::anonymous(), "get", Place::Path("/readyz/ping"), told("probes", "exempt", "")),
            (
                UserInfo::anonymous(),
                "get",
                Place::Path("/readyzing"),
                told("global-default", "global-default", "system:anonymous"),
            ),
            (
                account("x", "a"),
                "get",
                pods("b"),
                told("service-accounts", "workload-low", "system:serviceaccount:a:x"),
            ),
            (account("x", "kube-system"), "get", pods("b"), told("kube-system-service-accounts", "workload-high", "b")),
            (node.clone(), "get", pods("b"), told("system-nodes", "system", "system:node:n")),
            (
                node,
                "update",
                Place::Resource { group: "", resource: "nodes", subresource: "status", namespace: "" },
                told("system-node-high", "node-high", "system:node:n"),
            ),
        ];
        for (user, verb, place, expected) in cases {
            assert_eq!(classified(&schemas, &user, verb, place), expected, "{} {verb} {place:?}", user.username);
        }
        let root = user("root", &[UserInfo::MASTERS]);
        assert!(schemas.classify(&Asked { user: &root, verb: "get", place: pods("a") }).exempt);
    }

    #[test]
    fn the_clusters_own_objects_come_first_and_cannot_shut_the_administrator_out() {
        let (mut schemas, mut levels) = defaults();
        schemas.retain(|s| name(s) == "global-default");
        let mut own = schemas[0].clone();
        own["metadata"] = json!({"name": "mine", "uid": "u1"});
        own["spec"]["matchingPrecedence"] = 10.into();
        own["spec"]["priorityLevelConfiguration"]["name"] = "narrow".into();
        let mut dangling = own.clone();
        dangling["metadata"]["name"] = "dangling".into();
        dangling["spec"]["matchingPrecedence"] = 2.into();
        dangling["spec"]["priorityLevelConfiguration"]["name"] = "gone".into();
        levels.retain(|l| name(l) == "workload-low");
        levels[0]["metadata"] = json!({"name": "narrow", "uid": "u2"});
        levels[0]["spec"]["limited"]["borrowingLimitPercent"] = 0.into();
        let schemas = Schemas::new(&[own, dangling], &levels);
        let ada = user("ada", &[]);
        let c = schemas.classify(&Asked { user: &ada, verb: "get", place: pods("a") });
        assert_eq!((&*c.level, &*c.flow.schema, &*c.uids.0, &*c.uids.1), ("narrow", "mine", "u1", "u2"));
        let root = user("root", &[UserInfo::MASTERS]);
        assert!(schemas.classify(&Asked { user: &root, verb: "get", place: pods("a") }).exempt);
        let limited = schemas.limited();
        assert!(limited.contains_key("catch-all") && !limited.contains_key("exempt"));
        let expected = QueueConfig { per_flow: 300, in_all: 6400 };
        assert_eq!((limited["narrow"].queue, limited["narrow"].borrowing_percent), (Some(expected), Some(0)));
    }
}
