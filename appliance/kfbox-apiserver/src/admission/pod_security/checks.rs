//! The rules of the levels `baseline` and `restricted`, and from which release on each holds. Invariant: pure functions of
//! a pod's annotations and spec; their words are upstream's, since clients show them (pod-security-admission `policy/`).

mod baseline;
mod restricted;

use super::levels::{Level, LevelVersion, Version};
use serde_json::Value;
use std::collections::BTreeSet;

/// What is checked of a pod, or of the template of one.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub metadata: &'a Value,
    pub spec: &'a Value,
}

/// Why a pod is refused: in short, and which of its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub reason: String,
    pub detail: String,
}

type Check = fn(Subject<'_>) -> Option<Violation>;

/// A rule as it is since `since` (1.N), until the next entry of the same name. `instead_of` is a rule of `baseline` that a
/// stricter one makes needless.
struct Rule {
    name: &'static str,
    since: u64,
    check: Check,
    instead_of: &'static str,
}

const fn rule(name: &'static str, since: u64, check: Check) -> Rule {
    Rule { name, since, check, instead_of: "" }
}

const fn stricter(name: &'static str, since: u64, check: Check, instead_of: &'static str) -> Rule {
    Rule { name, since, check, instead_of }
}

/// By name, which is the order of messages.
const BASELINE: &[Rule] = &[
    rule("appArmorProfile", 0, baseline::app_armor),
    rule("capabilities_baseline", 0, baseline::capabilities),
    rule("hostNamespaces", 0, baseline::host_namespaces),
    rule("hostPathVolumes", 0, baseline::host_path_volumes),
    rule("hostPorts", 0, baseline::host_ports),
    rule("hostProbesAndHostLifecycle", 34, baseline::host_probes),
    rule("privileged", 0, baseline::privileged),
    rule("procMount", 0, baseline::proc_mount),
    rule("procMount", 35, baseline::proc_mount_outside_user_namespaces),
    rule("seLinuxOptions", 0, baseline::selinux),
    rule("seLinuxOptions", 31, baseline::selinux_with_engine),
    rule("seccompProfile_baseline", 0, baseline::seccomp_annotations),
    rule("seccompProfile_baseline", 19, baseline::seccomp),
    rule("sysctls", 0, |pod| baseline::sysctls(pod, 5)),
    rule("sysctls", 27, |pod| baseline::sysctls(pod, 6)),
    rule("sysctls", 29, |pod| baseline::sysctls(pod, 10)),
    rule("sysctls", 32, |pod| baseline::sysctls(pod, 12)),
    rule("windowsHostProcess", 0, baseline::windows_host_process),
];

const RESTRICTED: &[Rule] = &[
    rule("allowPrivilegeEscalation", 8, restricted::privilege_escalation),
    rule("allowPrivilegeEscalation", 25, |pod| except_windows(pod, restricted::privilege_escalation)),
    stricter("capabilities_restricted", 22, restricted::capabilities, "capabilities_baseline"),
    stricter(
        "capabilities_restricted",
        25,
        |pod| except_windows(pod, restricted::capabilities),
        "capabilities_baseline",
    ),
    stricter("procMount_restricted", 35, baseline::proc_mount, "procMount"),
    stricter("restrictedVolumes", 0, restricted::volumes, "hostPathVolumes"),
    rule("runAsNonRoot", 0, restricted::run_as_non_root),
    rule("runAsNonRoot", 35, |pod| outside_user_namespaces(pod, restricted::run_as_non_root)),
    rule("runAsUser", 23, restricted::run_as_user),
    rule("runAsUser", 35, |pod| outside_user_namespaces(pod, restricted::run_as_user)),
    stricter("seccompProfile_restricted", 19, restricted::seccomp, "seccompProfile_baseline"),
    stricter(
        "seccompProfile_restricted",
        25,
        |pod| except_windows(pod, restricted::seccomp),
        "seccompProfile_baseline",
    ),
];

/// Everything in a pod that the policy forbids.
pub fn evaluate(policy: LevelVersion, pod: Subject<'_>) -> Vec<Violation> {
    let release = match policy.version {
        Version::Minor(minor) => minor,
        Version::Latest => u64::MAX,
    };
    let strict = match policy.level {
        Level::Privileged => return Vec::new(),
        Level::Baseline => Vec::new(),
        Level::Restricted => in_force(RESTRICTED, release),
    };
    let replaced: Vec<&str> = strict.iter().map(|rule| rule.instead_of).collect();
    in_force(BASELINE, release)
        .into_iter()
        .filter(|rule| !replaced.contains(&rule.name))
        .chain(strict.iter().copied())
        .filter_map(|rule| (rule.check)(pod))
        .collect()
}

fn in_force(rules: &'static [Rule], release: u64) -> Vec<&'static Rule> {
    let mut found: Vec<&Rule> = Vec::with_capacity(rules.len());
    for rule in rules.iter().filter(|rule| rule.since <= release) {
        match found.last_mut() {
            Some(last) if last.name == rule.name => *last = rule,
            _ => found.push(rule),
        }
    }
    found
}

/// `hostPort (container "a" uses hostPort 80), privileged (...)`.
pub fn details(violations: &[Violation]) -> String {
    let one = |v: &Violation| match v.detail.as_str() {
        "" => v.reason.clone(),
        detail => format!("{} ({detail})", v.reason),
    };
    violations.iter().map(one).collect::<Vec<_>>().join(", ")
}

pub fn reasons(violations: &[Violation]) -> String {
    violations.iter().map(|v| v.reason.as_str()).collect::<Vec<_>>().join(", ")
}

fn except_windows(pod: Subject<'_>, check: Check) -> Option<Violation> {
    if pod.spec["os"]["name"] == "windows" { None } else { check(pod) }
}

/// Root in a user namespace of the pod's own is not root on the node.
fn outside_user_namespaces(pod: Subject<'_>, check: Check) -> Option<Violation> {
    if pod.spec["hostUsers"] == false { None } else { check(pod) }
}

impl<'a> Subject<'a> {
    fn containers(self) -> impl Iterator<Item = &'a Value> {
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |list| self.spec[list].as_array().into_iter().flatten())
    }

    /// The names of the containers that `bad` holds for.
    fn containers_where(self, mut bad: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|&c| bad(c)).map(name).collect()
    }

    fn annotation(self, key: &str) -> Option<&'a str> {
        self.metadata["annotations"].get(key)?.as_str()
    }

    fn volumes(self) -> impl Iterator<Item = &'a Value> {
        self.spec["volumes"].as_array().into_iter().flatten()
    }
}

fn name(object: &Value) -> &str {
    object["name"].as_str().unwrap_or_default()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

fn violation(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation { reason: reason.to_owned(), detail })
}

/// `"a", "b"`.
fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| format!("\"{}\"", item.as_ref())).collect();
    items.join(", ")
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// `containers "a", "b"`.
fn containers_named(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// Who set a bad value: the pod, and these containers. Nothing if neither did.
fn setters(pod: bool, containers: &[&str]) -> Option<String> {
    match (pod, containers.is_empty()) {
        (false, true) => None,
        (true, true) => Some("pod".to_owned()),
        (false, false) => Some(containers_named(containers)),
        (true, false) => Some(format!("pod and {}", containers_named(containers))),
    }
}

/// The values of a field of the security context, of the pod and of each container, that `bad` picks: who set them, and
/// what they are.
fn bad_settings<'a>(
    pod: Subject<'a>,
    mut bad: impl FnMut(&'a Value) -> Option<&'a str>,
) -> Option<(String, BTreeSet<&'a str>)> {
    let mut values = BTreeSet::new();
    let mut check = |context: &'a Value| {
        let found = bad(context);
        values.extend(found);
        found.is_some()
    };
    let of_pod = check(&pod.spec["securityContext"]);
    let containers = pod.containers_where(|c| check(&c["securityContext"]));
    setters(of_pod, &containers).map(|who| (who, values))
}

#[cfg(test)]
mod tests;
