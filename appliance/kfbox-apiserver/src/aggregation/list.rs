//! Every group and version that clients see, in order of preference: those served here and those of other servers
//! (apiregistration `helper.SortedByGroupAndVersion`).

use super::{Aggregation, Remote};
use crate::resources::{GroupVersion, Registry, version_priority};
use std::sync::Arc;

pub struct GroupView<'a> {
    pub name: String,
    pub versions: Vec<VersionView<'a>>,
}

pub struct VersionView<'a> {
    pub version: String,
    priority: i64,
    pub served: Served<'a>,
}

pub enum Served<'a> {
    Here(&'a GroupVersion),
    There(Arc<Remote>),
}

/// A definition's group stands behind every group of Kubernetes itself.
const CUSTOM: (i64, i64) = (1000, 100);

/// Where upstream puts its metrics server.
const METRICS: (i64, i64) = (100, 100);

/// `groupPriorityMinimum` and `versionPriority` (`apiVersionPriorities` of kube-apiserver).
pub fn priority(group: &str, version: &str) -> (i64, i64) {
    let of_group = match group {
        // Never registered itself, and always first.
        "apiregistration.k8s.io" => 20_000,
        "" => 18_000,
        "apps" => 17_800,
        "events.k8s.io" => 17_750,
        "authentication.k8s.io" => 17_700,
        "authorization.k8s.io" => 17_600,
        "autoscaling" => 17_500,
        "batch" => 17_400,
        "certificates.k8s.io" => 17_300,
        "networking.k8s.io" => 17_200,
        "policy" => 17_100,
        "rbac.authorization.k8s.io" => 17_000,
        "storage.k8s.io" => 16_800,
        "apiextensions.k8s.io" | "admissionregistration.k8s.io" => 16_700,
        "scheduling.k8s.io" => 16_600,
        "coordination.k8s.io" => 16_500,
        "node.k8s.io" => 16_300,
        "discovery.k8s.io" | "resource.k8s.io" => 16_200,
        "flowcontrol.apiserver.k8s.io" => 16_100,
        "metrics.k8s.io" => return METRICS,
        _ => return CUSTOM,
    };
    let of_version = match (group, version) {
        ("", _) => 1,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io", _) => 21,
        ("resource.k8s.io", _) => 20,
        _ => 15,
    };
    (of_group, of_version)
}

pub fn groups<'a>(registry: &'a Registry, aggregation: &Aggregation) -> Vec<GroupView<'a>> {
    let mut all: Vec<(i64, GroupView<'a>)> = Vec::new();
    let mut add = |name: &str, group_priority: i64, version: VersionView<'a>| {
        let at = all.iter().position(|(_, g)| g.name == name).unwrap_or_else(|| {
            all.push((0, GroupView { name: name.to_owned(), versions: Vec::new() }));
            all.len() - 1
        });
        all[at].0 = all[at].0.max(group_priority);
        all[at].1.versions.push(version);
    };
    for group in &registry.groups {
        for found in &group.versions {
            if aggregation.find(&group.name, &found.version).is_some() {
                continue;
            }
            let (of_group, priority) = priority(&group.name, &found.version);
            let version = VersionView { version: found.version.to_string(), priority, served: Served::Here(found) };
            add(&group.name, of_group, version);
        }
    }
    for remote in aggregation.all() {
        let version = VersionView {
            version: remote.version.clone(),
            priority: remote.version_priority,
            served: Served::There(remote.clone()),
        };
        add(&remote.group, remote.group_priority, version);
    }
    all.sort_by(|(a, left), (b, right)| b.cmp(a).then_with(|| left.name.cmp(&right.name)));
    for (_, group) in &mut all {
        group.versions.sort_by_cached_key(|v| std::cmp::Reverse((v.priority, version_priority(&v.version))));
    }
    all.into_iter().map(|(_, group)| group).collect()
}
