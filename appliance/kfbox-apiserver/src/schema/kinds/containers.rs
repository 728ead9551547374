//! Containers of pods: what they run, see, ask for and are probed with. Upstream: `validateContainerCommon` in
//! `pkg/apis/core/validation`.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::super::quantity;
use super::{Check, FieldError, element, index, join, list, members, names, security, text, volumes};

/// What of the pod a container's rules depend on.
pub(super) struct Surroundings<'a> {
    /// Sound volumes by name.
    pub(super) volumes: &'a HashMap<&'a str, &'a Value>,
    /// Names of the pod's resource claims, sorted.
    pub(super) claims: &'a [&'a str],
    pub(super) restart_policy: &'a str,
    /// The pod has a user namespace of its own.
    pub(super) own_users: bool,
    /// Seconds to stop in.
    pub(super) grace: Option<i64>,
}

pub(super) fn check(c: &mut Check, spec: &Value, path: &str, around: &Surroundings<'_>) {
    let (main, init) = (list(spec, "/containers"), list(spec, "/initContainers"));
    if main.is_empty() {
        c.required(&join(path, "containers"), "");
    }
    let mut names_seen: HashSet<&str> = HashSet::new();
    for (at, one) in main.iter().enumerate() {
        let path = element(path, "containers", at);
        common(c, one, &path, around);
        if !names_seen.insert(text(one, "/name")) {
            c.duplicate(&join(&path, "name"), text(one, "/name"));
        }
        watched(c, one, &path, around);
        restart_rules(c, one, &path);
    }
    host_ports(c, main, &join(path, "containers"), 0);
    for (at, one) in init.iter().enumerate() {
        let own_path = element(path, "initContainers", at);
        common(c, one, &own_path, around);
        restart_rules(c, one, &own_path);
        let name = text(one, "/name");
        if !names_seen.insert(name) && !name.is_empty() {
            c.duplicate(&join(&own_path, "name"), name);
        }
        host_ports(c, std::slice::from_ref(one), &join(path, "initContainers"), at);
        if text(one, "/restartPolicy") == "Always" {
            watched(c, one, &own_path, around);
        } else {
            for name in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if one.get(name).is_some() {
                    let why = "may not be set for init containers without restartPolicy=Always";
                    c.forbidden(&join(&own_path, name), why);
                }
            }
        }
    }
    let others = names_seen.clone();
    for (at, one) in list(spec, "/ephemeralContainers").iter().enumerate() {
        let path = element(path, "ephemeralContainers", at);
        common(c, one, &path, around);
        trimmed_image(c, one, &path);
        if !names_seen.insert(text(one, "/name")) {
            c.duplicate(&join(&path, "name"), text(one, "/name"));
        }
        ephemeral(c, one, &path, &others);
    }
}

/// A debugger's container has none of what makes a workload.
fn ephemeral(c: &mut Check, one: &Value, path: &str, others: &HashSet<&str>) {
    const WHY: &str = "cannot be set for an Ephemeral Container";
    let target = text(one, "/targetContainerName");
    if !target.is_empty() && !others.contains(target) {
        c.push(FieldError::not_found(&join(path, "targetContainerName"), &Value::from(target)));
    }
    for name in
        ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "restartPolicy", "resizePolicy"]
    {
        if one.get(name).is_some_and(|v| !v.is_null() && v != &json!([])) {
            c.forbidden(&join(path, name), WHY);
        }
    }
    if members(one, "/resources").any(|(_, v)| v != &json!({}) && v != &json!([])) {
        c.forbidden(&join(path, "resources"), WHY);
    }
    for (at, mount) in list(one, "/volumeMounts").iter().enumerate() {
        for name in ["subPath", "subPathExpr"] {
            if !text(mount, &format!("/{name}")).is_empty() {
                c.forbidden(&join(&element(path, "volumeMounts", at), name), WHY);
            }
        }
    }
}

/// Pods, not templates: some templates carry images that something fills in later.
pub(super) fn trimmed_image(c: &mut Check, one: &Value, path: &str) {
    let image = text(one, "/image");
    if image != image.trim() {
        c.invalid(&join(path, "image"), image, "must not have leading or trailing whitespace");
    }
}

fn common(c: &mut Check, one: &Value, path: &str, around: &Surroundings<'_>) {
    c.named(one, path, "name", names::dns_label);
    c.needs(one, path, "image");
    c.exactly_one_of(one, path, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"]);
    ports(c, one, path);
    env(c, one, path);
    env_from(c, one, path);
    mounts(c, one, path, around);
    devices(c, one, path, around);
    c.exactly_one_of(one, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"]);
    resources(c, one.get("resources").unwrap_or(&Value::Null), &join(path, "resources"), around.claims);
    resize_policy(c, one, &join(path, "resizePolicy"), around.restart_policy);
    security::container(c, one, &join(path, "securityContext"), around.own_users);
}

/// Hooks and probes.
fn watched(c: &mut Check, one: &Value, path: &str, around: &Surroundings<'_>) {
    if let Some(lifecycle) = one.get("lifecycle") {
        let kinds = ["exec", "httpGet", "tcpSocket", "sleep"];
        for name in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.get(name) {
                handler(c, hook, &join(path, &format!("lifecycle.{name}")), &kinds, around.grace);
            }
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = one.get(name) {
            check_probe(c, probe, &join(path, name), name == "readinessProbe", around.grace);
        }
    }
}

fn restart_rules(c: &mut Check, one: &Value, path: &str) {
    if one.get("restartPolicy").is_some() {
        c.exactly_one_of(one, path, "restartPolicy", &["Always", "OnFailure", "Never"]);
    } else if !list(one, "/restartPolicyRules").is_empty() {
        c.required(&join(path, "restartPolicy"), "must specify restartPolicy when restart rules are used");
    }
}

/// `first` is the index of the first of the containers.
fn host_ports(c: &mut Check, containers: &[Value], path: &str, first: usize) {
    let mut seen = HashSet::new();
    for (at, one) in containers.iter().enumerate() {
        for (port_at, port) in list(one, "/ports").iter().enumerate() {
            let number = port.get("hostPort").and_then(Value::as_i64).unwrap_or(0);
            let taken = format!("{}/{}/{number}", text(port, "/protocol"), text(port, "/hostIP"));
            if number != 0 && !seen.insert(taken.clone()) {
                c.duplicate(&join(&element(&index(path, first + at), "ports", port_at), "hostPort"), taken);
            }
        }
    }
}

fn ports(c: &mut Check, one: &Value, path: &str) {
    let mut seen = HashSet::new();
    for (at, port) in list(one, "/ports").iter().enumerate() {
        let path = element(path, "ports", at);
        let name = text(port, "/name");
        if !name.is_empty() {
            let faults = names::port_name(name);
            if faults.is_empty() && !seen.insert(name) {
                c.duplicate(&join(&path, "name"), name);
            }
            c.holds(&join(&path, "name"), name, names::port_name);
        }
        match port.get("containerPort").and_then(Value::as_i64) {
            None | Some(0) => c.required(&join(&path, "containerPort"), ""),
            Some(number) => c.port(&join(&path, "containerPort"), number),
        }
        if let Some(number) = port.get("hostPort").and_then(Value::as_i64).filter(|n| *n != 0) {
            c.port(&join(&path, "hostPort"), number);
        }
        c.exactly_one_of(port, &path, "protocol", &["SCTP", "TCP", "UDP"]);
    }
}

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn env(c: &mut Check, one: &Value, path: &str) {
    for (at, variable) in list(one, "/env").iter().enumerate() {
        let path = element(path, "env", at);
        c.named(variable, &path, "name", names::environment_variable);
        let Some(source) = variable.get("valueFrom") else { continue };
        let path = join(&path, "valueFrom");
        let mut count = 0;
        if let Some(field) = source.get("fieldRef") {
            count += 1;
            field_ref(c, field, &join(&path, "fieldRef"), ENV_FIELDS);
        }
        if let Some(field) = source.get("resourceFieldRef") {
            count += 1;
            resource_field_ref(c, field, &join(&path, "resourceFieldRef"), false);
        }
        for kind in ["configMapKeyRef", "secretKeyRef"] {
            let Some(reference) = source.get(kind) else { continue };
            count += 1;
            let path = join(&path, kind);
            c.holds(&join(&path, "name"), text(reference, "/name"), names::dns_subdomain);
            c.named(reference, &path, "key", names::config_key);
        }
        if let Some(reference) = source.get("fileKeyRef") {
            count += 1;
            let path = join(&path, "fileKeyRef");
            c.named(reference, &path, "key", names::environment_variable);
            c.needs(reference, &path, "volumeName");
            let file = c.needs(reference, &path, "path");
            volumes::relative(c, &join(&path, "path"), file);
        }
        if count == 0 {
            c.invalid(&path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`");
        } else if !text(variable, "/value").is_empty() {
            c.invalid(&path, "", "may not be specified when `value` is not empty");
        } else if count > 1 {
            c.invalid(&path, "", "may not have more than one field specified at a time");
        }
    }
}

fn env_from(c: &mut Check, one: &Value, path: &str) {
    let list_path = join(path, "envFrom");
    for (at, source) in list(one, "/envFrom").iter().enumerate() {
        let path = index(&list_path, at);
        let prefix = text(source, "/prefix");
        if !prefix.is_empty() {
            c.holds(&join(&path, "prefix"), prefix, names::environment_variable);
        }
        let mut count = 0;
        for kind in ["configMapRef", "secretRef"] {
            if let Some(reference) = source.get(kind) {
                count += 1;
                let path = join(&path, kind);
                let name = c.needs(reference, &path, "name");
                if !name.is_empty() {
                    c.holds(&join(&path, "name"), &names::prefix(name), names::dns_subdomain);
                }
            }
        }
        // Upstream gives these two for the list.
        match count {
            0 => c.invalid(&list_path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => c.invalid(&list_path, "", "may not have more than one field specified at a time"),
        }
    }
}

/// Fields of a pod as the downward API knows them.
const POD_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

pub(super) fn field_ref(c: &mut Check, reference: &Value, path: &str, known: &[&str]) {
    let version = c.needs(reference, path, "apiVersion");
    if version.is_empty() {
        return;
    }
    let named = c.needs(reference, path, "fieldPath");
    if named.is_empty() {
        return;
    }
    let field = join(path, "fieldPath");
    if version != "v1" {
        return c.invalid(&field, named, &format!("error converting fieldPath: unsupported pod version: {version}"));
    }
    let subscripted = named.strip_suffix("']").and_then(|rest| rest.split_once("['"));
    let base = subscripted.map_or(named, |(base, _)| base);
    let base = if base == "spec.host" { "spec.nodeName" } else { base };
    let convertible = match subscripted {
        Some(_) => matches!(base, "metadata.annotations" | "metadata.labels"),
        None => POD_FIELDS.contains(&base),
    };
    if !convertible {
        return c.invalid(&field, named, &format!("error converting fieldPath: field label not supported: {named}"));
    }
    match subscripted {
        Some(("metadata.annotations", key)) => c.holds(path, key, names::qualified_any_case),
        Some((_, key)) => c.holds(path, key, names::qualified),
        None if !known.contains(&base) => c.not_supported(&field, &Value::from(base), known),
        None => {}
    }
}

const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const DIVISORS: &str = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei";

pub(super) fn resource_field_ref(c: &mut Check, reference: &Value, path: &str, in_volume: bool) {
    let resource = text(reference, "/resource");
    let huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if in_volume && text(reference, "/containerName").is_empty() {
        c.required(&join(path, "containerName"), "");
    } else if resource.is_empty() {
        c.required(&join(path, "resource"), "");
    } else if !huge && !RESOURCE_FIELDS.contains(&resource) {
        c.not_supported(&join(path, "resource"), &Value::from(resource), RESOURCE_FIELDS);
    }
    let divisor = text(reference, "/divisor");
    if reference.get("divisor").and_then(quantity::of).unwrap_or(0) == 0 {
        return;
    }
    let (known, of) = match resource.split_once('.').map_or("", |(_, of)| of) {
        "cpu" => ("1m and 1", "cpu"),
        "memory" => (DIVISORS, "memory"),
        "ephemeral-storage" => (DIVISORS, "local ephemeral storage"),
        _ if huge => (DIVISORS, "hugepages"),
        _ => return,
    };
    let holds = if of == "cpu" { matches!(divisor, "1m" | "1") } else { DIVISORS.split(", ").any(|d| d == divisor) };
    if !holds {
        let why = format!("only divisor's values {known} are supported with the {of} resource");
        c.invalid(&join(path, "divisor"), resource, &why);
    }
}

fn mounts(c: &mut Check, one: &Value, path: &str, around: &Surroundings<'_>) {
    let list_path = join(path, "volumeMounts");
    let devices = list(one, "/volumeDevices");
    let mut places = HashSet::new();
    for (at, mount) in list(one, "/volumeMounts").iter().enumerate() {
        let path = index(&list_path, at);
        let name = c.needs(mount, &path, "name");
        if !around.volumes.contains_key(name) {
            c.push(FieldError::not_found(&join(&path, "name"), &Value::from(name)));
        }
        let place = c.needs(mount, &path, "mountPath");
        if !places.insert(place) {
            c.invalid(&join(&path, "mountPath"), place, "must be unique");
        }
        if devices.iter().any(|d| text(d, "/name") == name) {
            c.invalid(&join(&path, "name"), name, "must not already exist in volumeDevices");
        }
        if devices.iter().any(|d| text(d, "/devicePath") == place) {
            c.invalid(&join(&path, "mountPath"), place, "must not already exist as a path in volumeDevices");
        }
        let (below, expression) = (text(mount, "/subPath"), text(mount, "/subPathExpr"));
        // Upstream leaves the index out of these paths.
        volumes::relative(c, &join(&list_path, "subPath"), below);
        if !expression.is_empty() && !below.is_empty() {
            c.invalid(&join(&path, "subPathExpr"), expression, "subPathExpr and subPath are mutually exclusive");
        }
        volumes::relative(c, &join(&list_path, "subPathExpr"), expression);
        propagation(c, one, mount, &list_path);
    }
}

fn propagation(c: &mut Check, one: &Value, mount: &Value, path: &str) {
    let way = text(mount, "/mountPropagation");
    let privileged = one.pointer("/securityContext/privileged") == Some(&Value::Bool(true));
    if way == "Bidirectional" && !privileged {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        c.forbidden(&join(path, "mountPropagation"), why);
    }
    c.one_of(mount, path, "mountPropagation", &["Bidirectional", "HostToContainer", "None"]);
    let field = join(path, "recursiveReadOnly");
    match text(mount, "/recursiveReadOnly") {
        "" | "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if mount.get("readOnly") != Some(&Value::Bool(true)) {
                c.forbidden(&field, "may only be specified when readOnly is true");
            }
            if !matches!(way, "" | "None") {
                c.forbidden(&field, "may only be specified when mountPropagation is None or not specified");
            }
        }
        other => c.not_supported(&field, &Value::from(other), &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn devices(c: &mut Check, one: &Value, path: &str, around: &Surroundings<'_>) {
    let mounts = list(one, "/volumeMounts");
    let (mut names_seen, mut places) = (HashSet::new(), HashSet::new());
    for (at, device) in list(one, "/volumeDevices").iter().enumerate() {
        let path = element(path, "volumeDevices", at);
        let name = c.needs(device, &path, "name");
        if !name.is_empty() && !names_seen.insert(name) {
            c.invalid(&join(&path, "name"), name, "must be unique");
        }
        match around.volumes.get(name) {
            None => c.push(FieldError::not_found(&join(&path, "name"), &Value::from(name))),
            Some(volume) if volume.get("persistentVolumeClaim").is_none() && volume.get("ephemeral").is_none() => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                c.invalid(&join(&path, "name"), name, why);
            }
            Some(_) => {}
        }
        let place = c.needs(device, &path, "devicePath");
        if !places.insert(place) {
            c.invalid(&join(&path, "devicePath"), place, "must be unique");
        }
        if place.split('/').any(|part| part == "..") {
            c.invalid(&join(&path, "devicePath"), place, "can not contain backsteps ('..')");
        }
        if mounts.iter().any(|m| text(m, "/name") == name) {
            c.invalid(&join(&path, "name"), name, "must not already exist in volumeMounts");
        }
        if mounts.iter().any(|m| text(m, "/mountPath") == place) {
            c.invalid(&join(&path, "devicePath"), place, "must not already exist as a path in volumeMounts");
        }
    }
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Only these may be asked for in smaller amounts than the limit.
pub(super) fn is_overcommittable(name: &str) -> bool {
    is_native(name) && !name.starts_with("hugepages-")
}

/// Resources of Kubernetes itself, and those that nodes may add.
fn container_resource(c: &mut Check, field: &str, name: &str) {
    let before = c.errors.len();
    c.holds(field, name, names::qualified);
    if c.errors.len() > before {
        return;
    }
    let huge = name.starts_with("hugepages-");
    if !name.contains('/') {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !huge {
            if !super::limits::is_standard(name) {
                c.invalid(field, name, "must be a standard resource type or fully qualified");
            }
            c.invalid(field, name, "must be a standard resource for containers");
        }
    } else if !is_native(name)
        && (name.starts_with("requests.") || !names::qualified(&format!("requests.{name}")).is_empty())
    {
        // The quota's name of it must be qualified too.
        c.invalid(field, name, "doesn't follow extended resource name standard");
    }
}

/// Amounts are counted in billionths.
const ONE: i128 = 1_000_000_000;

pub(super) fn resources(c: &mut Check, resources: &Value, path: &str, claims: &[&str]) {
    let (limits_path, requests_path) = (join(path, "limits"), join(path, "requests"));
    let (mut has_plain, mut has_huge) = (false, false);
    for (kind, list_path) in [("limits", &limits_path), ("requests", &requests_path)] {
        for (name, amount) in members(resources, &format!("/{kind}")) {
            let field = super::key(list_path, name);
            container_resource(c, &field, name);
            let Some(number) = quantity::of(amount) else { continue };
            if number < 0 {
                c.invalid(&field, plain(amount), "must be greater than or equal to 0");
            }
            if !is_native(name) && number % ONE != 0 {
                c.invalid(&field, amount.clone(), "must be an integer");
            }
            if kind == "requests" {
                within_limit(c, resources, name, amount, number, &limits_path, &requests_path);
            }
            has_plain |= matches!(name.as_str(), "cpu" | "memory");
            if let Some(page) = name.strip_prefix("hugepages-") {
                has_huge = true;
                let whole = quantity::parse(page).is_some_and(|page| page > 0 && number % page == 0);
                if !whole {
                    let why = format!("{} is not positive integer multiple of {name}", plain(amount));
                    c.invalid(&field, plain(amount), &why);
                }
            }
        }
    }
    if has_huge && !has_plain {
        c.forbidden(path, "HugePages require cpu or memory");
    }
    claim_names(c, resources, path, claims);
}

fn within_limit(
    c: &mut Check,
    resources: &Value,
    name: &str,
    amount: &Value,
    number: i128,
    limits_path: &str,
    requests_path: &str,
) {
    let limit = resources.pointer("/limits").and_then(|l| l.get(name));
    match limit.and_then(|l| Some((plain(l), quantity::of(l)?))) {
        Some((shown, limit)) if number != limit && !is_overcommittable(name) => {
            c.invalid(requests_path, plain(amount), &format!("must be equal to {name} limit of {shown}"));
        }
        Some((shown, limit)) if number > limit => {
            c.invalid(requests_path, plain(amount), &format!("must be less than or equal to {name} limit of {shown}"));
        }
        None if !is_overcommittable(name) => {
            c.required(limits_path, "Limit must be set for non overcommitable resources");
        }
        _ => {}
    }
}

fn claim_names(c: &mut Check, resources: &Value, path: &str, known: &[&str]) {
    let mut seen: HashSet<String> = HashSet::new();
    for (at, claim) in list(resources, "/claims").iter().enumerate() {
        let path = element(path, "claims", at);
        let (name, request) = (text(claim, "/name"), text(claim, "/request"));
        if name.is_empty() {
            c.required(&path, "");
            continue;
        }
        if !request.is_empty() {
            c.holds(&join(&path, "request"), request, names::dns_label);
        }
        let whole = if request.is_empty() { name.to_owned() } else { format!("{name}/{request}") };
        let overlaps = seen.contains(name)
            || (request.is_empty() && seen.iter().any(|s| s.split('/').next() == Some(name)))
            || !seen.insert(whole.clone());
        if overlaps {
            c.duplicate(&path, whole);
        }
        if !known.contains(&name) {
            let mut error = FieldError::not_found(&path, &Value::from(name));
            let rest = if known.is_empty() { " which is empty".to_owned() } else { format!(": {}", known.join(", ")) };
            error.message.push_str(&format!(": must be one of the names in pod.spec.resourceClaims{rest}"));
            c.push(error);
        }
    }
}

/// A quantity as it was written.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

fn resize_policy(c: &mut Check, one: &Value, path: &str, pod_policy: &str) {
    let mut seen = HashSet::new();
    for (at, policy) in list(one, "/resizePolicy").iter().enumerate() {
        let (resource, restart) = (text(policy, "/resourceName"), text(policy, "/restartPolicy"));
        if !seen.insert(resource) {
            c.duplicate(&index(path, at), resource);
        }
        for (found, known) in [(resource, ["cpu", "memory"]), (restart, ["NotRequired", "RestartContainer"])] {
            match found {
                "" => c.required(path, ""),
                _ if !known.contains(&found) => c.not_supported(path, &Value::from(found), &known),
                _ => {}
            }
        }
        if pod_policy == "Never" && restart != "NotRequired" {
            c.invalid(path, restart, "must be 'NotRequired' when `restartPolicy` is 'Never'");
        }
    }
}

fn check_probe(c: &mut Check, probe: &Value, path: &str, readiness: bool, grace: Option<i64>) {
    handler(c, probe, path, &["exec", "httpGet", "tcpSocket", "grpc"], grace);
    for name in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        c.at_least(probe, path, name, 0);
    }
    let field = join(path, "terminationGracePeriodSeconds");
    let own_grace = probe.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if let Some(seconds) = own_grace.filter(|s| *s <= 0) {
        c.invalid(&field, seconds, "must be greater than 0");
    }
    if readiness {
        if let Some(seconds) = own_grace {
            c.invalid(&field, seconds, "must not be set for readinessProbes");
        }
    } else if let Some(threshold) = probe.get("successThreshold").and_then(Value::as_i64).filter(|n| *n != 1) {
        c.invalid(&join(path, "successThreshold"), threshold, "must be 1");
    }
}

fn handler(c: &mut Check, hook: &Value, path: &str, kinds: &[&str], grace: Option<i64>) {
    let mut found = kinds.iter().filter_map(|kind| Some((*kind, hook.get(*kind)?)));
    let Some((kind, action)) = found.next() else { return c.required(path, "must specify a handler type") };
    let own_path = join(path, kind);
    match kind {
        "exec" if list(action, "/command").is_empty() => c.required(&join(&own_path, "command"), ""),
        "httpGet" => {
            c.needs(action, &own_path, "path");
            c.port_or_name(&join(&own_path, "port"), action.get("port"));
            c.one_of(action, &own_path, "scheme", &["HTTP", "HTTPS"]);
            for header in list(action, "/httpHeaders") {
                c.holds(&join(&own_path, "httpHeaders"), text(header, "/name"), names::http_header);
            }
        }
        "tcpSocket" => c.port_or_name(&join(&own_path, "port"), action.get("port")),
        "grpc" => c.port(&join(&own_path, "port"), action.get("port").and_then(Value::as_i64).unwrap_or(0)),
        "sleep" => {
            let seconds = action.get("seconds").and_then(Value::as_i64).unwrap_or(0);
            if let Some(grace) = grace.filter(|grace| seconds < 0 || seconds > *grace) {
                let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                c.invalid(&own_path, seconds, &why);
            }
        }
        _ => {}
    }
    for (kind, _) in found {
        c.forbidden(&join(path, kind), "may not specify more than 1 handler type");
    }
}
