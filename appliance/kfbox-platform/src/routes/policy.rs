//! Istio's AuthorizationPolicy, as the box reads it:
//! <https://istio.io/latest/docs/reference/config/security/authorization-policy/>
//!
//! A policy can only take away: who asks must be allowed by the cluster's roles first. Honoured: ALLOW and DENY; `selector`;
//! `from` by principals and namespaces, which are those of Istio's ingress gateway, for that is the box's part; `to` by
//! methods and paths, as the Service sees them; `when` by the user's name, groups, and the source's namespace. What is not
//! known counts against the request: in a rule that allows, it never fits; in one that denies, it always does.

use super::read::{Problems, items, only, text};
use kfbox_base::UserInfo;
use serde_json::Value;
use std::collections::BTreeMap;

/// Who calls the Service, in a mesh.
const PRINCIPAL: &str = "cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account";
const NAMESPACE: &str = "istio-system";
/// Rules of one policy.
const MOST_RULES: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    denies: bool,
    selector: BTreeMap<String, String>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rule {
    /// Each fits if one of its alternatives does; an alternative fits if all its tests do. Empty: always.
    from: Vec<Vec<Test>>,
    to: Vec<Vec<Test>>,
    when: Vec<Test>,
    /// Has something that is not known.
    unknown: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Test {
    what: What,
    values: Vec<String>,
    not: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Principal,
    SourceNamespace,
    Method,
    Path,
    User,
    Group,
}

/// What a policy looks at.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub user: &'a UserInfo,
    pub method: &'a str,
    /// As the Service sees it.
    pub path: &'a str,
}

/// Whether the policies of a namespace let a request to a Service pass whose pods have these labels.
pub fn admits(policies: &[Policy], labels: &BTreeMap<String, String>, asked: Asked<'_>) -> bool {
    let mut acting = policies.iter().filter(|p| p.is_for(labels)).peekable();
    let denied = acting.clone().any(|p| p.denies && p.rules.iter().any(|r| r.fits(asked, true)));
    if denied {
        return false;
    }
    let mut allowing = acting.by_ref().filter(|p| !p.denies).peekable();
    allowing.peek().is_none() || allowing.any(|p| p.rules.iter().any(|r| r.fits(asked, false)))
}

impl Policy {
    /// True also when the labels that are known do not say.
    fn is_for(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.iter().all(|(name, value)| labels.get(name).is_none_or(|found| found == value))
    }
}

impl Rule {
    fn fits(&self, asked: Asked<'_>, denies: bool) -> bool {
        if self.unknown && !denies {
            return false;
        }
        let any = |tests: &[Vec<Test>]| tests.is_empty() || tests.iter().any(|all| all.iter().all(|t| t.fits(asked)));
        any(&self.from) && any(&self.to) && self.when.iter().all(|t| t.fits(asked))
    }
}

impl Test {
    fn fits(&self, asked: Asked<'_>) -> bool {
        let any = |found: &str| self.values.iter().any(|pattern| pattern_fits(pattern, found));
        let fits = match self.what {
            What::Principal => any(PRINCIPAL),
            What::SourceNamespace => any(NAMESPACE),
            What::Method => any(asked.method),
            What::Path => any(asked.path),
            What::User => any(&asked.user.username),
            What::Group => asked.user.groups.iter().any(|g| any(g)),
        };
        fits != self.not
    }
}

/// Exact, or with one `*` at an end; `*` alone is anything that is there.
fn pattern_fits(pattern: &str, found: &str) -> bool {
    if pattern == "*" {
        return !found.is_empty();
    }
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => found.ends_with(end),
        (_, Some(start)) => found.starts_with(start),
        _ => pattern == found,
    }
}

pub fn read(spec: &Value) -> (Policy, Problems) {
    let mut problems = Problems::new();
    let fine = only(spec, "spec", &["selector", "action", "rules"], &[], &mut problems);
    let fine = only(&spec["selector"], "spec.selector", &["matchLabels"], &[], &mut problems) && fine;
    let action = spec["action"].as_str().unwrap_or("ALLOW");
    let selector = spec["selector"]["matchLabels"].as_object().into_iter().flatten();
    let selector = selector.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect();
    if !fine || !matches!(action, "ALLOW" | "DENY") || items(&spec["rules"]).len() > MOST_RULES {
        if !matches!(action, "ALLOW" | "DENY") {
            problems.push(format!("spec.action {action} is not supported"));
        }
        problems.push("until then the policy denies everything".into());
        return (Policy { denies: true, selector, rules: vec![Rule::default()] }, problems);
    }
    let rules = items(&spec["rules"]).iter().enumerate();
    let rules = rules.map(|(n, rule)| rule_of(rule, &format!("spec.rules[{n}]"), &mut problems)).collect();
    (Policy { denies: action == "DENY", selector, rules }, problems)
}

fn rule_of(rule: &Value, at: &str, problems: &mut Problems) -> Rule {
    let mut found = Rule { unknown: !only(rule, at, &["from", "to", "when"], &[], problems), ..Rule::default() };
    let mut alternatives = |list: &Value, inner: &str, known: &[(&str, What)], unknown: &mut bool| -> Vec<Vec<Test>> {
        let each = items(list).iter().enumerate();
        each.map(|(n, item)| tests_of(&item[inner], &format!("{at}.{inner}[{n}]"), known, problems, unknown)).collect()
    };
    let sources = [("principals", What::Principal), ("namespaces", What::SourceNamespace)];
    found.from = alternatives(&rule["from"], "source", &sources, &mut found.unknown);
    let operations = [("methods", What::Method), ("paths", What::Path)];
    found.to = alternatives(&rule["to"], "operation", &operations, &mut found.unknown);
    for (n, condition) in items(&rule["when"]).iter().enumerate() {
        let what = match text(condition, "key") {
            "request.headers[kubeflow-userid]" | "request.auth.claims[email]" => What::User,
            "request.headers[kubeflow-groups]" | "request.auth.claims[groups]" => What::Group,
            "source.namespace" => What::SourceNamespace,
            "source.principal" => What::Principal,
            key => {
                problems.push(format!("{at}.when[{n}].key {key:?} is not supported"));
                found.unknown = true;
                continue;
            }
        };
        for (field, not) in [("values", false), ("notValues", true)] {
            if !condition[field].is_null() {
                found.when.push(Test { what, values: strings(&condition[field]), not });
            }
        }
    }
    found
}

fn tests_of(value: &Value, at: &str, known: &[(&str, What)], problems: &mut Problems, unknown: &mut bool) -> Vec<Test> {
    let mut tests = Vec::new();
    for (field, values) in value.as_object().into_iter().flatten() {
        let positive = known.iter().find(|(name, _)| name == field).map(|(_, what)| (*what, false));
        let negative = known.iter().find(|(name, _)| *field == negated(name)).map(|(_, what)| (*what, true));
        match positive.or(negative) {
            Some((what, not)) => tests.push(Test { what, values: strings(values), not }),
            None => {
                problems.push(format!("{at}.{field} is not supported"));
                *unknown = true;
            }
        }
    }
    tests
}

/// `notPaths` of `paths`.
fn negated(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| format!("not{}{}", first.to_ascii_uppercase(), letters.as_str())).unwrap_or_default()
}

fn strings(value: &Value) -> Vec<String> {
    items(value).iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}
