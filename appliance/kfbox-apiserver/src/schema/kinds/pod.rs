//! Pods and pod templates. Upstream: `ValidatePodSpec` in `pkg/apis/core/validation`.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::super::quantity;
use super::containers::{self, Surroundings};
use super::{
    Check, element, entry, index, join, list, members, meta, names, pod_update, scheduling, security, text, volumes,
};

/// Deletion of pods considers this cost, a 32-bit number.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) fn pod(c: &mut Check, value: &Value, old: Option<&Value>) {
    let Some(spec) = value.get("spec") else {
        c.required("spec", "");
        return;
    };
    let metadata = value.get("metadata").unwrap_or(&Value::Null);
    annotations(c, metadata, spec, "metadata.annotations");
    pod_spec(c, spec, "spec", Some(text(metadata, "/name")));
    only_for_pods(c, spec);
    match old {
        Some(old) => pod_update::update(c, spec, &old["spec"]),
        None => {
            if !list(spec, "/ephemeralContainers").is_empty() {
                c.forbidden("spec.ephemeralContainers", "cannot be set on create");
            }
            if !text(spec, "/nodeName").is_empty() && !list(spec, "/schedulingGates").is_empty() {
                c.forbidden("spec.nodeName", "cannot be set until all schedulingGates have been cleared");
            }
        }
    }
}

/// Everything of a pod that a write to one of its subresources leaves in place, and that must hold after it.
pub(super) fn whole(c: &mut Check, value: &Value) {
    let (metadata, spec) = (value.get("metadata").unwrap_or(&Value::Null), &value["spec"]);
    annotations(c, metadata, spec, "metadata.annotations");
    pod_spec(c, spec, "spec", Some(text(metadata, "/name")));
    only_for_pods(c, spec);
}

fn only_for_pods(c: &mut Check, spec: &Value) {
    for kind in ["containers", "initContainers"] {
        for (at, one) in list(spec, &format!("/{kind}")).iter().enumerate() {
            containers::trimmed_image(c, one, &element("spec", kind, at));
        }
    }
}

/// A template of a kind's pods.
pub(super) fn template(c: &mut Check, template: Option<&Value>, path: &str) {
    let Some(template) = template else {
        c.required(path, "");
        return;
    };
    let metadata = template.get("metadata").unwrap_or(&Value::Null);
    // Upstream leaves `metadata` out of these paths.
    meta::labels(c, metadata, path);
    let spec = template.get("spec").unwrap_or(&Value::Null);
    annotations(c, metadata, spec, &join(path, "annotations"));
    let spec_path = join(path, "spec");
    pod_spec(c, spec, &spec_path, None);
    if !list(spec, "/ephemeralContainers").is_empty() {
        c.forbidden(&join(&spec_path, "ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// What a controller that keeps its pods running asks of its template.
pub(super) fn runs_forever(c: &mut Check, template: &Value, path: &str, kind: &str) {
    let spec = template.get("spec").unwrap_or(&Value::Null);
    let policy = text(spec, "/restartPolicy");
    if policy != "Always" {
        c.not_supported(&join(path, "spec.restartPolicy"), &Value::from(policy), &["Always"]);
    }
    if spec.get("activeDeadlineSeconds").is_some() {
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        c.forbidden(&join(path, "spec.activeDeadlineSeconds"), &why);
    }
}

/// Annotations that mean something to pods.
fn annotations(c: &mut Check, metadata: &Value, spec: &Value, path: &str) {
    let found = |name: &str| metadata.pointer("/annotations").and_then(|a| a.get(name)).and_then(Value::as_str);
    if let Some(mirror) = found(MIRROR)
        && text(spec, "/nodeName").is_empty()
    {
        c.invalid(&super::key(path, MIRROR), mirror, "must set spec.nodeName if mirror pod annotation is set");
    }
    if let Some(cost) = found(DELETION_COST) {
        let plain = cost == "0" || !cost.trim_start_matches('-').starts_with('0');
        if cost.starts_with('+') || !plain || cost.parse::<i32>().is_err() {
            c.invalid(&super::key(path, DELETION_COST), cost, "must be a 32bit integer");
        }
    }
}

pub(super) fn pod_spec(c: &mut Check, spec: &Value, path: &str, pod_name: Option<&str>) {
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    let volumes = volumes::check(c, spec, path, pod_name);
    let claims = resource_claims(c, spec, path);
    let around = Surroundings {
        volumes: &volumes,
        claims: &claims,
        restart_policy: text(spec, "/restartPolicy"),
        own_users: spec.get("hostUsers") == Some(&Value::Bool(false)),
        grace,
    };
    containers::check(c, spec, path, &around);
    if let Some(resources) = spec.get("resources") {
        pod_resources(c, spec, resources, &join(path, "resources"), &claims);
    }
    host_network(c, spec, path, pod_name.is_some());
    c.exactly_one_of(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"]);
    c.exactly_one_of(spec, path, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    c.label_map(spec.get("nodeSelector"), &join(path, "nodeSelector"));
    security::pod(c, spec, path);
    scheduling::affinity(c, spec.get("affinity"), &join(path, "affinity"));
    dns(c, spec, path);
    for (at, gate) in list(spec, "/readinessGates").iter().enumerate() {
        let field = join(&element(path, "readinessGates", at), "conditionType");
        c.holds(&field, text(gate, "/conditionType"), names::qualified);
    }
    let mut gates = HashSet::new();
    for (at, gate) in list(spec, "/schedulingGates").iter().enumerate() {
        let (field, name) = (element(path, "schedulingGates", at), text(gate, "/name"));
        c.holds(&field, name, names::qualified);
        if !gates.insert(name) {
            c.duplicate(&field, name);
        }
    }
    scheduling::spread(c, spec, path);
    if around.own_users {
        for (name, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
            if spec.get(name) == Some(&Value::Bool(true)) {
                c.forbidden(&join(path, shown), "when `pod.Spec.HostUsers` is false");
            }
        }
    }
    for name in ["serviceAccountName", "nodeName"] {
        optional(c, spec, path, name, names::dns_subdomain);
    }
    if let Some(seconds) = spec.get("activeDeadlineSeconds").and_then(Value::as_i64)
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        c.invalid(&join(path, "activeDeadlineSeconds"), seconds, "must be between 1 and 2147483647, inclusive");
    }
    for name in ["hostname", "subdomain"] {
        optional(c, spec, path, name, names::dns_label);
    }
    scheduling::tolerations(c, spec, path);
    for (at, alias) in list(spec, "/hostAliases").iter().enumerate() {
        let path = element(path, "hostAliases", at);
        c.ip(&join(&path, "ip"), text(alias, "/ip"));
        for (at, name) in list(alias, "/hostnames").iter().enumerate() {
            c.holds(&element(&path, "hostnames", at), name.as_str().unwrap_or_default(), names::dns_subdomain);
        }
    }
    optional(c, spec, path, "priorityClassName", names::dns_subdomain);
    if let Some(class) = spec.get("runtimeClassName").and_then(Value::as_str) {
        c.holds(&join(path, "runtimeClassName"), class, names::dns_subdomain);
    }
    if spec.get("preemptionPolicy").is_some() {
        c.exactly_one_of(spec, path, "preemptionPolicy", &["PreemptLowerPriority", "Never"]);
    }
    if let Some(overhead) = spec.get("overhead") {
        let mut limits = Map::new();
        limits.insert("limits".to_owned(), overhead.clone());
        containers::resources(c, &Value::Object(limits), &join(path, "overhead"), &claims);
    }
    security::operating_system(c, spec, path);
}

fn optional(c: &mut Check, spec: &Value, path: &str, name: &str, rule: names::Rule) {
    let word = spec.get(name).and_then(Value::as_str).unwrap_or_default();
    if !word.is_empty() {
        c.holds(&join(path, name), word, rule);
    }
}

/// Gives the names that containers may refer to.
fn resource_claims<'a>(c: &mut Check, spec: &'a Value, path: &str) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    for (at, claim) in list(spec, "/resourceClaims").iter().enumerate() {
        let path = element(path, "resourceClaims", at);
        let name = c.needs(claim, &path, "name");
        if !name.is_empty() {
            if found.contains(&name) {
                c.duplicate(&join(&path, "name"), name);
            } else {
                c.holds(&join(&path, "name"), name, names::dns_label);
                found.push(name);
            }
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"];
        match sources.iter().filter(|s| claim.get(**s).is_some()).count() {
            0 => {
                let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                c.invalid(&path, claim.clone(), why);
            }
            1 => {}
            _ => {
                let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                c.invalid(&path, claim.clone(), why);
            }
        }
        for source in sources {
            if let Some(name) = claim.get(source).and_then(Value::as_str) {
                c.holds(&join(&path, source), name, names::dns_subdomain);
            }
        }
    }
    found.sort_unstable();
    found
}

/// Requests and limits of the pod as a whole.
fn pod_resources(c: &mut Check, spec: &Value, resources: &Value, path: &str, claims: &[&str]) {
    if resources.get("claims").is_some() {
        c.forbidden(&join(path, "claims"), "claims cannot be set for Resources at pod-level");
    }
    for kind in ["limits", "requests"] {
        for (name, _) in members(resources, &format!("/{kind}")) {
            if !matches!(name.as_str(), "cpu" | "memory") && !name.starts_with("hugepages-") {
                let supported = ["cpu", "hugepages-", "memory"];
                c.not_supported(&entry(path, kind, name), &Value::from(name.as_str()), &supported);
            }
        }
    }
    containers::resources(c, resources, path, claims);
    let amount = |of: &Value, kind: &str, name: &str| of.get(kind).and_then(|r| r.get(name)).and_then(quantity::of);
    let all = list(spec, "/containers");
    for name in ["cpu", "memory"] {
        let asked: i128 = all.iter().filter_map(|one| amount(&one["resources"], "requests", name)).sum();
        if let Some(given) = amount(resources, "requests", name)
            && asked > given
        {
            let shown = resources["requests"][name].clone();
            let sum = quantity::print(asked);
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            c.invalid(&entry(path, "requests", name), shown, &why);
        }
    }
    for (at, one) in all.iter().enumerate() {
        for (name, limit) in members(one, "/resources/limits") {
            let Some(of_pod) = resources.get("limits").and_then(|l| l.get(name.as_str())) else { continue };
            if quantity::of(limit) > quantity::of(of_pod) {
                let field = join(&super::key(&element(path, "containers", at), name), "limits");
                let why = format!("must be less than or equal to pod limits of {}", containers::plain(of_pod));
                c.invalid(&field, limit.clone(), &why);
            }
        }
    }
}

/// On the host's network a container's port is the host's.
fn host_network(c: &mut Check, spec: &Value, path: &str, is_pod: bool) {
    if spec.get("hostNetwork") != Some(&Value::Bool(true)) {
        return;
    }
    for (at, one) in list(spec, "/containers").iter().enumerate() {
        for (port_at, port) in list(one, "/ports").iter().enumerate() {
            let number = |name: &str| port.get(name).and_then(Value::as_i64).unwrap_or(0);
            let (host, inside) = (number("hostPort"), number("containerPort"));
            if (is_pod || host != 0) && host != inside {
                let field = join(&element(&element(path, "containers", at), "ports", port_at), "hostPort");
                c.invalid(&field, host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

/// The limits of libc's resolver.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;

fn dns(c: &mut Check, spec: &Value, path: &str) {
    let path = join(path, "dnsConfig");
    let config = spec.get("dnsConfig");
    if text(spec, "/dnsPolicy") == "None" {
        if config.is_none() {
            return c.required(&path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if list(spec, "/dnsConfig/nameservers").is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return c.required(&join(&path, "nameservers"), why);
        }
    }
    let Some(config) = config else { return };
    let (servers, searches) = (list(config, "/nameservers"), list(config, "/searches"));
    if servers.len() > MAX_NAMESERVERS {
        let why = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        c.invalid(&join(&path, "nameservers"), servers.to_vec(), &why);
    }
    for (at, server) in servers.iter().enumerate() {
        c.ip(&element(&path, "nameservers", at), server.as_str().unwrap_or_default());
    }
    let field = join(&path, "searches");
    if searches.len() > MAX_SEARCHES {
        let why = format!("must not have more than {MAX_SEARCHES} search paths");
        c.invalid(&field, searches.to_vec(), &why);
    }
    let total: usize = searches.iter().filter_map(Value::as_str).map(|s| s.len() + 1).sum();
    if total > MAX_SEARCH_CHARACTERS + 1 {
        let why =
            format!("must not have more than {MAX_SEARCH_CHARACTERS} characters (including spaces) in the search list");
        c.invalid(&field, searches.to_vec(), &why);
    }
    for (at, search) in searches.iter().enumerate() {
        let search = search.as_str().unwrap_or_default();
        if search != "." {
            let plain = search.strip_suffix('.').unwrap_or(search);
            c.holds(&index(&field, at), plain, names::dns_subdomain_with_underscore);
        }
    }
    for (at, option) in list(config, "/options").iter().enumerate() {
        if text(option, "/name").is_empty() {
            c.required(&element(&path, "options", at), "must not be empty");
        }
    }
}
