//! Aggregated cluster roles: writes into `rules` what the selected roles hold, for people and clients to read. Upstream:
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#aggregated-clusterroles>.

use crate::{
    context::{Context, Registered},
    queue::{Outcome, Queue},
    selectors,
    write::{self, WriteError},
};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use serde_json::json;
use std::sync::Arc;

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<String>::new();
    let (roles, q) = (context.caches.cluster_roles.clone(), queue.clone());
    context.caches.cluster_roles.on_change(move |change| {
        // Another role may select this one, by its labels before or after.
        for role in roles.all() {
            let concerned =
                change.both().any(|changed| changed.metadata.uid == role.metadata.uid || selects(&role, changed));
            if role.aggregation_rule.is_some() && concerned {
                q.add(role.metadata.name.clone().unwrap_or_default());
            }
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("clusterrole-aggregation", 1, shutdown, move |name| reconcile(context.clone(), name)).await
    };
    ("clusterrole-aggregation", Box::pin(run))
}

fn selects(role: &ClusterRole, other: &ClusterRole) -> bool {
    let chosen = role.aggregation_rule.as_ref().and_then(|a| a.cluster_role_selectors.as_deref()).unwrap_or_default();
    role.metadata.uid != other.metadata.uid
        && chosen.iter().any(|s| selectors::matches(s, other.metadata.labels.as_ref()))
}

/// The rules that the role should hold, in the order of the selected roles' names.
fn decide(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Vec<PolicyRule> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    for other in all.iter().filter(|other| selects(role, other)) {
        for rule in other.rules.iter().flatten() {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    rules
}

async fn reconcile(context: Arc<Context>, name: String) -> Result<Outcome, WriteError> {
    let caches = &context.caches;
    let Some(role) = caches.cluster_roles.get("", &name).filter(|r| r.aggregation_rule.is_some()) else {
        return Ok(Outcome::Done);
    };
    let rules = decide(&role, &caches.cluster_roles.all());
    if role.rules.as_deref().unwrap_or_default() != rules {
        write::patch(&context.client, &caches.cluster_roles, &*role, json!({ "rules": rules })).await?;
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::object;

    #[test]
    fn rules_are_gathered_once_each_and_never_from_itself() {
        let role = |name: &str, label: &str, resource: &str| -> Arc<ClusterRole> {
            Arc::new(object(json!({ "metadata": { "name": name, "uid": name, "labels": { label: "true" } },
                "rules": [{ "apiGroups": [""], "resources": [resource], "verbs": ["get"] }] })))
        };
        let mut edit = (*role("edit", "to-edit", "old")).clone();
        edit.aggregation_rule =
            Some(object(json!({ "clusterRoleSelectors": [{ "matchLabels": { "to-edit": "true" } }] })));
        let all = [
            role("a", "to-edit", "pods"),
            role("b", "to-edit", "pods"),
            role("c", "to-view", "jobs"),
            Arc::new(edit.clone()),
        ];
        let rules = decide(&edit, &all);
        assert_eq!(rules.len(), 1);
        assert_eq!(rules[0].resources.as_ref().unwrap(), &["pods"]);
    }
}
