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
    /// A rule that denies and was not understood whole fits by what was.
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
    let action = if spec["action"].is_null() { "ALLOW" } else { text(spec, "action") };
    let known = matches!(action, "ALLOW" | "DENY");
    if !known {
        problems.push(format!("spec.action {action} is not supported"));
    }
    let selector = labels(&spec["selector"]);
    let shaped = (spec.is_object() || spec.is_null())
        && selector.is_some()
        && (spec["rules"].is_null() || spec["rules"].as_array().is_some_and(|rules| rules.len() <= MOST_RULES));
    if !shaped {
        problems.push(format!("spec: `selector` must be labels, and `rules` a list of at most {MOST_RULES}"));
    }
    if !fine || !known || !shaped {
        problems.push("until then the policy denies everything".into());
        // For all pods, if it is not known for which.
        let rules = vec![Rule::default()];
        return (Policy { denies: true, selector: selector.unwrap_or_default(), rules }, problems);
    }
    let rules = items(&spec["rules"]).iter().enumerate();
    let rules = rules.map(|(n, rule)| rule_of(rule, &format!("spec.rules[{n}]"), &mut problems)).collect();
    (Policy { denies: action == "DENY", selector: selector.unwrap_or_default(), rules }, problems)
}

/// What is said of a policy besides: in a mesh it would also hold between pods, and for what no route leads to.
pub fn reach(mut problems: Problems, namespace: &str, routed: bool) -> Problems {
    if !routed {
        problems.push(format!("no route leads to a Service of {namespace}, so that there is nothing to narrow"));
    }
    if !problems.is_empty() {
        let reach = "a policy narrows only the Services of its own namespace that are reached through the gateway; between \
                     pods, NetworkPolicies count";
        problems.push(reach.into());
    }
    problems
}

/// `None` where something stands that is no set of labels.
fn labels(selector: &Value) -> Option<BTreeMap<String, String>> {
    if selector.is_null() {
        return Some(BTreeMap::new());
    }
    match &selector.as_object()?.get("matchLabels") {
        None | Some(Value::Null) => Some(BTreeMap::new()),
        Some(found) => found.as_object()?.iter().map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect(),
    }
}

/// Reads a rule and keeps in mind what it did not understand.
struct Reader<'a> {
    problems: &'a mut Problems,
    unknown: bool,
}

impl Reader<'_> {
    fn odd(&mut self, problem: String) {
        self.problems.push(problem);
        self.unknown = true;
    }

    fn only(&mut self, value: &Value, at: &str, known: &[&str]) {
        self.unknown |= !only(value, at, known, &[], self.problems);
        if !value.is_object() {
            self.odd(format!("{at} must be an object"));
        }
    }

    /// What is absent is empty; what is there must hold something, as upstream has it.
    fn list<'v>(&mut self, value: &'v Value, at: &str) -> &'v [Value] {
        if !value.is_null() && items(value).is_empty() {
            self.odd(format!("{at} must be a list with something in it"));
        }
        items(value)
    }

    fn strings(&mut self, value: &Value, at: &str) -> Vec<String> {
        let list = self.list(value, at);
        let found: Vec<String> = list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect();
        if found.len() < list.len() {
            self.odd(format!("{at} must be strings"));
        }
        found
    }

    /// The alternatives of `from` or `to`: of each, what is in its `inner`.
    fn alternatives(&mut self, list: &Value, at: &str, inner: &str, known: &[(&str, What)]) -> Vec<Vec<Test>> {
        let each = self.list(list, at).iter().enumerate();
        each.map(|(n, item)| {
            let at = format!("{at}[{n}]");
            self.only(item, &at, &[inner]);
            self.tests(&item[inner], &format!("{at}.{inner}"), known)
        })
        .collect()
    }

    fn tests(&mut self, value: &Value, at: &str, known: &[(&str, What)]) -> Vec<Test> {
        let mut tests = Vec::new();
        for (field, values) in value.as_object().into_iter().flatten().filter(|(_, values)| !values.is_null()) {
            let positive = known.iter().find(|(name, _)| name == field).map(|(_, what)| (*what, false));
            let negative = known.iter().find(|(name, _)| *field == negated(name)).map(|(_, what)| (*what, true));
            match positive.or(negative) {
                Some((what, not)) => {
                    let before = std::mem::take(&mut self.unknown);
                    let values = self.strings(values, &format!("{at}.{field}"));
                    // Half a list is no test: one that denies would let through what it was meant for.
                    if !self.unknown {
                        tests.push(Test { what, values, not });
                    }
                    self.unknown |= before;
                }
                None => self.odd(format!("{at}.{field} is not supported")),
            }
        }
        if tests.is_empty() && !self.unknown {
            self.odd(format!("{at} says nothing"));
        }
        tests
    }
}

fn rule_of(rule: &Value, at: &str, problems: &mut Problems) -> Rule {
    let mut reader = Reader { problems, unknown: false };
    reader.only(rule, at, &["from", "to", "when"]);
    let sources = [("principals", What::Principal), ("namespaces", What::SourceNamespace)];
    let from = reader.alternatives(&rule["from"], &format!("{at}.from"), "source", &sources);
    let operations = [("methods", What::Method), ("paths", What::Path)];
    let to = reader.alternatives(&rule["to"], &format!("{at}.to"), "operation", &operations);
    let mut when = Vec::new();
    for (n, condition) in reader.list(&rule["when"], &format!("{at}.when")).iter().enumerate() {
        let at = format!("{at}.when[{n}]");
        reader.only(condition, &at, &["key", "values", "notValues"]);
        let what = match text(condition, "key") {
            "request.headers[kubeflow-userid]" | "request.auth.claims[email]" => What::User,
            "request.headers[kubeflow-groups]" | "request.auth.claims[groups]" => What::Group,
            "source.namespace" => What::SourceNamespace,
            "source.principal" => What::Principal,
            key => {
                reader.odd(format!("{at}.key {key:?} is not supported"));
                continue;
            }
        };
        // The key is known here by another name, or none.
        let mut values = condition.clone();
        if let Some(fields) = values.as_object_mut() {
            fields.remove("key");
        }
        when.extend(reader.tests(&values, &at, &[("values", what)]));
    }
    Rule { from, to, when, unknown: reader.unknown }
}

/// `notPaths` of `paths`.
fn negated(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| format!("not{}{}", first.to_ascii_uppercase(), letters.as_str())).unwrap_or_default()
}
