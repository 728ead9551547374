//! Sizes that follow: autoscalers and replication controllers.

use super::*;
use k8s_openapi::api::{autoscaling::v2::HorizontalPodAutoscaler, core::v1::ReplicationController};

fn conditions(hpa: &HorizontalPodAutoscaler, kind: &str) -> Option<(String, String)> {
    let conditions = hpa.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|c| c.type_ == kind)?;
    Some((condition.status.clone(), condition.reason.clone().unwrap_or_default()))
}

fn autoscaler(target: Value, max: i32) -> Value {
    json!({ "metadata": { "name": "web" }, "spec": { "scaleTargetRef": target, "minReplicas": 1, "maxReplicas": max,
        "metrics": [{ "type": "Resource", "resource": { "name": "memory", "target": { "type": "AverageValue", "averageValue": "100Mi" } } }] } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_autoscaler_follows_what_pods_use() {
    let metrics = Metrics::default();
    let world = World::start_with(metrics.clone()).await;
    world.create::<Deployment>(deployment("web", 2, "one")).await;
    let pods =
        until(&world.api::<Pod>(), "two pods", |all| all.len() == 2 && all.iter().all(crate::pods::is_ready)).await;
    let items: Vec<Value> = pods
        .iter()
        .map(|p| {
            json!({ "metadata": { "name": p.name_any(), "namespace": "default" }, "timestamp": jiff::Timestamp::now().to_string(),
                "window": "15s", "containers": [{ "name": "c", "usage": { "cpu": "10m", "memory": "180Mi" } }] })
        })
        .collect();
    *metrics.lock() =
        json!({ "kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items });
    let target = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" });
    world.create::<HorizontalPodAutoscaler>(autoscaler(target, 9)).await;
    until(&world.api::<Deployment>(), "four replicas", |all| {
        all.iter().any(|d| d.spec.as_ref().is_some_and(|s| s.replicas == Some(4)))
    })
    .await;
    let all = until(&world.api::<HorizontalPodAutoscaler>(), "it says so", |all| {
        all.iter().any(|h| h.status.as_ref().is_some_and(|s| s.desired_replicas == 4 && s.last_scale_time.is_some()))
    })
    .await;
    let said = |kind: &str| conditions(&all[0], kind).unwrap();
    assert_eq!(said("AbleToScale"), ("True".into(), "SucceededRescale".into()));
    assert_eq!(said("ScalingActive"), ("True".into(), "ValidMetricFound".into()));
    assert_eq!(said("ScalingLimited"), ("False".into(), "DesiredWithinRange".into()));
    let value = all[0].status.clone().unwrap().current_metrics.unwrap()[0].resource.clone().unwrap().current;
    assert_eq!(value.average_value.unwrap().0, (180 << 20).to_string());
    until(&world.api::<Event>(), "an event", |all| {
        let new = "New size: 4; reason: memory resource above target";
        all.iter().any(|e| e.reason.as_deref() == Some("SuccessfulRescale") && e.message.as_deref() == Some(new))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_autoscaler_says_what_it_lacks_and_keeps_to_its_bounds() {
    let world = World::start().await;
    world.create::<Deployment>(deployment("web", 3, "one")).await;
    until(&world.api::<Pod>(), "pods", |all| all.len() == 3 && all.iter().all(crate::pods::is_ready)).await;
    let hpas = world.api::<HorizontalPodAutoscaler>();
    let nobody = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "nobody" });
    world.create::<HorizontalPodAutoscaler>(autoscaler(nobody, 2)).await;
    until(&hpas, "no target", |all| {
        all.iter().any(|h| conditions(h, "AbleToScale") == Some(("False".into(), "FailedGetScale".into())))
    })
    .await;
    hpas.delete("web", &DeleteParams::default()).await.unwrap();
    // Above the maximum it needs no metrics.
    let web = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" });
    world.create::<HorizontalPodAutoscaler>(autoscaler(web, 2)).await;
    until(&world.api::<Deployment>(), "two replicas", |all| {
        all.iter().any(|d| d.spec.as_ref().is_some_and(|s| s.replicas == Some(2)))
    })
    .await;
    // Its spec changed: it looks again at once, and there is no metrics server.
    let bounds = json!({ "spec": { "maxReplicas": 5 } });
    hpas.patch("web", &PatchParams::default(), &Patch::Merge(bounds)).await.unwrap();
    until(&hpas, "no metrics", |all| {
        all.iter().any(|h| conditions(h, "ScalingActive") == Some(("False".into(), "FailedGetResourceMetric".into())))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custom_kind_with_a_scale_is_scaled_too() {
    let world = World::start().await;
    let crds = Api::<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition>::all(
        world.client.clone(),
    );
    let crd = json!({ "metadata": { "name": "fleets.example.org" }, "spec": { "group": "example.org", "scope": "Namespaced", "names": { "plural": "fleets", "singular": "fleet", "kind": "Fleet" },
        "versions": [{ "name": "v1", "served": true, "storage": true,
            "subresources": { "status": {}, "scale": { "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector" } },
            "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }] } });
    crds.create(&PostParams::default(), &object(crd)).await.unwrap();
    let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("example.org", "v1", "Fleet"), "fleets");
    let fleets = Api::<DynamicObject>::namespaced_with(world.client.clone(), "default", &kind);
    let fleet = json!({ "apiVersion": "example.org/v1", "kind": "Fleet", "metadata": { "name": "f" }, "spec": { "replicas": 7 } });
    until(&crds, "established", |all| {
        all.iter().any(|c| {
            let conditions = c.status.as_ref().and_then(|s| s.conditions.as_ref());
            conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Established" && c.status == "True"))
        })
    })
    .await;
    fleets.create(&PostParams::default(), &object(fleet)).await.unwrap();
    let hpas = world.api::<HorizontalPodAutoscaler>();
    let target = json!({ "apiVersion": "example.org/v1", "kind": "Fleet", "name": "f" });
    let asked = async {
        loop {
            // Its kind may not be known yet: then the autoscaler looks again when its own spec changes.
            world.create::<HorizontalPodAutoscaler>(autoscaler(target.clone(), 3)).await;
            let all = until(&hpas, "an answer", |all| all.iter().any(|h| conditions(h, "AbleToScale").is_some())).await;
            if conditions(&all[0], "AbleToScale").unwrap().0 == "True" {
                return;
            }
            hpas.delete("web", &DeleteParams::default()).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked).await.expect("known in time");
    until(&fleets, "three", |all: &[DynamicObject]| all.iter().any(|f| f.data["spec"]["replicas"] == 3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_controller_keeps_its_pods() {
    let world = World::start().await;
    let labels = json!({ "app": "rc" });
    world.create::<ReplicationController>(json!({ "metadata": { "name": "rc" }, "spec": { "replicas": 2, "selector": labels, "template": template(labels, "i", None) } })).await;
    let controllers = world.api::<ReplicationController>();
    let ready = |n: i32| {
        move |all: &[ReplicationController]| {
            all.iter().any(|c| c.status.as_ref().is_some_and(|s| s.replicas == n && s.ready_replicas.unwrap_or(0) == n))
        }
    };
    until(&controllers, "two", ready(2)).await;
    controllers
        .patch_scale("rc", &PatchParams::default(), &Patch::Merge(json!({ "spec": { "replicas": 3 } })))
        .await
        .unwrap();
    let _ = until(&controllers, "three", ready(3)).await;
    let pods = world.api::<Pod>().list(&ListParams::default()).await.unwrap().items;
    assert!(pods.iter().all(|p| p.owner_references()[0].kind == "ReplicationController"));
    controllers.delete("rc", &DeleteParams::background()).await.unwrap();
    until(&world.api::<Pod>(), "gone", |all| all.is_empty()).await;
}
