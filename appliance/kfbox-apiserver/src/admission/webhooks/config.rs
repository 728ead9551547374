//! Webhook configurations: what is read from them, and what is wrong with them
//! (`pkg/apis/admissionregistration/validation`).

use crate::{
    admission::dynamic::{Conditions, Matcher, condition_errors, rule_errors, selector_errors},
    schema::FieldError,
    webhook::{Client, ClientConfig},
};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// One webhook, ready to be called.
#[derive(Debug)]
pub struct Hook {
    pub name: String,
    pub matcher: Matcher,
    pub conditions: Conditions,
    /// `failurePolicy: Ignore`.
    pub fails_open: bool,
    /// Its side effects, if it has any, do not happen in a dry run.
    pub dry_runs: bool,
    pub reinvocable: bool,
    pub time: Duration,
    pub review_versions: Vec<String>,
    pub client: Client,
}

/// Upstream's default; its most is 30.
const SECONDS: u64 = 10;

pub fn parse(configuration: &Value) -> Vec<Arc<Hook>> {
    let hooks = configuration["webhooks"].as_array().into_iter().flatten();
    hooks.map(|webhook| Arc::new(hook(webhook))).collect()
}

fn hook(webhook: &Value) -> Hook {
    let text = |field: &str| webhook[field].as_str().unwrap_or_default();
    // Shapes were checked when the object was written.
    let read = |value: &Value| ClientConfig::deserialize(value).unwrap_or_default();
    Hook {
        name: text("name").to_owned(),
        matcher: Matcher::deserialize(webhook).unwrap_or_default(),
        conditions: Conditions::parse(&webhook["matchConditions"], false),
        fails_open: text("failurePolicy") == "Ignore",
        dry_runs: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
        reinvocable: text("reinvocationPolicy") == "IfNeeded",
        time: Duration::from_secs(webhook["timeoutSeconds"].as_u64().unwrap_or(SECONDS).clamp(1, 30)),
        review_versions: webhook["admissionReviewVersions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|version| version.as_str().map(str::to_owned))
            .collect(),
        client: Client::new(read(&webhook["clientConfig"])),
    }
}

/// What the schema's own rules do not see.
pub fn errors(configuration: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut names = BTreeSet::new();
    for (at, webhook) in configuration["webhooks"].as_array().into_iter().flatten().enumerate() {
        let path = format!("webhooks[{at}]");
        let name = webhook["name"].as_str().unwrap_or_default();
        if !name.is_empty() && !names.insert(name) {
            errors.push(FieldError::duplicate(&format!("{path}.name"), &name.into()));
        }
        for (at, rule) in webhook["rules"].as_array().into_iter().flatten().enumerate() {
            errors.extend(rule_errors(rule, &format!("{path}.rules[{at}]"), false));
        }
        let allowed = |field: &str, values: &[&str]| {
            let value = &webhook[field];
            let wrong = value.as_str().is_some_and(|v| !values.contains(&v));
            wrong.then(|| FieldError::not_supported(&format!("{path}.{field}"), value, values))
        };
        errors.extend(allowed("matchPolicy", &["Equivalent", "Exact"]));
        errors.extend(allowed("reinvocationPolicy", &["IfNeeded", "Never"]));
        for selector in ["namespaceSelector", "objectSelector"] {
            errors.extend(selector_errors(&webhook[selector], &format!("{path}.{selector}")));
        }
        errors.extend(client_errors(&webhook["clientConfig"], &format!("{path}.clientConfig")));
        let versions = webhook["admissionReviewVersions"].as_array().map(Vec::as_slice).unwrap_or_default();
        if !versions.is_empty() && !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
            let field = format!("{path}.admissionReviewVersions");
            let why = "must include at least one of v1, v1beta1";
            errors.push(FieldError::invalid(&field, &webhook["admissionReviewVersions"], why));
        }
        errors.extend(condition_errors(&webhook["matchConditions"], &format!("{path}.matchConditions"), false));
    }
    errors
}

/// `ValidateWebhookURL`, `ValidateWebhookService`, and a bundle that is none.
pub fn client_errors(config: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(url) = config["url"].as_str() {
        let field = format!("{path}.url");
        let shown = Value::from(url);
        match url.parse::<http::Uri>() {
            Err(error) => {
                let why = format!("url must be a valid URL: {error}; desired format: https://host[/path]");
                errors.push(FieldError::required(&field, &why));
            }
            Ok(uri) => {
                const FORM: &str = "; desired format: https://host[/path]";
                if uri.scheme_str() != Some("https") {
                    let why = format!("'https' is the only allowed URL scheme{FORM}");
                    errors.push(FieldError::invalid(&field, &shown, &why));
                }
                if uri.host().is_none_or(str::is_empty) {
                    let why = format!("host must be specified{FORM}");
                    errors.push(FieldError::invalid(&field, &shown, &why));
                }
                if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
                    let why = "user information is not permitted in the URL";
                    errors.push(FieldError::invalid(&field, &shown, why));
                }
                if url.contains('#') {
                    let why = "fragments are not permitted in the URL";
                    errors.push(FieldError::invalid(&field, &shown, why));
                }
                if uri.query().is_some() {
                    let why = "query parameters are not permitted in the URL";
                    errors.push(FieldError::invalid(&field, &shown, why));
                }
            }
        }
    }
    let service = &config["service"];
    if service.is_object() {
        for field in ["name", "namespace"] {
            if service[field].as_str().is_none_or(str::is_empty) {
                let why = format!("service {field} is required");
                errors.push(FieldError::required(&format!("{path}.service.{field}"), &why));
            }
        }
        if let Some(port) = service["port"].as_i64().filter(|port| !(1..=65535).contains(port)) {
            let why = "port is not valid: must be between 1 and 65535, inclusive";
            errors.push(FieldError::invalid(&format!("{path}.service.port"), &port.into(), why));
        }
        if let Some(way) = service["path"].as_str().filter(|way| !way.is_empty() && *way != "/") {
            let field = format!("{path}.service.path");
            if !way.starts_with('/') {
                errors.push(FieldError::invalid(&field, &way.into(), "must start with a '/'"));
            } else if way[1..].split('/').any(str::is_empty) && !way.ends_with('/') {
                errors.push(FieldError::invalid(&field, &way.into(), "segment may not be empty"));
            }
        }
    }
    errors
}
