//! A disk that fills up: a small file system of the test's own below the node's data. Who goes, and that
//! nobody else notices.

use crate::world::{World, main_status};
use k8s_openapi::api::core::v1::Node;
use kfbox_node::EvictionConfig;
use kube::{Api, runtime::wait::await_condition};
use serde_json::json;
use std::time::Duration;

impl World {
    async fn until_disk_pressure(&self, wanted: bool) -> Node {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let holds = |node: Option<&Node>| {
            let status = node.and_then(|node| node.status.as_ref());
            let conditions = status.and_then(|s| s.conditions.as_ref());
            let found = conditions.and_then(|all| all.iter().find(|c| c.type_ == "DiskPressure"));
            let taints = node.and_then(|node| node.spec.as_ref()?.taints.as_ref());
            let tainted = taints.is_some_and(|all| all.iter().any(|t| t.key.ends_with("disk-pressure")));
            found.is_some_and(|c| (c.status == "True") == wanted) && tainted == wanted
        };
        let waited = await_condition(nodes, &self.config.node_name, holds);
        tokio::time::timeout(crate::world::PATIENCE, waited).await.expect("the condition").unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pod_that_fills_the_disk_goes_and_the_disk_is_free_again() {
    let world = World::start_with(|config| {
        World::small_disk(config, 96);
        config.eviction = EvictionConfig { node_fs_percent: 30, transition: Duration::from_secs(1), ..World::calm() };
    })
    .await;
    let idle = "while true; do sleep 0.05; done";
    world.run("modest", idle, |_| {}).await;
    world.until_phase("modest", "Running").await;
    world
        .run("greedy", &format!("dd if=/dev/zero of=/big bs=1M count=72 2>/dev/null; {idle}"), |pod| {
            pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
        })
        .await;
    let pod = world.until_phase("greedy", "Failed").await;
    let status = pod.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    let message = status.message.unwrap();
    assert!(message.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: "), "{message}");
    assert!(message.contains("Container main was using ") && message.contains("has larger consumption"), "{message}");
    let told = status.conditions.unwrap().into_iter().find(|c| c.type_ == "DisruptionTarget").unwrap();
    assert_eq!((told.status.as_str(), told.reason.as_deref()), ("True", Some("TerminationByKubelet")));

    // What it wrote is gone with it, and nobody else went.
    world.until_disk_pressure(false).await;
    assert_eq!(main_status(&world.until_phase("modest", "Running").await).restart_count, 0);
    world.run("later", "true", |_| {}).await;
    world.until_phase("later", "Succeeded").await;

    // A disk that the pods did not fill: they go, the least modest first, and new ones are refused.
    let filler = world.config.data_dir.join("filler");
    std::fs::write(&filler, vec![1; 80 << 20]).unwrap();
    let node = world.until_disk_pressure(true).await;
    assert!(node.spec.unwrap().taints.into_iter().flatten().all(|t| t.effect == "NoSchedule"));
    world.until("modest", "evicted", |pod| pod.status.as_ref().unwrap().reason.as_deref() == Some("Evicted")).await;
    world.run("refused", "true", |_| {}).await;
    let pod = world.until_phase("refused", "Failed").await.status.unwrap();
    assert_eq!(pod.message.as_deref(), Some("Pod was rejected: The node had condition: [DiskPressure]. "));
    std::fs::remove_file(&filler).unwrap();
    world.until_disk_pressure(false).await;
    world.run("welcome", "true", |_| {}).await;
    world.until_phase("welcome", "Succeeded").await;
    world.stop().await;
}
