//! Which address families a Service has, decided before its addresses are given out.
//! Upstream: `initIPFamilyFields` in `pkg/registry/core/service/storage`, and
//! <https://kubernetes.io/docs/concepts/services-networking/dual-stack/#services>.
//!
//! Invariant: a Service is never moved between one family and two but by somebody who says so: what was stored before the
//! cluster had two families stays as it is.

use crate::schema::{FieldError, service_addresses};
use serde_json::{Value, json};
use std::net::IpAddr;

/// Fills `ipFamilyPolicy` and `ipFamilies`, and `clusterIPs` from `clusterIP`. `old` is the spec before an update, if it
/// had addresses; `dual` says whether the cluster has IPv6.
pub fn decide(spec: &mut Value, old: Option<&Value>, dual: bool) -> Result<(), Vec<FieldError>> {
    for field in ["clusterIPs", "ipFamilies"] {
        if !spec[field].is_array() {
            spec[field] = json!([]);
        }
    }
    let result = fill(spec, old, dual);
    if let Some(spec) = spec.as_object_mut() {
        spec.retain(|field, value| {
            !(matches!(field.as_str(), "clusterIPs" | "ipFamilies") && value.as_array().is_some_and(Vec::is_empty))
        });
    }
    result
}

fn fill(spec: &mut Value, old: Option<&Value>, dual: bool) -> Result<(), Vec<FieldError>> {
    let same = |spec: &Value, field: &str| old.is_some_and(|old| old[field] == spec[field]);
    let policy = |spec: &Value| spec["ipFamilyPolicy"].as_str().unwrap_or_default().to_owned();
    // Also what the cluster could not give any more.
    if is_dual(&policy(spec)) && ["ipFamilyPolicy", "clusterIPs", "ipFamilies"].into_iter().all(|f| same(spec, f)) {
        return Ok(());
    }
    // Going back to one family releases the second address, unless the caller says something else of it.
    if policy(spec) == "SingleStack" && old.is_some_and(|old| is_dual(&policy(old))) {
        for field in ["clusterIPs", "ipFamilies"] {
            if same(spec, field)
                && let Some(list) = spec[field].as_array_mut()
            {
                list.truncate(1);
            }
        }
    }
    let cluster_ip = spec["clusterIP"].as_str().unwrap_or_default().to_owned();
    if !cluster_ip.is_empty() && is_empty(&spec["clusterIPs"]) {
        spec["clusterIPs"] = json!([cluster_ip]);
    }
    let selects = spec["selector"].as_object().is_some_and(|selector| !selector.is_empty());
    let of_others = cluster_ip == "None" && !selects;
    if policy(spec).is_empty() {
        spec["ipFamilyPolicy"] = match old.map(&policy) {
            Some(before) if !before.is_empty() => before.into(),
            _ if of_others => "RequireDualStack".into(),
            _ => "SingleStack".into(),
        };
    }
    let errors = service_addresses(spec);
    if !errors.is_empty() {
        return Err(errors);
    }
    let families = infer(spec, dual)?;
    // Endpoints of somebody's own making may be of any family, whatever the cluster has.
    let families = if of_others { families } else { configured(spec, families, dual)? };
    let mut families = if families.is_empty() { vec!["IPv4".to_owned()] } else { families };
    if is_dual(&policy(spec)) && families.len() == 1 && (dual || of_others) {
        families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }.to_owned());
    }
    spec["ipFamilies"] = json!(families);
    Ok(())
}

fn is_dual(policy: &str) -> bool {
    matches!(policy, "PreferDualStack" | "RequireDualStack")
}

fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}

/// The families that were asked for, by name or by an address of theirs.
fn infer(spec: &Value, dual: bool) -> Result<Vec<String>, Vec<FieldError>> {
    let mut families: Vec<String> =
        spec["ipFamilies"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let given = spec["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for (at, address) in given.enumerate().skip(families.len()) {
        let Ok(address) = address.parse::<IpAddr>() else { break };
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        if family == "IPv6" && !dual {
            let why = format!("{family} is not configured on this cluster");
            return Err(vec![FieldError::invalid(&format!("spec.clusterIPs[{at}]"), &spec["clusterIPs"], &why)]);
        }
        families.push(family.to_owned());
    }
    Ok(families)
}

/// Refuses what the cluster does not have.
fn configured(spec: &Value, families: Vec<String>, dual: bool) -> Result<Vec<String>, Vec<FieldError>> {
    if dual {
        return Ok(families);
    }
    let mut errors = Vec::new();
    if spec["ipFamilyPolicy"] == "RequireDualStack" {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], why));
    }
    for (at, family) in families.iter().enumerate().filter(|(_, family)| *family == "IPv6") {
        let why = "not configured on this cluster";
        errors.push(FieldError::invalid(&format!("spec.ipFamilies[{at}]"), &json!(family), why));
    }
    if errors.is_empty() { Ok(families) } else { Err(errors) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(spec: Value, old: Option<Value>, dual: bool) -> Result<(String, String), String> {
        let mut spec = spec;
        let said = |errors: Vec<FieldError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        decide(&mut spec, old.as_ref(), dual).map_err(said)?;
        Ok((spec["ipFamilyPolicy"].as_str().unwrap().to_owned(), spec["ipFamilies"].to_string()))
    }

    #[test]
    fn families_follow_from_what_is_asked() {
        let of = |policy: &str, families: &str| Ok((policy.to_owned(), families.to_owned()));
        let selector = json!({"a": "b"});
        let new = |spec: Value| decided(spec, None, true);
        assert_eq!(new(json!({})), of("SingleStack", r#"["IPv4"]"#));
        assert_eq!(new(json!({"ipFamilies": ["IPv6"]})), of("SingleStack", r#"["IPv6"]"#));
        assert_eq!(new(json!({"clusterIP": "fd00::1"})), of("SingleStack", r#"["IPv6"]"#));
        assert_eq!(new(json!({"ipFamilyPolicy": "PreferDualStack"})), of("PreferDualStack", r#"["IPv4","IPv6"]"#));
        assert_eq!(
            new(json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]})),
            of("RequireDualStack", r#"["IPv6","IPv4"]"#)
        );
        assert_eq!(new(json!({"clusterIP": "None", "selector": selector})), of("SingleStack", r#"["IPv4"]"#));
        assert_eq!(new(json!({"clusterIP": "None"})), of("RequireDualStack", r#"["IPv4","IPv6"]"#));
        // With one family in the cluster.
        let new = |spec: Value| decided(spec, None, false);
        assert_eq!(new(json!({"ipFamilyPolicy": "PreferDualStack"})), of("PreferDualStack", r#"["IPv4"]"#));
        assert_eq!(new(json!({"clusterIP": "None"})), of("RequireDualStack", r#"["IPv4","IPv6"]"#));
        let refused = |spec: Value, why: &str| {
            let error = decided(spec, None, false).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        refused(
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "this cluster is not configured for dual-stack services",
        );
        refused(json!({"ipFamilies": ["IPv6"]}), "spec.ipFamilies[0]");
        refused(json!({"clusterIP": "fd00::1"}), "IPv6 is not configured on this cluster");
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (spec, why) in [
            (json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4", "IPv6"]}), "multiple 'ipFamilies'"),
            (
                json!({"ipFamilyPolicy": "SingleStack", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"]}),
                "multiple 'clusterIPs'",
            ),
            (json!({"ipFamilies": ["IPv4", "IPv4"]}), "Duplicate"),
            (json!({"ipFamilies": ["IPv5"]}), "supported values"),
            (json!({"clusterIP": "10.0.0.1", "ipFamilies": ["IPv6"]}), "expected an IPv6 value"),
            (
                json!({"ipFamilyPolicy": "RequireDualStack", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "10.0.0.2"]}),
                "no more than one IP for each IP family",
            ),
            (json!({"clusterIPs": ["10.0.0.1"]}), "must be empty when `clusterIP` is not specified"),
            (json!({"clusterIP": "None", "clusterIPs": ["None", "fd00::1"]}), "first and only"),
        ] {
            let error = decided(spec.clone(), None, true).unwrap_err();
            assert!(error.contains(why), "{spec}: {error}");
        }
    }

    #[test]
    fn an_update_moves_only_whom_it_says() {
        let of = |policy: &str, families: &str| Ok((policy.to_owned(), families.to_owned()));
        let one = json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "PreferDualStack"});
        // Made when the cluster had one family.
        assert_eq!(decided(one.clone(), Some(one.clone()), true), of("PreferDualStack", r#"["IPv4"]"#));
        let with = |policy: &str| {
            let mut new = one.clone();
            new["ipFamilyPolicy"] = policy.into();
            new
        };
        assert_eq!(
            decided(with("RequireDualStack"), Some(one.clone()), true),
            of("RequireDualStack", r#"["IPv4","IPv6"]"#)
        );
        let two = json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"});
        let mut down = two.clone();
        down["ipFamilyPolicy"] = "SingleStack".into();
        decide(&mut down, Some(&two), true).unwrap();
        assert_eq!((down["clusterIPs"].clone(), down["ipFamilies"].clone()), (json!(["10.0.0.1"]), json!(["IPv4"])));
    }
}
