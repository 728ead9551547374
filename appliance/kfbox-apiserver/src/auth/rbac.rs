//! Role-based access control in memory. Invariant: what is not granted is denied; `system:masters` alone passes without
//! a rule. Bindings are indexed by subject and namespace, so a decision looks at the caller's own bindings only.
//! Aggregated cluster roles are evaluated live from the roles they select (their stored `rules` are a controller's copy
//! for people to read). Upstream: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>.

use futures::future::BoxFuture;
use kfbox_base::{BoxError, Decision, ResourceAttributes, UserInfo};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    sync::Arc,
};

pub const GROUP: &str = "rbac.authorization.k8s.io";

/// A PolicyRule of `rbac.authorization.k8s.io/v1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(rename = "nonResourceURLs", deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<String>,
}

fn nullable<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default())
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|x| x == item || x == "*")
}

fn resource_matches(rule: &[String], resource: &str, subresource: &str) -> bool {
    rule.iter().any(|pattern| {
        if pattern == "*" {
            return true;
        }
        match pattern.split_once('/') {
            None => subresource.is_empty() && pattern == resource,
            Some((r, s)) => !subresource.is_empty() && s == subresource && (r == "*" || r == resource),
        }
    })
}

fn url_matches(patterns: &[String], path: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    })
}

impl Rule {
    pub fn allows(&self, wanted: &ResourceAttributes) -> bool {
        has(&self.verbs, &wanted.verb)
            && has(&self.api_groups, &wanted.group)
            && resource_matches(&self.resources, &wanted.resource, &wanted.subresource)
            && (self.resource_names.is_empty() || self.resource_names.contains(&wanted.name))
    }

    pub fn allows_url(&self, verb: &str, path: &str) -> bool {
        has(&self.verbs, verb) && url_matches(&self.non_resource_urls, path)
    }

    /// The rule as rules of one verb, group, resource and name each.
    fn atoms(&self) -> Vec<Rule> {
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                atoms.push(Rule { verbs: vec![verb.clone()], non_resource_urls: vec![url.clone()], ..Rule::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let atom = Rule {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        ..Rule::default()
                    };
                    if self.resource_names.is_empty() {
                        atoms.push(atom);
                    } else {
                        atoms.extend(
                            self.resource_names
                                .iter()
                                .map(|name| Rule { resource_names: vec![name.clone()], ..atom.clone() }),
                        );
                    }
                }
            }
        }
        atoms
    }

    /// Whether this rule grants all that the one-element rule `atom` does.
    fn covers(&self, atom: &Rule) -> bool {
        let verb = atom.verbs.first().map_or("", String::as_str);
        if !has(&self.verbs, verb) {
            return false;
        }
        if let Some(url) = atom.non_resource_urls.first() {
            // A pattern is covered by an equal or a shorter prefix.
            return self.non_resource_urls.iter().any(|pattern| {
                pattern == url || pattern.strip_suffix('*').is_some_and(|prefix| url.starts_with(prefix))
            });
        }
        let group = atom.api_groups.first().map_or("", String::as_str);
        let resource = atom.resources.first().map_or("", String::as_str);
        has(&self.api_groups, group)
            && self.resources.iter().any(|mine| {
                mine == resource
                    || mine == "*"
                    || mine
                        .strip_prefix("*/")
                        .is_some_and(|mine| resource.split_once('/').is_some_and(|(_, s)| s == mine))
            })
            && (self.resource_names.is_empty()
                || atom.resource_names.first().is_some_and(|name| self.resource_names.contains(name)))
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_char('{')?;
        let mut first = true;
        for (name, list) in [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.non_resource_urls),
            ("Verbs", &self.verbs),
        ] {
            if !list.is_empty() {
                write!(f, "{}{name}:{list:?}", if first { "" } else { ", " })?;
                first = false;
            }
        }
        f.write_char('}')
    }
}

#[derive(Debug, Clone, Default)]
struct Role {
    rules: Arc<[Rule]>,
    labels: BTreeMap<String, String>,
    selectors: Option<Vec<Selector>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<Expression>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Expression {
    key: String,
    operator: String,
    values: Vec<String>,
}

impl Selector {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
            && self.match_expressions.iter().all(|e| {
                let value = labels.get(&e.key);
                match e.operator.as_str() {
                    "In" => value.is_some_and(|v| e.values.contains(v)),
                    "NotIn" => value.is_none_or(|v| !e.values.contains(v)),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
    }
}

/// `(namespace, name)`; the namespace is empty for cluster roles and cluster bindings.
type Key = (String, String);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

#[derive(Debug, Clone)]
struct Bound {
    role: Key,
    subjects: Vec<Subject>,
}

#[derive(Default)]
struct Index {
    roles: HashMap<Key, Role>,
    /// The rules of aggregated cluster roles, by name.
    aggregated: HashMap<String, Arc<[Rule]>>,
    bindings: HashMap<Key, Bound>,
    /// Bindings by subject and namespace.
    by_subject: HashMap<Subject, HashMap<String, BTreeSet<String>>>,
}

/// The cluster's roles and bindings. Feed it every object of the four kinds with [`Rbac::observe`].
#[derive(Default)]
pub struct Rbac {
    index: RwLock<Index>,
}

impl Rbac {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a Role, ClusterRole, RoleBinding or ClusterRoleBinding as created or updated; other kinds do nothing.
    /// A rule that cannot be read grants nothing.
    pub fn observe(&self, object: &Value) {
        let kind = text(object, "/kind");
        let key: Key = (text(object, "/metadata/namespace").into(), text(object, "/metadata/name").into());
        let mut index = self.index.write();
        match kind {
            "Role" | "ClusterRole" => {
                let role = Role {
                    rules: rules_of(object).into(),
                    labels: object
                        .pointer("/metadata/labels")
                        .and_then(|v| serde_json::from_value(v.clone()).ok())
                        .unwrap_or_default(),
                    selectors: selectors_of(object),
                };
                index.roles.insert(key, role);
                if kind == "ClusterRole" {
                    index.aggregate();
                }
            }
            "RoleBinding" | "ClusterRoleBinding" => {
                index.unbind(&key);
                index.bind(key, object);
            }
            _ => {}
        }
    }

    /// The object was deleted.
    pub fn forget(&self, kind: &str, namespace: &str, name: &str) {
        let key: Key = (namespace.into(), name.into());
        let mut index = self.index.write();
        match kind {
            "Role" | "ClusterRole" => {
                index.roles.remove(&key);
                if kind == "ClusterRole" {
                    index.aggregate();
                }
            }
            "RoleBinding" | "ClusterRoleBinding" => index.unbind(&key),
            _ => {}
        }
    }

    pub fn authorize(&self, user: &UserInfo, wanted: &ResourceAttributes) -> Decision {
        if is_master(user) {
            return Decision::Allow;
        }
        let mut missing = BTreeSet::new();
        let allowed = self.index.read().visit(user, &wanted.namespace, &mut missing, &mut |rule| rule.allows(wanted));
        if allowed {
            return Decision::Allow;
        }
        let mut reason = refusal(user, wanted);
        if !missing.is_empty() {
            let list: Vec<String> = missing.into_iter().collect();
            let _ = write!(reason, ": RBAC: {}", list.join(", "));
        }
        Decision::Deny(reason)
    }

    pub fn authorize_url(&self, user: &UserInfo, verb: &str, path: &str) -> Decision {
        let mut missing = BTreeSet::new();
        if is_master(user) || self.index.read().visit(user, "", &mut missing, &mut |rule| rule.allows_url(verb, path)) {
            return Decision::Allow;
        }
        Decision::Deny(format!("User {:?} cannot {verb} path {path:?}", user.username))
    }

    /// All rules that hold for the user in the namespace, cluster-wide ones included.
    pub fn rules(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let mut rules = Vec::new();
        if is_master(user) {
            rules.extend(full_authority());
        }
        self.index.read().visit(user, namespace, &mut BTreeSet::new(), &mut |rule| {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
            false
        });
        rules
    }

    /// The rules of an aggregated cluster role as they hold now; `None` when the role is not aggregated.
    pub fn aggregated_rules(&self, name: &str) -> Option<Vec<Rule>> {
        self.index.read().aggregated.get(name).map(|rules| rules.to_vec())
    }

    /// Whether the user holds all of `rules` in the namespace (empty: cluster-wide). The error is upstream's sentence.
    pub fn can_grant(&self, user: &UserInfo, namespace: &str, rules: &[Rule]) -> Result<(), String> {
        if is_master(user) {
            return Ok(());
        }
        let held = self.rules(user, namespace);
        let lacking: Vec<String> = rules
            .iter()
            .flat_map(Rule::atoms)
            .filter(|atom| !held.iter().any(|mine| mine.covers(atom)))
            .map(|atom| atom.to_string())
            .collect();
        if lacking.is_empty() {
            return Ok(());
        }
        Err(format!(
            "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
            user.username,
            user.groups,
            lacking.join("\n")
        ))
    }

    /// Checks the write of a Role or ClusterRole: the writer holds what it grants, or may `escalate`.
    pub fn check_role_write(&self, user: &UserInfo, old: Option<&Value>, new: &Value) -> Result<(), String> {
        let (namespace, name) = (text(new, "/metadata/namespace"), text(new, "/metadata/name"));
        let resource = if text(new, "/kind") == "Role" { "roles" } else { "clusterroles" };
        let escalate = ResourceAttributes::namespaced("escalate", GROUP, resource, namespace).named(name);
        if self.authorize(user, &escalate).is_allowed() {
            return Ok(());
        }
        let rules = rules_of(new);
        let old_rules = old.map(rules_of).unwrap_or_default();
        if new.get("aggregationRule").is_some_and(|a| !a.is_null())
            && old.and_then(|o| o.get("aggregationRule")) != new.get("aggregationRule")
            && self.can_grant(user, "", &full_authority()).is_err()
        {
            return Err("must have cluster-admin privileges to use an aggregationRule".into());
        }
        if old.is_some() && rules == old_rules {
            return Ok(());
        }
        self.can_grant(user, namespace, &rules)
    }

    /// Checks the write of a RoleBinding or ClusterRoleBinding: the writer holds what the role grants, or may `bind` it.
    pub fn check_binding_write(&self, user: &UserInfo, old: Option<&Value>, new: &Value) -> Result<(), String> {
        if old.is_some_and(|old| old.get("subjects") == new.get("subjects") && old.get("roleRef") == new.get("roleRef"))
        {
            return Ok(());
        }
        let namespace = text(new, "/metadata/namespace");
        let (kind, name) = (text(new, "/roleRef/kind"), text(new, "/roleRef/name"));
        let resource = if kind == "Role" { "roles" } else { "clusterroles" };
        let bind = ResourceAttributes::namespaced("bind", GROUP, resource, namespace).named(name);
        if self.authorize(user, &bind).is_allowed() {
            return Ok(());
        }
        let key: Key = (if kind == "Role" { namespace.into() } else { String::new() }, name.into());
        let rules = self.index.read().effective(&key);
        match rules {
            Some(rules) => self.can_grant(user, namespace, &rules),
            None => Err(missing_role(&key)),
        }
    }
}

impl Index {
    fn effective(&self, key: &Key) -> Option<Arc<[Rule]>> {
        let role = self.roles.get(key)?;
        if key.0.is_empty() && role.selectors.is_some() {
            return self.aggregated.get(&key.1).cloned();
        }
        Some(role.rules.clone())
    }

    /// Calls `decide` with each rule that holds for the user there, until it says yes.
    fn visit(
        &self,
        user: &UserInfo,
        namespace: &str,
        missing: &mut BTreeSet<String>,
        decide: &mut dyn FnMut(&Rule) -> bool,
    ) -> bool {
        let subjects = std::iter::once(Subject::User(user.username.clone()))
            .chain(user.groups.iter().map(|g| Subject::Group(g.clone())));
        for subject in subjects {
            let Some(namespaces) = self.by_subject.get(&subject) else { continue };
            // "" holds cluster bindings, which hold everywhere; a namespace's own hold only in it.
            let scopes = std::iter::once("").chain((!namespace.is_empty()).then_some(namespace));
            for scope in scopes {
                for name in namespaces.get(scope).into_iter().flatten() {
                    let Some(bound) = self.bindings.get(&(scope.to_owned(), name.clone())) else { continue };
                    match self.effective(&bound.role) {
                        Some(rules) => {
                            if rules.iter().any(&mut *decide) {
                                return true;
                            }
                        }
                        None => {
                            missing.insert(missing_role(&bound.role));
                        }
                    }
                }
            }
        }
        false
    }

    fn bind(&mut self, key: Key, binding: &Value) {
        let namespace = match text(binding, "/roleRef/kind") {
            "Role" if !key.0.is_empty() => key.0.clone(),
            "ClusterRole" => String::new(),
            _ => return,
        };
        let role = (namespace, text(binding, "/roleRef/name").to_owned());
        let subjects: Vec<Subject> = binding
            .get("subjects")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|subject| {
                let name = text(subject, "/name").to_owned();
                match text(subject, "/kind") {
                    "User" => Some(Subject::User(name)),
                    "Group" => Some(Subject::Group(name)),
                    "ServiceAccount" => {
                        let namespace = match text(subject, "/namespace") {
                            "" => key.0.as_str(),
                            namespace => namespace,
                        };
                        (!namespace.is_empty())
                            .then(|| Subject::User(format!("system:serviceaccount:{namespace}:{name}")))
                    }
                    _ => None,
                }
            })
            .collect();
        for subject in &subjects {
            let names = self.by_subject.entry(subject.clone()).or_default().entry(key.0.clone()).or_default();
            names.insert(key.1.clone());
        }
        self.bindings.insert(key, Bound { role, subjects });
    }

    fn unbind(&mut self, key: &Key) {
        let Some(bound) = self.bindings.remove(key) else { return };
        for subject in bound.subjects {
            if let Some(namespaces) = self.by_subject.get_mut(&subject) {
                if let Some(names) = namespaces.get_mut(&key.0) {
                    names.remove(&key.1);
                    if names.is_empty() {
                        namespaces.remove(&key.0);
                    }
                }
                if namespaces.is_empty() {
                    self.by_subject.remove(&subject);
                }
            }
        }
    }

    /// Recomputes aggregated roles. An aggregated role may select another, so each collects over the closure of what it
    /// reaches; a cycle is walked once.
    fn aggregate(&mut self) {
        let mut cluster: Vec<(&str, &Role)> =
            self.roles.iter().filter(|(key, _)| key.0.is_empty()).map(|(key, role)| (key.1.as_str(), role)).collect();
        cluster.sort_by_key(|(name, _)| *name);
        let mut result = HashMap::new();
        for (name, role) in cluster.iter().filter(|(_, role)| role.selectors.is_some()) {
            let mut reached = BTreeSet::from([*name]);
            let mut queue = vec![*role];
            while let Some(role) = queue.pop() {
                for selector in role.selectors.iter().flatten() {
                    for (other, candidate) in &cluster {
                        if selector.matches(&candidate.labels) && reached.insert(other) {
                            queue.push(candidate);
                        }
                    }
                }
            }
            let mut rules: Vec<Rule> = Vec::new();
            for (other, candidate) in &cluster {
                if reached.contains(other) && candidate.selectors.is_none() {
                    for rule in candidate.rules.iter() {
                        if !rules.contains(rule) {
                            rules.push(rule.clone());
                        }
                    }
                }
            }
            result.insert((*name).to_owned(), rules.into());
        }
        self.aggregated = result;
    }
}

/// [`Rbac`] as the daemon's one authorization path.
#[derive(Clone)]
pub struct RbacAuthorizer(pub Arc<Rbac>);

impl kfbox_base::Authorizer for RbacAuthorizer {
    fn authorize<'a>(
        &'a self,
        user: &'a UserInfo,
        attributes: &'a ResourceAttributes,
    ) -> BoxFuture<'a, Result<Decision, BoxError>> {
        Box::pin(std::future::ready(Ok(self.0.authorize(user, attributes))))
    }
}

pub fn is_master(user: &UserInfo) -> bool {
    user.groups.iter().any(|g| g == UserInfo::MASTERS)
}

fn full_authority() -> [Rule; 2] {
    let all = || vec!["*".to_owned()];
    [
        Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
        Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
    ]
}

/// The sentence of a denial: `User "x" cannot list resource "pods" in API group "" in the namespace "y"`.
pub fn refusal(user: &UserInfo, wanted: &ResourceAttributes) -> String {
    let slash = if wanted.subresource.is_empty() { "" } else { "/" };
    let scope = if wanted.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", wanted.namespace)
    };
    format!(
        "User {:?} cannot {} resource \"{}{slash}{}\" in API group {:?} {scope}",
        user.username, wanted.verb, wanted.resource, wanted.subresource, wanted.group
    )
}

/// The whole message of a 403: `pods "a" is forbidden: ` and the reason.
pub fn forbidden(wanted: &ResourceAttributes, reason: &str) -> String {
    let group = if wanted.group.is_empty() { String::new() } else { format!(".{}", wanted.group) };
    let name = if wanted.name.is_empty() { String::new() } else { format!(" {:?}", wanted.name) };
    format!("{}{group}{name} is forbidden: {reason}", wanted.resource)
}

fn missing_role((namespace, name): &Key) -> String {
    let kind = if namespace.is_empty() { "clusterrole" } else { "role" };
    format!("{kind}.{GROUP} {name:?} not found")
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn rules_of(role: &Value) -> Vec<Rule> {
    let rules = role.get("rules").and_then(Value::as_array).into_iter().flatten();
    rules.filter_map(|rule| Rule::deserialize(rule).ok()).collect()
}

fn selectors_of(role: &Value) -> Option<Vec<Selector>> {
    let rule = role.get("aggregationRule").filter(|rule| !rule.is_null())?;
    let selectors = rule.get("clusterRoleSelectors").and_then(Value::as_array).into_iter().flatten();
    // A selector that cannot be read selects nothing; an empty one selects all, as upstream.
    Some(selectors.filter_map(|s| Selector::deserialize(s).ok()).collect())
}

mod why;
pub use why::Asked;

#[cfg(test)]
mod tests;
