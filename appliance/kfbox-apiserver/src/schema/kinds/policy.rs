//! Roles, bindings, budgets, priorities, leases, requests for certificates. Upstream: `pkg/apis/{rbac,policy,scheduling,
//! coordination,certificates}/validation`.

use serde_json::Value;

use super::{Check, FieldError, index, join, list, names, text};

pub(super) fn role(c: &mut Check, kind: &str, value: &Value) {
    for (at, rule) in list(value, "/rules").iter().enumerate() {
        let path = index("rules", at);
        if list(rule, "/verbs").is_empty() {
            c.required(&join(&path, "verbs"), "verbs must contain at least one value");
        }
        if !list(rule, "/nonResourceURLs").is_empty() {
            if kind == "Role" {
                c.invalid(
                    &join(&path, "nonResourceURLs"),
                    rule["nonResourceURLs"].clone(),
                    "namespaced rules cannot apply to non-resource URLs",
                );
            }
            if !list(rule, "/apiGroups").is_empty() || !list(rule, "/resources").is_empty() {
                c.invalid(
                    &join(&path, "nonResourceURLs"),
                    rule["nonResourceURLs"].clone(),
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            continue;
        }
        if list(rule, "/apiGroups").is_empty() {
            c.required(&join(&path, "apiGroups"), "resource rules must supply at least one api group");
        }
        if list(rule, "/resources").is_empty() {
            c.required(&join(&path, "resources"), "resource rules must supply at least one resource");
        }
    }
    if let Some(aggregation) = value.get("aggregationRule").filter(|_| kind == "ClusterRole") {
        let path = "aggregationRule.clusterRoleSelectors";
        let selectors = list(aggregation, "/clusterRoleSelectors");
        if selectors.is_empty() {
            let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            c.required(path, why);
        }
        for (at, selector) in selectors.iter().enumerate() {
            c.selector(Some(selector), &index(path, at));
        }
    }
}

pub(super) fn binding(c: &mut Check, kind: &str, value: &Value, old: Option<&Value>) {
    let reference = &value["roleRef"];
    if text(reference, "/apiGroup") != "rbac.authorization.k8s.io" {
        c.push(FieldError::not_supported("roleRef.apiGroup", &reference["apiGroup"], &["rbac.authorization.k8s.io"]));
    }
    let kinds: &[&str] = if kind == "RoleBinding" { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&text(reference, "/kind")) {
        c.push(FieldError::not_supported("roleRef.kind", &reference["kind"], kinds));
    }
    c.named(reference, "roleRef", "name", names::path_segment);
    for (at, subject) in list(value, "/subjects").iter().enumerate() {
        let path = index("subjects", at);
        c.needs(subject, &path, "name");
        match text(subject, "/kind") {
            "ServiceAccount" => {
                let name = text(subject, "/name");
                if !name.is_empty() {
                    c.holds(&join(&path, "name"), name, names::dns_subdomain);
                }
                let group = text(subject, "/apiGroup");
                if !group.is_empty() {
                    c.not_supported(&join(&path, "apiGroup"), &Value::from(group), &[""]);
                }
                if text(subject, "/namespace").is_empty() {
                    c.required(&join(&path, "namespace"), "");
                }
            }
            "User" | "Group" => {
                if text(subject, "/apiGroup") != "rbac.authorization.k8s.io" {
                    c.push(FieldError::not_supported(
                        &join(&path, "apiGroup"),
                        &subject["apiGroup"],
                        &["rbac.authorization.k8s.io"],
                    ));
                }
            }
            _ => c.push(FieldError::not_supported(
                &join(&path, "kind"),
                &subject["kind"],
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
    if let Some(old) = old
        && old["roleRef"] != *reference
    {
        c.invalid("roleRef", reference.clone(), "cannot change roleRef");
    }
}

pub(super) fn disruption_budget(c: &mut Check, value: &Value) {
    let spec = &value["spec"];
    let (least, most) = (spec.get("minAvailable"), spec.get("maxUnavailable"));
    if least.is_some() && most.is_some() {
        c.invalid("spec", spec.clone(), "minAvailable and maxUnavailable cannot be both set");
    }
    for (name, value) in [("minAvailable", least), ("maxUnavailable", most)] {
        c.count_or_percent(&join("spec", name), value);
        c.at_most_all(&join("spec", name), value);
    }
    c.selector(spec.get("selector"), "spec.selector");
    c.one_of(spec, "spec", "unhealthyPodEvictionPolicy", &["AlwaysAllow", "IfHealthyBudget"]);
}

/// Above this are the system's own classes.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

pub(super) fn priority_class(c: &mut Check, value: &Value, old: Option<&Value>) {
    let (name, priority) = (text(value, "/metadata/name"), value.get("value").and_then(Value::as_i64).unwrap_or(0));
    if name.starts_with("system-") {
        if !matches!(
            (name, priority),
            ("system-node-critical", 2_000_001_000) | ("system-cluster-critical", 2_000_000_000)
        ) {
            c.forbidden("metadata.name", "priority class names with 'system-' prefix are reserved for system use only");
        }
    } else if priority > HIGHEST_USER_PRIORITY {
        c.forbidden("value", "maximum allowed value of a user defined priority is 1000000000");
    }
    c.one_of(value, "", "preemptionPolicy", &["PreemptLowerPriority", "Never"]);
    if let Some(old) = old {
        for name in ["value", "preemptionPolicy"] {
            if value.get(name) != old.get(name) {
                c.forbidden(name, "may not be changed in an update.");
            }
        }
    }
}

pub(super) fn lease(c: &mut Check, value: &Value) {
    let spec = value.get("spec").unwrap_or(&Value::Null);
    if let Some(seconds) = spec.get("leaseDurationSeconds").and_then(Value::as_i64).filter(|n| *n <= 0) {
        c.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0");
    }
    c.at_least(spec, "spec", "leaseTransitions", 0);
}

/// The shortest life that may be asked for, in seconds.
const MIN_CERTIFICATE: i64 = 600;

/// What a certificate may be asked for, sorted.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

pub(super) fn signing_request(c: &mut Check, value: &Value) {
    let spec = &value["spec"];
    let usages = list(spec, "/usages");
    if usages.is_empty() {
        c.required("spec.usages", "");
    }
    for (at, usage) in usages.iter().enumerate() {
        let field = index("spec.usages", at);
        if !USAGES.iter().any(|known| usage == known) {
            c.not_supported(&field, usage, USAGES);
        }
        if usages[..at].contains(usage) {
            c.duplicate(&field, usage.clone());
        }
    }
    let signer = text(spec, "/signerName");
    let (host, path) = signer.split_once('/').unwrap_or((signer, ""));
    if signer.is_empty() {
        c.required("spec.signerName", "");
    } else if path.is_empty() || path.contains('/') {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        c.invalid("spec.signerName", signer, why);
    } else {
        if !names::dns_subdomain(host).is_empty() || !host.contains('.') {
            let why =
                format!("validating label {host:?}: should be a domain with at least two segments separated by dots");
            c.invalid("spec.signerName", signer, &why);
        }
        for why in names::dns_subdomain(path) {
            c.invalid("spec.signerName", signer, &format!("validating path {path:?}: {why}"));
        }
        if signer == "kubernetes.io/legacy-unknown" {
            c.invalid("spec.signerName", signer, "the legacy signerName is not allowed via this API version");
        }
    }
    if let Some(seconds) = spec.get("expirationSeconds").and_then(Value::as_i64).filter(|s| *s < MIN_CERTIFICATE) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        c.invalid("spec.expirationSeconds", seconds, why);
    }
}
