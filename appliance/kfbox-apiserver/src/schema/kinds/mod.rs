//! The rules of built-in kinds that no schema tells: names, cross-references, ranges, what may not change.
//!
//! Upstream: `pkg/apis/*/validation`, whose field paths, wording and order are kept where clients meet them.
//! Guarantee: what an update leaves as it was is not judged again, so that an object which an earlier release let in can
//! still be reported on, released and deleted.

mod addresses;
mod autoscaling;
mod batch;
mod config;
mod containers;
mod csi;
mod events;
mod flow;
mod limits;
mod meta;
mod names;
mod nodes;
mod pod;
mod pod_update;
mod policy;
mod scheduling;
mod security;
mod services;
mod status;
mod storage;
mod volumes;
mod webhooks;
mod workloads;

pub use names::is_dns_subdomain;

use serde_json::Value;

use super::FieldError;
use super::field::{index, join, key};

/// All violations of a built-in kind; `old` is the stored object on updates, `subresource` empty but for writes to one, of
/// which only what they may change is judged. Type errors come first and alone.
pub fn validate_write(
    group: &str,
    version: &str,
    kind: &str,
    subresource: &str,
    value: &Value,
    old: Option<&Value>,
) -> Vec<FieldError> {
    if let Some(schema) = super::builtin(group, version, kind) {
        let errors = super::validate(&schema, value, None);
        if !errors.is_empty() {
            return errors;
        }
    }
    let mut check = Check { errors: Vec::new() };
    let c = &mut check;
    if !meta::has_none(group, kind) {
        meta::check(c, group, kind, value, old);
    }
    match (subresource, old) {
        ("status" | "approval", Some(old)) => status::check(c, group, kind, value, old),
        ("resize", Some(old)) => pod_update::resize(c, value, old),
        ("ephemeralcontainers", Some(old)) => pod_update::ephemeral_containers(c, value, old),
        ("binding", _) => {}
        ("finalize", _) => status::content_finalizers(c, value),
        (_, Some(old)) if same_content(value, old) => {}
        _ => kind_rules(c, group, version, kind, value, old),
    }
    check.errors
}

/// Whether a Service's addresses, families and policy fit each other: asked before addresses are given out, and again when
/// all is validated.
pub fn service_addresses(spec: &Value) -> Vec<FieldError> {
    let mut check = Check { errors: Vec::new() };
    services::addresses(&mut check, spec);
    check.errors
}

/// Of a custom resource: its metadata.
pub fn validate_metadata(value: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut check = Check { errors: Vec::new() };
    // Whatever the group is called, its names are plain ones and its finalizers need not be qualified.
    meta::check(&mut check, "apiextensions.k8s.io", "", value, old);
    check.errors
}

/// Whether two objects differ in metadata and status only.
fn same_content(value: &Value, old: &Value) -> bool {
    let content = |object: &'_ Value| -> Option<Vec<(String, Value)>> {
        let members = object.as_object()?.iter().filter(|(name, _)| !matches!(name.as_str(), "metadata" | "status"));
        Some(members.map(|(name, value)| (name.clone(), value.clone())).collect())
    };
    content(value) == content(old)
}

fn kind_rules(c: &mut Check, group: &str, version: &str, kind: &str, value: &Value, old: Option<&Value>) {
    match (group, kind) {
        ("", "Pod") => pod::pod(c, value, old),
        ("", "PodTemplate") => pod::template(c, value.get("template"), "template"),
        ("", "ReplicationController") => workloads::replication_controller(c, value),
        ("apps", "Deployment") => workloads::deployment(c, value, old),
        ("apps", "ReplicaSet") => workloads::replica_set(c, value, old),
        ("apps", "StatefulSet") => workloads::stateful_set(c, value, old),
        ("apps", "DaemonSet") => workloads::daemon_set(c, value, old),
        ("apps", "ControllerRevision") => workloads::controller_revision(c, value, old),
        ("batch", "Job") => batch::job(c, value, old),
        ("batch", "CronJob") => batch::cron_job(c, value, old),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaling::autoscaler(c, version, value),
        ("", "Service") => services::service(c, value, old),
        ("", "Endpoints") => services::endpoints(c, value),
        ("discovery.k8s.io", "EndpointSlice") => services::endpoint_slice(c, value, old),
        ("networking.k8s.io", "Ingress") => services::ingress(c, value, old),
        ("networking.k8s.io", "IngressClass") => services::ingress_class(c, value, old),
        ("networking.k8s.io", "ServiceCIDR") => addresses::service_cidr(c, value, old),
        ("networking.k8s.io", "IPAddress") => addresses::ip_address(c, value, old),
        ("networking.k8s.io", "NetworkPolicy") => services::network_policy(c, value),
        ("", "ConfigMap") => config::config_map(c, value, old),
        ("", "Secret") => config::secret(c, value, old),
        ("", "Namespace") => status::content_finalizers(c, value),
        ("", "Node") => nodes::node(c, value, old),
        ("node.k8s.io", "RuntimeClass") => nodes::runtime_class(c, value, old),
        ("", "LimitRange") => limits::limit_range(c, value),
        ("", "ResourceQuota") => limits::quota(c, value, old),
        ("", "PersistentVolumeClaim") => storage::claim(c, value, old),
        ("", "PersistentVolume") => storage::volume(c, value, old),
        ("storage.k8s.io", "StorageClass") => storage::storage_class(c, value, old),
        ("storage.k8s.io", "CSIDriver") => csi::driver(c, value, old),
        ("storage.k8s.io", "CSINode") => csi::node(c, value),
        ("storage.k8s.io", "VolumeAttachment") => csi::attachment(c, value, old),
        ("storage.k8s.io", "CSIStorageCapacity") => csi::capacity(c, value, old),
        ("storage.k8s.io", "VolumeAttributesClass") => csi::attributes_class(c, value, old),
        ("" | "events.k8s.io", "Event") => events::event(c, group, value, old),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => policy::role(c, kind, value),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => policy::binding(c, kind, value, old),
        ("policy", "PodDisruptionBudget") => policy::disruption_budget(c, value),
        ("scheduling.k8s.io", "PriorityClass") => policy::priority_class(c, value, old),
        ("coordination.k8s.io", "Lease") => policy::lease(c, value),
        ("certificates.k8s.io", "CertificateSigningRequest") => policy::signing_request(c, value),
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => {
            webhooks::configuration(c, kind, value)
        }
        ("flowcontrol.apiserver.k8s.io" | "resource.k8s.io", _) => flow::check(c, kind, value),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => config::definition(c, value, old),
        _ => {}
    }
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

    fn holds(&mut self, field: &str, value: &str, rule: names::Rule) {
        for why in rule(value) {
            self.invalid(field, value, &why);
        }
    }

    /// The text of member `name`, which must not be empty and hold.
    fn named<'a>(&mut self, object: &'a Value, path: &str, name: &str, rule: names::Rule) -> &'a str {
        let found = self.needs(object, path, name);
        if !found.is_empty() {
            self.holds(&join(path, name), found, rule);
        }
        found
    }

    /// One of some words, which must be given.
    fn exactly_one_of(&mut self, object: &Value, path: &str, name: &str, words: &[&str]) {
        match object.get(name).and_then(Value::as_str).unwrap_or_default() {
            "" => self.required(&join(path, name), ""),
            _ => self.one_of(object, path, name, words),
        }
    }

    fn not_supported(&mut self, field: &str, value: &Value, words: &[&str]) {
        self.push(FieldError::not_supported(field, value, words));
    }

    fn duplicate(&mut self, field: &str, value: impl Into<Value>) {
        self.push(FieldError::duplicate(field, &value.into()));
    }

    fn ip(&mut self, field: &str, text: &str) -> Option<std::net::IpAddr> {
        let found = text.parse().ok();
        if found.is_none() {
            self.invalid(field, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
        }
        found
    }

    fn cidr(&mut self, field: &str, text: &str) -> bool {
        let holds = super::formats::cidr(text);
        if !holds {
            self.invalid(field, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
        }
        holds
    }

    /// `example.com/path`.
    fn domain_prefixed_path(&mut self, field: &str, text: &str) {
        let Some((host, path)) = text.split_once('/').filter(|(host, path)| !host.is_empty() && !path.is_empty())
        else {
            let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            return if text.is_empty() { self.required(field, "") } else { self.invalid(field, text, why) };
        };
        self.holds(field, host, names::dns_subdomain);
        if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
            let why = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
            self.invalid(field, path, why);
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
            self.invalid(&join(path, name), number, &format!("must be greater than or equal to {least}"));
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
            Some(Value::String(word)) => self.holds(field, word, names::percent),
            _ => {}
        }
    }

    fn at_most_all(&mut self, field: &str, value: Option<&Value>) {
        let percent = value.and_then(Value::as_str).and_then(|word| word.strip_suffix('%'));
        if percent.and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n > 100) {
            self.invalid(field, value.cloned().unwrap_or_default(), "must not be greater than 100%");
        }
    }

    fn label_map(&mut self, labels: Option<&Value>, path: &str) {
        for (name, value) in labels.and_then(Value::as_object).into_iter().flatten() {
            self.holds(path, name, names::qualified);
            self.holds(path, value.as_str().unwrap_or_default(), names::label_value);
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
            for (at, value) in values.iter().enumerate() {
                self.holds(&element(&path, "values", at), value.as_str().unwrap_or_default(), names::label_value);
            }
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
