//! The rules of built-in kinds that no schema tells: names, cross-references, ranges, what may not change.
//!
//! Upstream: `pkg/apis/*/validation`, whose field paths and wording are kept where clients meet them.

mod config;
mod flow;
mod meta;
mod names;
mod pod;
mod policy;
mod services;
mod storage;
mod workloads;

use serde_json::Value;

use super::FieldError;
use super::field::{index, join, key};

/// All violations of a built-in kind; `old` is the stored object on updates. Type errors come first and alone.
pub fn validate_builtin(group: &str, version: &str, kind: &str, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
    if let Some(schema) = super::builtin(group, version, kind) {
        let errors = super::validate(&schema, value, None);
        if !errors.is_empty() {
            return errors;
        }
    }
    let mut check = Check { errors: Vec::new() };
    let c = &mut check;
    if !meta::has_none(group, kind) {
        meta::check(c, group, kind, value);
    }
    match (group, kind) {
        ("", "Pod") => pod::pod(c, value, old),
        ("", "PodTemplate") => pod::template(c, value.get("template"), "template", &[]),
        ("", "ReplicationController") => workloads::replication_controller(c, value),
        ("apps", "Deployment") => workloads::deployment(c, value, old),
        ("apps", "ReplicaSet") => workloads::replica_set(c, value, old),
        ("apps", "StatefulSet") => workloads::stateful_set(c, value, old),
        ("apps", "DaemonSet") => workloads::daemon_set(c, value, old),
        ("apps", "ControllerRevision") => {
            if let Some(old) = old {
                c.immutable(value, old, "data");
            }
        }
        ("batch", "Job") => workloads::job(c, value, old),
        ("batch", "CronJob") => workloads::cron_job(c, value),
        ("autoscaling", "HorizontalPodAutoscaler") => workloads::autoscaler(c, value),
        ("", "Service") => services::service(c, value, old),
        ("", "Endpoints") => services::endpoints(c, value),
        ("discovery.k8s.io", "EndpointSlice") => services::endpoint_slice(c, value, old),
        ("networking.k8s.io", "Ingress") => services::ingress(c, value),
        ("networking.k8s.io", "NetworkPolicy") => services::network_policy(c, value),
        ("", "ConfigMap") => config::config_map(c, value, old),
        ("", "Secret") => config::secret(c, value, old),
        ("", "PersistentVolumeClaim") => storage::claim(c, value, old),
        ("", "PersistentVolume") => storage::volume(c, value, old),
        ("storage.k8s.io", "StorageClass") => storage::storage_class(c, value, old),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => policy::role(c, kind, value),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => policy::binding(c, kind, value, old),
        ("policy", "PodDisruptionBudget") => policy::disruption_budget(c, value),
        ("scheduling.k8s.io", "PriorityClass") => policy::priority_class(c, value, old),
        ("coordination.k8s.io", "Lease") => policy::lease(c, value),
        ("", "ResourceQuota") => policy::quota(c, value),
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => {
            policy::webhooks(c, value)
        }
        ("flowcontrol.apiserver.k8s.io" | "resource.k8s.io", _) => flow::check(c, kind, value),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => config::definition(c, value, old),
        _ => {}
    }
    check.errors
}

/// Collects errors; the methods are the checks that many kinds share.
struct Check {
    errors: Vec<FieldError>,
}

/// Errors past this many tell a person nothing new.
const MAX_ERRORS: usize = 100;

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn members<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
    value.pointer(pointer).and_then(Value::as_object).into_iter().flatten()
}

impl Check {
    fn push(&mut self, error: FieldError) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }

    fn required(&mut self, field: &str, detail: &str) {
        self.push(FieldError::required(field, detail));
    }

    fn invalid(&mut self, field: &str, value: impl Into<Value>, detail: &str) {
        self.push(FieldError::invalid(field, &value.into(), detail));
    }

    fn forbidden(&mut self, field: &str, detail: &str) {
        self.push(FieldError::forbidden(field, detail));
    }

    /// The text of member `name`, which must not be empty.
    fn needs<'a>(&mut self, object: &'a Value, path: &str, name: &str) -> &'a str {
        let found = object.get(name).and_then(Value::as_str).unwrap_or_default();
        if found.is_empty() {
            self.required(&join(path, name), "");
        }
        found
    }

    fn holds(&mut self, field: &str, value: &str, rule: fn(&str) -> Result<(), String>) {
        if let Err(detail) = rule(value) {
            self.invalid(field, value, &detail);
        }
    }

    /// One of some words; absent and empty pass.
    fn one_of(&mut self, object: &Value, path: &str, name: &str, words: &[&str]) {
        let found = object.get(name).and_then(Value::as_str).unwrap_or_default();
        if !found.is_empty() && !words.contains(&found) {
            self.push(FieldError::not_supported(&join(path, name), &Value::from(found), words));
        }
    }

    fn at_least(&mut self, object: &Value, path: &str, name: &str, least: i64) {
        if let Some(number) = object.get(name).and_then(Value::as_i64).filter(|n| *n < least) {
            let detail = if least == 0 {
                "must be greater than or equal to 0".to_owned()
            } else {
                format!("must be greater than or equal to {least}")
            };
            self.invalid(&join(path, name), number, &detail);
        }
    }

    fn port(&mut self, field: &str, number: i64) {
        if !(1..=65535).contains(&number) {
            self.invalid(field, number, "must be between 1 and 65535, inclusive");
        }
    }

    fn port_or_name(&mut self, field: &str, value: Option<&Value>) {
        match value {
            Some(Value::Number(n)) => self.port(field, n.as_i64().unwrap_or(0)),
            Some(Value::String(name)) => self.holds(field, name, names::port_name),
            _ => self.required(field, ""),
        }
    }

    fn immutable(&mut self, value: &Value, old: &Value, path: &str) {
        let pointer = format!("/{}", path.replace('.', "/"));
        let (new, was) = (value.pointer(&pointer), old.pointer(&pointer));
        if new.filter(|v| !v.is_null()) != was.filter(|v| !v.is_null()) {
            self.invalid(path, new.cloned().unwrap_or(Value::Null), "field is immutable");
        }
    }

    /// A count or a percentage.
    fn count_or_percent(&mut self, field: &str, value: Option<&Value>) {
        match value {
            Some(Value::Number(n)) if n.as_i64().is_some_and(|n| n < 0) => {
                self.invalid(field, Value::Number(n.clone()), "must be greater than or equal to 0");
            }
            Some(Value::String(word)) if !names::is_percent(word) => {
                self.invalid(field, word.clone(), "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')");
            }
            _ => {}
        }
    }

    fn label_map(&mut self, labels: Option<&Value>, path: &str) {
        for (name, value) in labels.and_then(Value::as_object).into_iter().flatten() {
            if let Err(detail) = names::qualified(name) {
                self.invalid(path, name.as_str(), &detail);
            }
            if let Err(detail) = names::label_value(value.as_str().unwrap_or_default()) {
                self.invalid(path, value.clone(), &detail);
            }
        }
    }

    /// A `LabelSelector`.
    fn selector(&mut self, selector: Option<&Value>, path: &str) {
        let Some(selector) = selector else { return };
        self.label_map(selector.get("matchLabels"), &join(path, "matchLabels"));
        for (at, expression) in list(selector, "/matchExpressions").iter().enumerate() {
            let path = index(&join(path, "matchExpressions"), at);
            let values = list(expression, "/values");
            match text(expression, "/operator") {
                "In" | "NotIn" if values.is_empty() => {
                    self.required(&join(&path, "values"), "must be specified when `operator` is 'In' or 'NotIn'");
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    self.forbidden(
                        &join(&path, "values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    );
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                other => self.invalid(&join(&path, "operator"), other, "not a valid selector operator"),
            }
            self.holds(&join(&path, "key"), text(expression, "/key"), names::qualified);
        }
    }
}

/// Whether a selector holds for labels.
fn selects(selector: &Value, labels: Option<&Value>) -> bool {
    let label = |name: &str| labels.and_then(|l| l.get(name)).and_then(Value::as_str);
    members(selector, "/matchLabels").all(|(name, value)| label(name) == value.as_str())
        && list(selector, "/matchExpressions").iter().all(|e| {
            let found = label(text(e, "/key"));
            let listed = found.is_some_and(|f| list(e, "/values").iter().any(|v| v == f));
            match text(e, "/operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

fn element(path: &str, name: &str, at: usize) -> String {
    index(&join(path, name), at)
}

fn entry(path: &str, name: &str, word: &str) -> String {
    key(&join(path, name), word)
}

#[cfg(test)]
mod tests;
