//! Pods and pod templates. Upstream: `ValidatePodSpec` in `pkg/apis/core/validation`.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::super::quantity;
use super::{Check, FieldError, element, entry, join, list, members, meta, names, text};

pub(super) fn pod(c: &mut Check, value: &Value, old: Option<&Value>) {
    let Some(spec) = value.get("spec") else {
        c.required("spec", "");
        return;
    };
    pod_spec(c, spec, "spec");
    if let Some(old) = old {
        update(c, spec, &old["spec"]);
    }
}

/// What an update may do to a pod: change images, shorten or set the deadline, add tolerations, bind it to a node, add
/// ephemeral containers, lift scheduling gates.
fn update(c: &mut Check, new: &Value, old: &Value) {
    let mut same = new.clone();
    for containers in ["containers", "initContainers"] {
        let olds = list(old, &format!("/{containers}")).to_vec();
        if let Some(news) = same.get_mut(containers).and_then(Value::as_array_mut)
            && news.len() == olds.len()
        {
            for (new, old) in news.iter_mut().zip(&olds) {
                new["image"] = old["image"].clone();
            }
        }
    }
    let mut put_back = |name: &str| {
        let Some(map) = same.as_object_mut() else { return };
        match old.get(name) {
            Some(value) => drop(map.insert(name.to_owned(), value.clone())),
            None => drop(map.remove(name)),
        }
    };
    let deadline = |spec: &Value| spec.get("activeDeadlineSeconds").and_then(Value::as_i64);
    match (deadline(new), deadline(old)) {
        (Some(now), Some(was)) if now > was => {
            c.invalid("spec.activeDeadlineSeconds", now, "must be less than or equal to previous value");
        }
        (None, Some(_)) => {
            c.invalid("spec.activeDeadlineSeconds", Value::Null, "must not update from a positive integer to nil value")
        }
        _ => {}
    }
    put_back("activeDeadlineSeconds");
    let tolerations = list(new, "/tolerations");
    if list(old, "/tolerations").iter().all(|t| tolerations.contains(t)) {
        put_back("tolerations");
    }
    let grace = |spec: &Value| spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if grace(old).is_some_and(|g| g < 0) && grace(new) == Some(1) {
        put_back("terminationGracePeriodSeconds");
    }
    if text(old, "/nodeName").is_empty() {
        put_back("nodeName");
    }
    let ephemeral = list(new, "/ephemeralContainers");
    if list(old, "/ephemeralContainers").iter().all(|e| ephemeral.contains(e)) {
        put_back("ephemeralContainers");
    }
    let gates = list(old, "/schedulingGates");
    if !gates.is_empty() && list(new, "/schedulingGates").iter().all(|g| gates.contains(g)) {
        put_back("schedulingGates");
        put_back("nodeSelector");
        put_back("affinity");
    }
    if same != *old {
        c.forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        );
    }
}

/// A template with the restart policies its controller allows.
pub(super) fn template(c: &mut Check, template: Option<&Value>, path: &str, policies: &[&str]) {
    let Some(template) = template else {
        c.required(path, "");
        return;
    };
    meta::labels(c, template.get("metadata").unwrap_or(&Value::Null), &join(path, "metadata"));
    let spec_path = join(path, "spec");
    let spec = template.get("spec").unwrap_or(&Value::Null);
    pod_spec(c, spec, &spec_path);
    if !policies.is_empty() && !list(spec, "/containers").is_empty() {
        let policy = text(spec, "/restartPolicy");
        if !policies.contains(&policy) {
            c.push(FieldError::not_supported(&join(&spec_path, "restartPolicy"), &Value::from(policy), policies));
        }
    }
}

fn pod_spec(c: &mut Check, spec: &Value, path: &str) {
    let volumes = volumes(c, spec, path);
    let mut seen = HashSet::new();
    if list(spec, "/containers").is_empty() {
        c.required(&join(path, "containers"), "");
    }
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        for (at, one) in list(spec, &format!("/{kind}")).iter().enumerate() {
            let path = element(path, kind, at);
            container(c, one, &path, kind, &volumes);
            let name = text(one, "/name");
            if !name.is_empty() && !seen.insert(name) {
                c.push(FieldError::duplicate(&join(&path, "name"), &Value::from(name)));
            }
        }
    }
    c.one_of(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"]);
    c.one_of(spec, path, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    if text(spec, "/dnsPolicy") == "None" && list(spec, "/dnsConfig/nameservers").is_empty() {
        c.required(
            &join(path, "dnsConfig.nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        );
    }
    c.at_least(spec, path, "terminationGracePeriodSeconds", 0);
    if let Some(seconds) =
        spec.get("activeDeadlineSeconds").and_then(Value::as_i64).filter(|s| !(1..=i64::from(i32::MAX)).contains(s))
    {
        c.invalid(&join(path, "activeDeadlineSeconds"), seconds, "must be between 1 and 2147483647, inclusive");
    }
    for name in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        let word = text(spec, &format!("/{name}"));
        if !word.is_empty() {
            c.holds(&join(path, name), word, names::dns_subdomain);
        }
    }
    for name in ["hostname", "subdomain"] {
        let word = text(spec, &format!("/{name}"));
        if !word.is_empty() {
            c.holds(&join(path, name), word, names::dns_label);
        }
    }
    c.label_map(spec.get("nodeSelector"), &join(path, "nodeSelector"));
    for (at, toleration) in list(spec, "/tolerations").iter().enumerate() {
        let path = element(path, "tolerations", at);
        let (key, operator) = (text(toleration, "/key"), text(toleration, "/operator"));
        if !key.is_empty() {
            c.holds(&join(&path, "key"), key, names::qualified);
        }
        if key.is_empty() && operator != "Exists" {
            c.invalid(
                &join(&path, "operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        c.one_of(toleration, &path, "operator", &["Equal", "Exists", "Lt", "Gt"]);
        c.one_of(toleration, &path, "effect", &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        if toleration.get("tolerationSeconds").is_some() && text(toleration, "/effect") != "NoExecute" {
            c.invalid(
                &join(&path, "effect"),
                text(toleration, "/effect"),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
    }
    let security = spec.get("securityContext").unwrap_or(&Value::Null);
    ids(c, security, &join(path, "securityContext"), &["runAsUser", "runAsGroup", "fsGroup"]);
    for (at, alias) in list(spec, "/hostAliases").iter().enumerate() {
        let path = element(path, "hostAliases", at);
        if text(alias, "/ip").parse::<std::net::IpAddr>().is_err() {
            c.invalid(
                &join(&path, "ip"),
                text(alias, "/ip"),
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
    }
    for (at, secret) in list(spec, "/imagePullSecrets").iter().enumerate() {
        if text(secret, "/name").is_empty() {
            c.required(&join(&element(path, "imagePullSecrets", at), "name"), "");
        }
    }
}

fn ids(c: &mut Check, security: &Value, path: &str, fields: &[&str]) {
    for name in fields {
        if let Some(id) =
            security.get(name).and_then(Value::as_i64).filter(|id| !(0..=i64::from(i32::MAX)).contains(id))
        {
            c.invalid(&join(path, name), id, "must be between 0 and 2147483647, inclusive");
        }
    }
}

/// Checks the volumes and gives their names.
fn volumes(c: &mut Check, spec: &Value, path: &str) -> HashSet<String> {
    let mut found = HashSet::new();
    for (at, volume) in list(spec, "/volumes").iter().enumerate() {
        let path = element(path, "volumes", at);
        let name = c.needs(volume, &path, "name");
        if !name.is_empty() {
            c.holds(&join(&path, "name"), name, names::dns_label);
            if !found.insert(name.to_owned()) {
                c.push(FieldError::duplicate(&join(&path, "name"), &Value::from(name)));
            }
        }
        let sources: Vec<&String> = members(volume, "").map(|(name, _)| name).filter(|name| *name != "name").collect();
        match sources.as_slice() {
            [] => c.required(&path, "must specify a volume type"),
            [source] => volume_source(c, source, &volume[source.as_str()], &join(&path, source)),
            [_, more @ ..] => {
                for source in more {
                    c.forbidden(&join(&path, source), "may not specify more than 1 volume type");
                }
            }
        }
    }
    found
}

fn volume_source(c: &mut Check, kind: &str, source: &Value, path: &str) {
    match kind {
        "hostPath" => {
            let host_path = c.needs(source, path, "path");
            if host_path.split('/').any(|part| part == "..") {
                c.invalid(&join(path, "path"), host_path, "must not contain '..'");
            }
            let kinds =
                ["DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];
            c.one_of(source, path, "type", &kinds);
        }
        "persistentVolumeClaim" => drop(c.needs(source, path, "claimName")),
        "secret" => {
            c.needs(source, path, "secretName");
            paths(c, source, path);
        }
        "configMap" => {
            c.needs(source, path, "name");
            paths(c, source, path);
        }
        "downwardAPI" => paths(c, source, path),
        "emptyDir" if source.get("sizeLimit").and_then(quantity::of).is_some_and(|n| n < 0) => {
            c.invalid(&join(path, "sizeLimit"), source["sizeLimit"].clone(), "must be greater than or equal to 0");
        }
        "projected" => {
            for (at, part) in list(source, "/sources").iter().enumerate() {
                let path = element(path, "sources", at);
                for (kind, inner) in members(part, "") {
                    paths(c, inner, &join(&path, kind));
                    if kind == "serviceAccountToken" {
                        let path = join(&path, kind);
                        c.needs(inner, &path, "path");
                        if inner.get("expirationSeconds").and_then(Value::as_i64).is_some_and(|s| s < 600) {
                            c.invalid(
                                &join(&path, "expirationSeconds"),
                                inner["expirationSeconds"].clone(),
                                "may not specify a duration less than 10 minutes",
                            );
                        }
                    }
                }
            }
        }
        _ => {}
    }
    if let Some(mode) = source.get("defaultMode").and_then(Value::as_i64).filter(|m| !(0..=0o777).contains(m)) {
        c.invalid(&join(path, "defaultMode"), mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

fn paths(c: &mut Check, source: &Value, path: &str) {
    for (at, item) in list(source, "/items").iter().enumerate() {
        let path = element(path, "items", at);
        let target = c.needs(item, &path, "path");
        relative(c, &join(&path, "path"), target);
        if let Some(mode) = item.get("mode").and_then(Value::as_i64).filter(|m| !(0..=0o777).contains(m)) {
            c.invalid(&join(&path, "mode"), mode, "must be a number between 0 and 0777 (octal), both inclusive");
        }
    }
}

fn relative(c: &mut Check, field: &str, path: &str) {
    if path.starts_with('/') {
        c.invalid(field, path, "must be a relative path");
    }
    if path.split('/').any(|part| part == "..") {
        c.invalid(field, path, "must not contain '..'");
    }
}

fn container(c: &mut Check, one: &Value, path: &str, kind: &str, volumes: &HashSet<String>) {
    let name = c.needs(one, path, "name");
    if !name.is_empty() {
        c.holds(&join(path, "name"), name, names::dns_label);
    }
    let image = c.needs(one, path, "image");
    if image != image.trim() {
        c.invalid(&join(path, "image"), image, "must not have leading or trailing whitespace");
    }
    c.one_of(one, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"]);
    c.one_of(one, path, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"]);
    ports(c, one, path);
    env(c, one, path);
    resources(c, one.get("resources").unwrap_or(&Value::Null), &join(path, "resources"));
    let mut mounts = HashSet::new();
    for (at, mount) in list(one, "/volumeMounts").iter().enumerate() {
        let path = element(path, "volumeMounts", at);
        let name = c.needs(mount, &path, "name");
        if !name.is_empty() && !volumes.contains(name) {
            c.push(FieldError::not_found(&join(&path, "name"), &Value::from(name)));
        }
        let place = c.needs(mount, &path, "mountPath");
        if !place.is_empty() && !mounts.insert(place) {
            c.invalid(&join(&path, "mountPath"), place, "must be unique");
        }
        relative(c, &join(&path, "subPath"), text(mount, "/subPath"));
        relative(c, &join(&path, "subPathExpr"), text(mount, "/subPathExpr"));
        if !text(mount, "/subPath").is_empty() && !text(mount, "/subPathExpr").is_empty() {
            c.invalid(
                &join(&path, "subPathExpr"),
                text(mount, "/subPathExpr"),
                "subPathExpr and subPath are mutually exclusive",
            );
        }
    }
    let sidecar = kind == "initContainers" && text(one, "/restartPolicy") == "Always";
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = one.get(name) else { continue };
        let path = join(path, name);
        match kind {
            "initContainers" if !sidecar => {
                c.forbidden(&path, "may not be set for init containers without restartPolicy=Always")
            }
            "ephemeralContainers" => c.forbidden(&path, "cannot be set for an Ephemeral Container"),
            _ => check_probe(c, probe, &path, name == "readinessProbe"),
        }
    }
    if let Some(lifecycle) = one.get("lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.get(name) {
                handler(c, hook, &join(path, &format!("lifecycle.{name}")), &["exec", "httpGet", "tcpSocket", "sleep"]);
            }
        }
    }
    let security = one.get("securityContext").unwrap_or(&Value::Null);
    let security_path = join(path, "securityContext");
    ids(c, security, &security_path, &["runAsUser", "runAsGroup"]);
    if security.get("privileged") == Some(&Value::Bool(true))
        && security.get("allowPrivilegeEscalation") == Some(&Value::Bool(false))
    {
        c.invalid(
            &security_path,
            security.clone(),
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        );
    }
}

fn ports(c: &mut Check, one: &Value, path: &str) {
    let mut seen = HashSet::new();
    for (at, port) in list(one, "/ports").iter().enumerate() {
        let path = element(path, "ports", at);
        match port.get("containerPort").and_then(Value::as_i64) {
            None | Some(0) => c.required(&join(&path, "containerPort"), ""),
            Some(number) => c.port(&join(&path, "containerPort"), number),
        }
        if let Some(number) = port.get("hostPort").and_then(Value::as_i64).filter(|n| *n != 0) {
            c.port(&join(&path, "hostPort"), number);
        }
        c.one_of(port, &path, "protocol", &["SCTP", "TCP", "UDP"]);
        let name = text(port, "/name");
        if !name.is_empty() {
            c.holds(&join(&path, "name"), name, names::port_name);
            if !seen.insert(name) {
                c.push(FieldError::duplicate(&join(&path, "name"), &Value::from(name)));
            }
        }
    }
}

fn env(c: &mut Check, one: &Value, path: &str) {
    for (at, variable) in list(one, "/env").iter().enumerate() {
        let path = element(path, "env", at);
        let name = c.needs(variable, &path, "name");
        if name.contains('=') || name.chars().any(|ch| !(' '..='~').contains(&ch)) {
            c.invalid(
                &join(&path, "name"),
                name,
                "a valid environment variable name must consist only of printable ASCII characters other than '='",
            );
        }
        let Some(source) = variable.get("valueFrom") else { continue };
        let path = join(&path, "valueFrom");
        if !text(variable, "/value").is_empty() {
            c.invalid(&path, "", "may not be specified when `value` is not empty");
        }
        match source.as_object().map_or(0, serde_json::Map::len) {
            0 => c.invalid(&path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"),
            1 => {}
            _ => c.invalid(&path, "", "may not have more than one field specified at a time"),
        }
        for kind in ["configMapKeyRef", "secretKeyRef"] {
            if let Some(reference) = source.get(kind) {
                c.needs(reference, &join(&path, kind), "name");
                c.needs(reference, &join(&path, kind), "key");
            }
        }
        if let Some(field) = source.get("fieldRef") {
            c.needs(field, &join(&path, "fieldRef"), "fieldPath");
        }
    }
    for (at, source) in list(one, "/envFrom").iter().enumerate() {
        let path = element(path, "envFrom", at);
        match (source.get("configMapRef"), source.get("secretRef")) {
            (None, None) => c.invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`"),
            (Some(_), Some(_)) => c.invalid(&path, "", "may not have more than one field specified at a time"),
            (Some(reference), None) => drop(c.needs(reference, &join(&path, "configMapRef"), "name")),
            (None, Some(reference)) => drop(c.needs(reference, &join(&path, "secretRef"), "name")),
        }
    }
}

/// Only these may be asked for in smaller amounts than the limit.
fn is_overcommittable(name: &str) -> bool {
    !name.contains('/') && !name.starts_with("hugepages-")
}

fn resources(c: &mut Check, resources: &Value, path: &str) {
    for list in ["limits", "requests"] {
        for (name, amount) in members(resources, &format!("/{list}")) {
            let field = entry(path, list, name);
            let standard =
                matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
            if !standard && !name.contains('/') {
                c.invalid(&field, name.as_str(), "must be a standard resource for containers");
            } else {
                c.holds(&field, name, names::qualified);
            }
            let Some(amount_number) = quantity::of(amount) else { continue };
            if amount_number < 0 {
                c.invalid(&field, amount.clone(), "must be greater than or equal to 0");
            }
            if !standard && amount_number % 1_000_000_000 != 0 {
                c.invalid(&field, amount.clone(), "must be an integer");
            }
            let limit = resources.pointer("/limits").and_then(|l| l.get(name.as_str()));
            if list == "requests" {
                match limit.and_then(quantity::of) {
                    Some(limit_number) if !is_overcommittable(name) && amount_number != limit_number => {
                        c.invalid(
                            &field,
                            amount.clone(),
                            &format!("must be equal to {name} limit of {}", plain(limit)),
                        );
                    }
                    Some(limit_number) if amount_number > limit_number => {
                        c.invalid(
                            &field,
                            amount.clone(),
                            &format!("must be less than or equal to {name} limit of {}", plain(limit)),
                        );
                    }
                    None if !is_overcommittable(name) => {
                        c.required(&entry(path, "limits", name), "Limit must be set for non overcommitable resources")
                    }
                    _ => {}
                }
            }
        }
    }
}

fn plain(value: Option<&Value>) -> String {
    value.map_or_else(String::new, |v| v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned))
}

fn check_probe(c: &mut Check, probe: &Value, path: &str, readiness: bool) {
    handler(c, probe, path, &["exec", "httpGet", "tcpSocket", "grpc"]);
    for name in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        c.at_least(probe, path, name, 0);
    }
    if let Some(threshold) = probe.get("successThreshold").and_then(Value::as_i64).filter(|n| !readiness && *n != 1) {
        c.invalid(&join(path, "successThreshold"), threshold, "must be 1");
    }
}

fn handler(c: &mut Check, hook: &Value, path: &str, kinds: &[&str]) {
    let found: Vec<&str> = kinds.iter().copied().filter(|kind| hook.get(kind).is_some()).collect();
    match found.as_slice() {
        [] => c.required(path, "must specify a handler type"),
        [_] => {}
        [_, more @ ..] => {
            for kind in more {
                c.forbidden(&join(path, kind), "may not specify more than 1 handler type");
            }
        }
    }
    if let Some(exec) = hook.get("exec")
        && list(exec, "/command").is_empty()
    {
        c.required(&join(path, "exec.command"), "");
    }
    if let Some(get) = hook.get("httpGet") {
        c.port_or_name(&join(path, "httpGet.port"), get.get("port"));
        c.one_of(get, &join(path, "httpGet"), "scheme", &["HTTP", "HTTPS"]);
    }
    if let Some(tcp) = hook.get("tcpSocket") {
        c.port_or_name(&join(path, "tcpSocket.port"), tcp.get("port"));
    }
    if let Some(grpc) = hook.get("grpc") {
        let port = grpc.get("port").and_then(Value::as_i64).unwrap_or(0);
        c.port_or_name(&join(path, "grpc.port"), Some(&json!(port)));
    }
}
