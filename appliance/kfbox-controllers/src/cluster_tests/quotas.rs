//! Controllers under quotas, and volumes that are protected.

use super::*;
use k8s_openapi::api::core::v1::ResourceQuota;

fn used(quotas: &[ResourceQuota], name: &str) -> Option<String> {
    let status = quotas.iter().find(|q| q.name_any() == name)?.status.as_ref()?;
    status.used.as_ref()?.get("pods").map(|q| q.0.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_fills_its_quota_and_goes_on_when_there_is_room() {
    let world = World::start().await;
    let quotas = world.api::<ResourceQuota>();
    world.create::<ResourceQuota>(json!({ "metadata": { "name": "two" }, "spec": { "hard": { "pods": "2" } } })).await;
    world.create::<Deployment>(deployment("web", 3, "one")).await;
    let pods = world.api::<Pod>();
    until(&pods, "two pods", |all| all.len() == 2 && all.iter().all(crate::pods::is_ready)).await;
    until(&world.api::<Event>(), "told why", |all| {
        all.iter().any(|e| {
            e.reason.as_deref() == Some("FailedCreate")
                && e.message.as_deref().is_some_and(|m| {
                    m.contains("exceeded quota: two, requested: pods=1, used: pods=2, limited: pods=2")
                })
        })
    })
    .await;
    until(&quotas, "all used", |all| used(all, "two").as_deref() == Some("2")).await;
    let more = json!({ "spec": { "hard": { "pods": "3" } } });
    quotas.patch("two", &PatchParams::default(), &Patch::Merge(more)).await.unwrap();
    until(&pods, "the third pod", |all| all.len() == 3).await;
    world.api::<Deployment>().delete("web", &DeleteParams::background()).await.unwrap();
    until(&quotas, "all free", |all| used(all, "two").as_deref() == Some("0")).await;
    let left = pods.list(&ListParams::default()).await.unwrap().items;
    assert!(left.iter().all(crate::pods::is_finished), "free only when they are gone or ended: {left:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_stays_while_a_claim_has_it() {
    let world = World::start().await;
    let volumes = Api::<PersistentVolume>::all(world.client.clone());
    let volume = json!({ "metadata": { "name": "own" }, "spec": { "capacity": { "storage": "1Gi" },
        "accessModes": ["ReadWriteOnce"], "hostPath": { "path": "/tmp/own" } } });
    volumes.create(&PostParams::default(), &object(volume)).await.unwrap();
    world
        .create::<PersistentVolumeClaim>(json!({ "metadata": { "name": "data" }, "spec": { "storageClassName": "",
            "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } }))
        .await;
    let claims = world.api::<PersistentVolumeClaim>();
    until(&claims, "bound", |all| all.iter().all(crate::volumes::is_bound_claim)).await;
    volumes.delete("own", &DeleteParams::default()).await.unwrap();
    let kept = volumes.get("own").await.unwrap();
    assert!(kept.metadata.deletion_timestamp.is_some());
    assert_eq!(kept.finalizers(), ["kubernetes.io/pv-protection"]);
    // Time enough for the controllers to see it: they have seen what came after.
    world
        .create::<PersistentVolumeClaim>(json!({ "metadata": { "name": "next" }, "spec": { "storageClassName": "",
            "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } }))
        .await;
    until(&world.api::<Event>(), "the next one is told to wait", |all| {
        all.iter()
            .any(|e| e.involved_object.name.as_deref() == Some("next") && e.reason.as_deref() == Some("FailedBinding"))
    })
    .await;
    assert!(volumes.get_opt("own").await.unwrap().is_some());
    claims.delete("data", &DeleteParams::default()).await.unwrap();
    until(&volumes, "gone with its claim", |all: &[PersistentVolume]| all.is_empty()).await;
}
