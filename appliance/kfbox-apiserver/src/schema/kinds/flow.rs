//! FlowSchemas, PriorityLevelConfigurations and device claims (`pkg/apis/flowcontrol/validation`,
//! `pkg/apis/resource/validation`).

use serde_json::Value;

use super::{Check, FieldError, element, join, list, text};

pub(super) fn check(c: &mut Check, kind: &str, value: &Value) {
    match kind {
        "FlowSchema" => flow_schema(c, value),
        "PriorityLevelConfiguration" => priority_level(c, value),
        "ResourceClaim" => claim(c, &value["spec"], "spec"),
        "ResourceClaimTemplate" => claim(c, &value["spec"]["spec"], "spec.spec"),
        _ => {}
    }
}

fn flow_schema(c: &mut Check, value: &Value) {
    const MOST: i64 = 10_000;
    let spec = &value["spec"];
    let precedence = spec["matchingPrecedence"].as_i64().unwrap_or(0);
    if precedence <= 0 {
        c.invalid("spec.matchingPrecedence", precedence, "must be a positive value");
    }
    if precedence > MOST {
        c.invalid("spec.matchingPrecedence", precedence, "must not be greater than 10000");
    }
    if precedence == 1 && text(value, "/metadata/name") != "exempt" {
        let why = "only the schema named 'exempt' may have matchingPrecedence 1";
        c.invalid("spec.matchingPrecedence", precedence, why);
    }
    c.one_of(&spec["distinguisherMethod"], "spec.distinguisherMethod", "type", &["ByNamespace", "ByUser"]);
    if text(spec, "/priorityLevelConfiguration/name").is_empty() {
        c.required("spec.priorityLevelConfiguration.name", "must reference a priority level");
    }
    for (at, rule) in list(spec, "/rules").iter().enumerate() {
        let path = element("spec", "rules", at);
        if list(rule, "/subjects").is_empty() {
            c.required(&join(&path, "subjects"), "subjects must contain at least one value");
        }
        if list(rule, "/resourceRules").is_empty() && list(rule, "/nonResourceRules").is_empty() {
            c.required(&path, "at least one of resourceRules and nonResourceRules has to be non-empty");
        }
        for (at, subject) in list(rule, "/subjects").iter().enumerate() {
            let path = element(&path, "subjects", at);
            let (field, needed) = match text(subject, "/kind") {
                "User" => ("user", &["name"][..]),
                "Group" => ("group", &["name"][..]),
                "ServiceAccount" => ("serviceAccount", &["name", "namespace"][..]),
                _ => {
                    let kinds = ["Group", "ServiceAccount", "User"];
                    c.push(FieldError::not_supported(&join(&path, "kind"), &subject["kind"], &kinds));
                    continue;
                }
            };
            let path = join(&path, field);
            if !subject[field].is_object() {
                c.required(&path, &format!("{field} is required when subject kind is '{}'", text(subject, "/kind")));
                continue;
            }
            for name in needed {
                c.needs(&subject[field], &path, name);
            }
        }
        for (at, rule) in list(rule, "/resourceRules").iter().enumerate() {
            let path = element(&path, "resourceRules", at);
            for (field, what) in [("verbs", "verb"), ("apiGroups", "api group"), ("resources", "resource")] {
                if list(rule, &format!("/{field}")).is_empty() {
                    let why = format!("resource rules must supply at least one {what}");
                    let why = if field == "verbs" { "verbs must contain at least one value" } else { &why };
                    c.required(&join(&path, field), why);
                }
            }
            if list(rule, "/namespaces").is_empty() && rule["clusterScope"] != true {
                let why = "resource rules that are not cluster scoped must supply at least one namespace";
                c.required(&join(&path, "namespaces"), why);
            }
        }
    }
}

fn priority_level(c: &mut Check, value: &Value) {
    let spec = &value["spec"];
    match text(spec, "/type") {
        "Exempt" => {
            if spec["limited"].is_object() {
                c.forbidden("spec.limited", "must be nil if the type is not Limited");
            }
            shares(c, &spec["exempt"], "spec.exempt");
        }
        "Limited" => {
            if spec["exempt"].is_object() {
                c.forbidden("spec.exempt", "must be nil if the type is Limited");
            }
            if !spec["limited"].is_object() {
                c.required("spec.limited", "must not be empty when type is Limited");
                return;
            }
            let limited = &spec["limited"];
            shares(c, limited, "spec.limited");
            let path = "spec.limited.limitResponse";
            let response = &limited["limitResponse"];
            match text(response, "/type") {
                "Reject" if response["queuing"].is_object() => {
                    c.forbidden(&join(path, "queuing"), "must be nil if limited.limitResponse.type is not Limited");
                }
                "Queue" if !response["queuing"].is_object() => {
                    c.required(&join(path, "queuing"), "must not be empty if limitResponse.type is Limited");
                }
                "Queue" => queuing(c, &response["queuing"], &join(path, "queuing")),
                "Reject" => {}
                _ => {
                    let kinds = ["Queue", "Reject"];
                    c.push(FieldError::not_supported(&join(path, "type"), &response["type"], &kinds));
                }
            }
        }
        _ => c.push(FieldError::not_supported("spec.type", &spec["type"], &["Exempt", "Limited"])),
    }
}

fn shares(c: &mut Check, part: &Value, path: &str) {
    if let Some(number) = part["nominalConcurrencyShares"].as_i64().filter(|n| *n < 0) {
        c.invalid(&join(path, "nominalConcurrencyShares"), number, "must be a non-negative integer");
    }
    if let Some(number) = part["lendablePercent"].as_i64().filter(|n| !(0..=100).contains(n)) {
        c.invalid(&join(path, "lendablePercent"), number, "must be between 0 and 100, inclusive");
    }
    if let Some(number) = part["borrowingLimitPercent"].as_i64().filter(|n| *n < 0) {
        c.invalid(&join(path, "borrowingLimitPercent"), number, "if specified, must be a non-negative integer");
    }
}

fn queuing(c: &mut Check, queuing: &Value, path: &str) {
    const MOST_QUEUES: i64 = 10 * 1000 * 1000;
    let number = |field: &str| queuing[field].as_i64().unwrap_or(0);
    for field in ["queueLengthLimit", "queues", "handSize"] {
        if number(field) <= 0 {
            c.invalid(&join(path, field), number(field), "must be positive");
        }
    }
    if number("queues") > MOST_QUEUES {
        c.invalid(&join(path, "queues"), number("queues"), "must not be greater than 10000000");
    }
    if number("handSize") > number("queues") {
        let why = format!("should not be greater than queues ({})", number("queues"));
        c.invalid(&join(path, "handSize"), number("handSize"), &why);
    }
}

fn claim(c: &mut Check, spec: &Value, path: &str) {
    let path = join(path, "devices");
    let mut names: Vec<&str> = Vec::new();
    for (at, request) in list(&spec["devices"], "/requests").iter().enumerate() {
        let path = element(&path, "requests", at);
        let name = c.needs(request, &path, "name");
        if !name.is_empty() && names.contains(&name) {
            c.push(FieldError::duplicate(&join(&path, "name"), &request["name"]));
        }
        names.push(name);
        let alternatives = list(request, "/firstAvailable");
        match (request["exactly"].is_object(), alternatives.is_empty()) {
            (true, false) => c.invalid(
                &path,
                request.clone(),
                "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
            ),
            (false, true) => {
                c.required(&path, "exactly one of `exactly` or `firstAvailable` is required");
            }
            (true, true) => drop(c.needs(&request["exactly"], &join(&path, "exactly"), "deviceClassName")),
            (false, false) => {
                for (at, one) in alternatives.iter().enumerate() {
                    let path = element(&path, "firstAvailable", at);
                    c.needs(one, &path, "name");
                    c.needs(one, &path, "deviceClassName");
                }
            }
        }
    }
}
