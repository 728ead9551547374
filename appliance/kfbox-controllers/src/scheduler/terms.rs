//! Terms of pod affinity, read once: which pods one speaks of. Pure.

use crate::cache::Cache;
use k8s_openapi::{
    api::core::v1::{Namespace, Pod, PodAffinityTerm},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::core::{Expression, Selector, SelectorExt};
use std::collections::BTreeMap;

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

pub struct Term {
    pub topology_key: String,
    /// `None` matches nothing.
    selector: Option<Selector>,
    namespaces: Vec<String>,
    namespace_selector: Option<Selector>,
}

/// A selector, narrowed to pods that agree with `pod` in the labels `same` and differ in `other`.
pub fn narrowed(
    selector: Option<&LabelSelector>,
    pod: &Pod,
    same: Option<&Vec<String>>,
    other: Option<&Vec<String>>,
) -> Option<Selector> {
    let mut selector = Selector::try_from(selector?.clone()).ok()?;
    let own = |key: &String| pod.metadata.labels.as_ref().and_then(|l| l.get(key)).cloned();
    for key in same.into_iter().flatten() {
        if let Some(value) = own(key) {
            selector.extend([Expression::In(key.clone(), [value].into())]);
        }
    }
    for key in other.into_iter().flatten() {
        if let Some(value) = own(key) {
            selector.extend([Expression::NotIn(key.clone(), [value].into())]);
        }
    }
    Some(selector)
}

pub fn matches(selector: Option<&Selector>, pod: &Pod) -> bool {
    selector.is_some_and(|s| s.matches(pod.metadata.labels.as_ref().unwrap_or(&NO_LABELS)))
}

impl Term {
    pub fn of(term: &PodAffinityTerm, pod: &Pod) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.extend(pod.metadata.namespace.clone());
        }
        Self {
            topology_key: term.topology_key.clone(),
            selector: narrowed(
                term.label_selector.as_ref(),
                pod,
                term.match_label_keys.as_ref(),
                term.mismatch_label_keys.as_ref(),
            ),
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().and_then(|s| Selector::try_from(s.clone()).ok()),
        }
    }

    /// Whether `candidate` is one of the pods that the term speaks of.
    pub fn selects(&self, candidate: &Pod, namespaces: &Cache<Namespace>) -> bool {
        let there = candidate.metadata.namespace.as_deref().unwrap_or_default();
        if !matches(self.selector.as_ref(), candidate) {
            return false;
        }
        self.namespaces.iter().any(|n| n == there)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                selector.selects_all()
                    || namespaces
                        .get("", there)
                        .is_some_and(|n| selector.matches(n.metadata.labels.as_ref().unwrap_or(&NO_LABELS)))
            })
    }
}

/// The pod's required terms of affinity, or of anti-affinity.
pub fn required(pod: &Pod, anti: bool) -> Vec<Term> {
    let Some(affinity) = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()) else { return Vec::new() };
    let terms = if anti {
        affinity
            .pod_anti_affinity
            .as_ref()
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
    } else {
        affinity.pod_affinity.as_ref().and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
    };
    terms.unwrap_or_default().iter().map(|term| Term::of(term, pod)).collect()
}
