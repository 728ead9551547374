//! The objects that every cluster starts with. Made where they are missing, at each start and every half minute; what an
//! administrator changed stays, but for the default roles, whose upkeep is [`policy`]'s.

pub mod flowcontrol;

use crate::{
    auth::policy,
    handle::own_call,
    server::Core,
    status::ApiError,
    store::Key,
    verbs::{self, Modification},
};
use serde_json::{Value, json};
use std::sync::Arc;

const NAMESPACES: [&str; 5] = ["default", "kube-system", "kube-public", "kube-node-lease", "kubeflow"];

pub async fn ensure(core: &Arc<Core>) -> Result<(), ApiError> {
    let namespaces =
        NAMESPACES.map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    futures::future::try_join_all(namespaces.iter().map(|o| create_if_missing(core, o))).await?;
    // All at once: they share a few group commits.
    let objects = others(core);
    futures::future::try_join_all(objects.iter().map(|o| create_if_missing(core, o))).await?;
    futures::future::try_join_all(policy::default_objects().iter().map(|o| ensure_role(core, o))).await?;
    futures::future::try_join_all(flowcontrol::default_objects().iter().map(|o| ensure_flow(core, o))).await?;
    tell_dangling(core).await?;
    tell_range(core).await?;
    fill_aggregated(core).await?;
    keep_endpoint(core).await
}

/// Shows in each aggregated ClusterRole the rules that RBAC gathers for it.
async fn fill_aggregated(core: &Arc<Core>) -> Result<(), ApiError> {
    let roles = core.store.list("clusterroles.rbac.authorization.k8s.io", None, None, None)?;
    for role in roles.objects {
        let Some(rules) = core.rbac.aggregated_rules(&role.key.name) else { continue };
        let role = role.value();
        let rules = json!(rules);
        if role["rules"] == rules {
            continue;
        }
        let call = call_for(core, &role)?;
        let how = Modification { subresource: "", track: true, replace: false };
        let filled = verbs::modify(&call, &how, |role| {
            let mut role = role.clone();
            role["rules"] = rules.clone();
            Ok(role)
        });
        match filled.await {
            Err(error) if error.reason() != "NotFound" => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn others(core: &Core) -> Vec<Value> {
    let class = |name: &str, value: i64, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description,
        })
    };
    vec![
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"},
            },
            "spec": {
                "clusterIP": core.config.api_service_ip.to_string(),
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
            },
        }),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ranges(core)},
        }),
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {
                "name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "kfbox.dev/local-path", "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete",
            "allowVolumeExpansion": true,
        }),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "For system pods that must run in the cluster, on whatever node.",
        ),
        class("system-node-critical", 2_000_001_000, "For system pods that must not be moved from their node."),
    ]
}

/// One range a family.
fn ranges(core: &Core) -> Vec<&String> {
    std::iter::once(&core.config.service_cidr).chain(&core.config.second_service_cidr).collect()
}

fn call_for(core: &Arc<Core>, object: &Value) -> Result<verbs::Call, ApiError> {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let kind = object["kind"].as_str().unwrap_or_default();
    let registry = core.resources.current();
    let resource =
        registry.by_kind(group, version, kind).ok_or_else(|| ApiError::internal(format!("no kind {kind}")))?;
    let metadata = &object["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or_default();
    Ok(own_call(core, resource.clone(), text("namespace"), text("name")))
}

async fn create_if_missing(core: &Arc<Core>, object: &Value) -> Result<(), ApiError> {
    let call = call_for(core, object)?;
    if core.store.get(&call.resource.collection, &call.key()).is_some() {
        return Ok(());
    }
    verbs::create_object(&call, object.clone(), true).await.map(drop)
}

async fn ensure_role(core: &Arc<Core>, wanted: &Value) -> Result<(), ApiError> {
    let call = call_for(core, wanted)?;
    let stored = core.store.get(&call.resource.collection, &call.key()).map(|o| o.value());
    let Some(better) = policy::reconcile(stored.as_ref(), wanted) else { return Ok(()) };
    if stored.is_none() {
        return verbs::create_object(&call, better, true).await.map(drop);
    }
    let how = Modification { subresource: "", track: true, replace: false };
    verbs::modify(&call, &how, |stored| Ok(policy::reconcile(Some(stored), wanted).unwrap_or_else(|| stored.clone())))
        .await
        .map(drop)
}

async fn ensure_flow(core: &Arc<Core>, wanted: &Value) -> Result<(), ApiError> {
    let call = call_for(core, wanted)?;
    let Some(stored) = core.store.get(&call.resource.collection, &call.key()).map(|o| o.value()) else {
        return verbs::create_object(&call, wanted.clone(), true).await.map(drop);
    };
    if flowcontrol::reconcile(&stored, wanted).is_none() {
        return Ok(());
    }
    let how = Modification { subresource: "", track: true, replace: false };
    verbs::modify(&call, &how, |stored| Ok(flowcontrol::reconcile(stored, wanted).unwrap_or_else(|| stored.clone())))
        .await
        .map(drop)
}

/// Which FlowSchemas name a level that is not there.
async fn tell_dangling(core: &Arc<Core>) -> Result<(), ApiError> {
    const LEVELS: &str = "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io";
    let exists = |name: &str| core.store.get(LEVELS, &Key::new("", name)).is_some();
    let schemas = core.store.list("flowschemas.flowcontrol.apiserver.k8s.io", None, None, None)?.objects;
    let news = schemas.iter().map(|s| s.value()).filter(|s| flowcontrol::with_dangling(s, exists).is_some());
    let written = news.map(|schema| async move {
        let call = call_for(core, &schema)?;
        let how = Modification { subresource: "status", track: true, replace: false };
        let modified = verbs::modify(&call, &how, |stored| {
            Ok(flowcontrol::with_dangling(stored, exists).unwrap_or_else(|| stored.clone()))
        });
        match modified.await {
            Err(error) if error.reason() != "NotFound" => Err(error),
            _ => Ok(()),
        }
    });
    futures::future::try_join_all(written).await.map(drop)
}

/// The range that Services get their addresses from is in use.
async fn tell_range(core: &Arc<Core>) -> Result<(), ApiError> {
    let range =
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}});
    let call = call_for(core, &range)?;
    // A second family comes and goes with the settings; the first range is for good.
    let now = json!(ranges(core));
    let how = Modification { subresource: "", track: true, replace: false };
    let told = verbs::modify(&call, &how, |stored| {
        let mut range = stored.clone();
        let cidrs = &mut range["spec"]["cidrs"];
        if cidrs[0] == now[0] && *cidrs != now {
            *cidrs = now.clone();
        }
        Ok(range)
    });
    match told.await {
        // A second range of another place: the object still tells the former one.
        Err(error) if error.reason() == "Invalid" => tracing::warn!(%error, "the ServiceCIDR could not be changed"),
        Err(error) if error.reason() != "NotFound" => return Err(error),
        _ => {}
    }
    let how = Modification { subresource: "status", track: true, replace: false };
    let told = verbs::modify(&call, &how, |stored| {
        let mut range = stored.clone();
        if range["status"]["conditions"].as_array().is_none_or(Vec::is_empty) {
            range["status"]["conditions"] = json!([{
                "type": "Ready", "status": "True", "reason": "", "message": "Kubernetes default Service CIDR is ready",
                "lastTransitionTime": crate::object::now(),
            }]);
        }
        Ok(range)
    });
    match told.await {
        Err(error) if error.reason() != "NotFound" => Err(error),
        _ => Ok(()),
    }
}

/// The slice behind the Service `kubernetes`, when it is known where pods reach this server.
async fn keep_endpoint(core: &Arc<Core>) -> Result<(), ApiError> {
    let Some((address, port)) = core.config.api_endpoint else { return Ok(()) };
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    let call = call_for(core, &slice)?;
    if core.store.get("endpointslices.discovery.k8s.io", &Key::new("default", "kubernetes")).is_none() {
        return verbs::create_object(&call, slice, true).await.map(drop);
    }
    let how = Modification { subresource: "", track: true, replace: false };
    verbs::modify(&call, &how, |stored| {
        let mut new = stored.clone();
        for part in ["endpoints", "ports"] {
            new[part] = slice[part].clone();
        }
        Ok(new)
    })
    .await
    .map(drop)
}
