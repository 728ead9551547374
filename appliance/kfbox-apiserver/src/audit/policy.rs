//! Which requests are recorded, and how much of them: `audit.k8s.io/v1` Policy, with upstream's matching
//! (apiserver `pkg/audit/policy`). Invariant: what a request or answer carries is never recorded of resources whose
//! content is a secret, whatever the policy says.

use kfbox_base::{ResourceAttributes, UserInfo};
use serde::Deserialize;

/// What is recorded unless the configuration names another policy.
const DEFAULT: &str = include_str!("default-policy.yaml");

/// A policy larger than this is a mistake.
const LARGEST: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
pub enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("{0} bytes are too many for an audit policy")]
    TooLarge(usize),
    #[error("it cannot be read: {0}")]
    Yaml(#[from] serde_yaml::Error),
    #[error("it is {0:?}, not a Policy of audit.k8s.io/v1")]
    Kind(String),
    #[error("rule {0} names resources as well as paths, of which it may name one")]
    Both(usize),
    #[error("rule {0} names resources by name without saying of which resource")]
    NamesWithoutResources(usize),
    #[error("it has no rules")]
    Empty,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: serde_yaml::Value,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Rule {
    level: Level,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    paths: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// What a request asks, in the policy's terms.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    Resource(&'a ResourceAttributes),
    Path { verb: &'a str, path: &'a str },
}

/// What is recorded of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decided {
    pub level: Level,
    pub omit: Vec<Stage>,
    pub omit_managed_fields: bool,
}

impl Default for Policy {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "a test reads it")]
        Self::parse(DEFAULT).expect("the default policy is one")
    }
}

impl Policy {
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.len() > LARGEST {
            return Err(PolicyError::TooLarge(text.len()));
        }
        let policy: Self = serde_yaml::from_str(text)?;
        if policy.api_version != "audit.k8s.io/v1" || policy.kind != "Policy" {
            return Err(PolicyError::Kind(format!("{} {}", policy.api_version, policy.kind)));
        }
        if policy.rules.is_empty() {
            return Err(PolicyError::Empty);
        }
        for (n, rule) in policy.rules.iter().enumerate() {
            let resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
            if resources && !rule.paths.is_empty() {
                return Err(PolicyError::Both(n));
            }
            if rule.resources.iter().any(|r| r.resources.is_empty() && !r.resource_names.is_empty()) {
                return Err(PolicyError::NamesWithoutResources(n));
            }
        }
        Ok(policy)
    }

    /// The first rule that matches decides; none: nothing is recorded.
    pub fn decide(&self, user: &UserInfo, subject: Subject<'_>) -> Decided {
        let Some(rule) = self.rules.iter().find(|rule| rule.matches(user, subject)) else {
            return Decided::default();
        };
        let level = match subject {
            Subject::Resource(asked) if carries_secrets(asked) => rule.level.min(Level::Metadata),
            Subject::Resource(_) => rule.level,
            // Requests that are not about resources have no objects.
            Subject::Path { .. } => rule.level.min(Level::Metadata),
        };
        Decided {
            level,
            omit: self.omit_stages.iter().chain(&rule.omit_stages).copied().collect(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

/// Secrets, and what takes or answers tokens.
fn carries_secrets(asked: &ResourceAttributes) -> bool {
    matches!(
        (&*asked.group, &*asked.resource, &*asked.subresource),
        ("", "secrets", _) | ("", "serviceaccounts", "token") | ("authentication.k8s.io", _, _)
    )
}

fn names(list: &[String], item: &str) -> bool {
    list.is_empty() || list.iter().any(|x| x == item)
}

impl Rule {
    fn matches(&self, user: &UserInfo, subject: Subject<'_>) -> bool {
        let verb = match subject {
            Subject::Resource(asked) => &asked.verb,
            Subject::Path { verb, .. } => verb,
        };
        let who = names(&self.users, &user.username)
            && (self.user_groups.is_empty() || user.groups.iter().any(|g| self.user_groups.contains(g)));
        if !who || !names(&self.verbs, verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            let Subject::Resource(asked) = subject else { return false };
            return names(&self.namespaces, &asked.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.matches(asked)));
        }
        if !self.paths.is_empty() {
            let Subject::Path { path, .. } = subject else { return false };
            return self.paths.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => pattern == path,
            });
        }
        true
    }
}

impl GroupResources {
    fn matches(&self, asked: &ResourceAttributes) -> bool {
        if self.group != "*" && self.group != asked.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !names(&self.resource_names, &asked.name) {
            return false;
        }
        self.resources.iter().any(|pattern| match pattern.split_once('/') {
            None => pattern == "*" || (asked.subresource.is_empty() && *pattern == asked.resource),
            Some((resource, "*")) => resource == asked.resource,
            Some((resource, subresource)) => {
                !asked.subresource.is_empty()
                    && subresource == asked.subresource
                    && (resource == "*" || resource == asked.resource)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(verb: &str, group: &str, resource: &str, namespace: &str) -> ResourceAttributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        ResourceAttributes {
            subresource: subresource.into(),
            ..ResourceAttributes::namespaced(verb, group, resource, namespace)
        }
    }

    fn level(policy: &Policy, user: &str, verb: &str, group: &str, resource: &str) -> Level {
        let user = UserInfo::new(user, []);
        policy.decide(&user, Subject::Resource(&asked(verb, group, resource, "a"))).level
    }

    #[test]
    fn the_default_records_changes_and_reads_of_secrets_and_not_the_heartbeat() {
        let policy = Policy::default();
        for (user, verb, group, resource, expected) in [
            ("ada", "create", "", "pods", Level::Metadata),
            ("ada", "delete", "apps", "deployments", Level::Metadata),
            ("ada", "get", "", "pods", Level::None),
            ("ada", "list", "", "configmaps", Level::None),
            ("ada", "get", "", "secrets", Level::Metadata),
            ("ada", "watch", "", "secrets", Level::Metadata),
            ("ada", "get", "", "pods/exec", Level::Metadata),
            ("ada", "create", "", "pods/portforward", Level::Metadata),
            ("ada", "get", "", "services/proxy", Level::Metadata),
            ("ada", "create", "", "serviceaccounts/token", Level::Metadata),
            ("ada", "create", "", "events", Level::None),
            ("kfbox:daemon", "patch", "", "pods/status", Level::None),
            ("kfbox:daemon", "update", "coordination.k8s.io", "leases", Level::None),
            ("kfbox:daemon", "create", "authorization.k8s.io", "subjectaccessreviews", Level::None),
            ("kfbox:daemon", "delete", "", "pods", Level::Metadata),
            ("kfbox:daemon", "list", "", "secrets", Level::None),
            ("kfbox:daemon", "create", "", "secrets", Level::Metadata),
        ] {
            assert_eq!(level(&policy, user, verb, group, resource), expected, "{user} {verb} {resource}");
        }
        let path = Subject::Path { verb: "get", path: "/readyz" };
        assert_eq!(policy.decide(&UserInfo::anonymous(), path).level, Level::None);
    }

    #[test]
    fn rules_match_as_upstreams_do_and_the_first_one_decides() {
        let policy = Policy::parse(
            r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- {level: None, users: [quiet]}
- {level: RequestResponse, namespaces: [a], resources: [{group: "", resources: [secrets, "pods/*", "*/scale"]}]}
- {level: Request, resources: [{group: apps, resources: [deployments], resourceNames: [one]}], omitManagedFields: false}
- {level: Metadata, nonResourceURLs: ["/api*"], omitStages: [ResponseStarted]}
- {level: Metadata, userGroups: [staff], verbs: [get], namespaces: [""]}
"#,
        )
        .unwrap();
        assert_eq!(level(&policy, "quiet", "get", "", "secrets"), Level::None);
        // Never what is in them.
        assert_eq!(level(&policy, "ada", "get", "", "secrets"), Level::Metadata);
        assert_eq!(level(&policy, "ada", "get", "", "pods/log"), Level::RequestResponse);
        assert_eq!(level(&policy, "ada", "get", "", "pods"), Level::RequestResponse);
        assert_eq!(level(&policy, "ada", "get", "", "replicationcontrollers/scale"), Level::RequestResponse);
        assert_eq!(level(&policy, "ada", "get", "apps", "deployments"), Level::None);
        let ada = UserInfo::new("ada", ["staff".to_owned()]);
        let one = asked("get", "apps", "deployments", "a").named("one");
        let decided = policy.decide(&ada, Subject::Resource(&one));
        assert_eq!((decided.level, decided.omit_managed_fields), (Level::Request, false));
        let decided = policy.decide(&ada, Subject::Path { verb: "get", path: "/apis/x" });
        assert_eq!(
            (decided.level, &*decided.omit),
            (Level::Metadata, &[Stage::RequestReceived, Stage::ResponseStarted][..])
        );
        let nodes = asked("get", "", "nodes", "");
        assert_eq!(policy.decide(&ada, Subject::Resource(&nodes)).level, Level::Metadata);
        assert_eq!(policy.decide(&ada, Subject::Resource(&asked("get", "", "x", "b"))).level, Level::None);
    }

    #[test]
    fn a_policy_that_is_none_is_refused_with_its_mistake() {
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
        for (text, expected) in [
            ("apiVersion: v1\nkind: Pod\nrules: [{level: None}]".to_owned(), "not a Policy"),
            (format!("{head}rules: []"), "no rules"),
            (format!("{head}rules: [{{level: Loud}}]"), "Loud"),
            (format!("{head}rules: [{{level: None, user: x}}]"), "user"),
            (format!("{head}rules: [{{level: None, namespaces: [a], nonResourceURLs: [/x]}}]"), "rule 0"),
            (format!("{head}rules: [{{level: None, resources: [{{resourceNames: [a]}}]}}]"), "rule 0"),
            ("\u{0}".to_owned(), "cannot be read"),
        ] {
            let error = Policy::parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
