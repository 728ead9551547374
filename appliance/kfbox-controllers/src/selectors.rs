//! Label selectors as objects carry them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use std::collections::BTreeMap;

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// Whether the selector matches; one that cannot be read matches nothing.
pub fn matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(labels.unwrap_or(&NO_LABELS)))
}

/// For workloads, whose empty selector matches nothing and not everything.
pub fn matches_own(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    !is_empty(selector) && matches(selector, labels)
}

pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// A Service's selector.
pub fn equal(selector: &BTreeMap<String, String>, labels: Option<&BTreeMap<String, String>>) -> bool {
    selector.iter().all(|(k, v)| labels.is_some_and(|labels| labels.get(k) == Some(v)))
}
