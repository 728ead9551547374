//! What a pod may not do or take: refused at the door, or made to go.

use crate::world::{World, eventually};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kfbox_node::EvictionConfig;
use kube::{Api, api::ListParams};
use serde_json::{Value, json};
use std::time::Duration;

fn reason(pod: &Pod) -> (Option<&str>, Option<&str>) {
    let status = pod.status.as_ref().unwrap();
    (status.reason.as_deref(), status.message.as_deref())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_this_node_cannot_run_is_refused_with_the_reason() {
    let mut world = World::start().await;
    let refused = async |name: &str, field: &str, value: Value| {
        world.run(name, "true", |pod| pod["spec"][field] = value).await;
        let pod = world.until_phase(name, "Failed").await;
        assert!(pod.status.as_ref().unwrap().container_statuses.is_none(), "nothing of it was made");
        let (reason, message) = reason(&pod);
        (reason.unwrap().to_owned(), message.unwrap().to_owned())
    };
    let sysctls = json!({ "sysctls": [{ "name": "kernel.msgmax", "value": "65536" }] });
    assert_eq!(
        refused("unsafe", "securityContext", sysctls).await,
        ("SysctlForbidden".into(), "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted".to_owned())
    );
    world
        .run("users", "true", |pod| {
            pod["spec"]["hostUsers"] = json!(false);
            pod["spec"]["shareProcessNamespace"] = json!(true);
        })
        .await;
    let pod = world.until_phase("users", "Failed").await;
    assert_eq!(reason(&pod).0, Some("UserNamespacesNotSupported"));
    if !std::path::Path::new("/sys/module/apparmor").exists() {
        let profile = json!({ "appArmorProfile": { "type": "RuntimeDefault" } });
        let (reason, message) = refused("armored", "securityContext", profile).await;
        assert_eq!(reason, "AppArmor");
        assert_eq!(message, "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host");
    }
    // A safe one is set, in the pod alone.
    world
        .run("safe", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", |pod| {
            pod["spec"]["securityContext"] =
                json!({ "sysctls": [{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "77" }] });
        })
        .await;
    world.until_phase("safe", "Succeeded").await;
    assert_eq!(world.logs("safe", "main").await, "77\n");
    assert_ne!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap().trim(), "77");

    // A refusal is final, also for the next daemon.
    world.crash().await;
    world.restart().await;
    let pod = world.until_phase("unsafe", "Failed").await;
    assert_eq!(reason(&pod).0, Some("SysctlForbidden"));
    assert!(pod.status.as_ref().unwrap().container_statuses.is_none());
    world.delete("unsafe").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_takes_more_disk_than_it_may_goes() {
    let world = World::start().await;
    let fill = |file: &str| format!("dd if=/dev/zero of={file} bs=1M count=4 2>/dev/null; sleep 1000");
    world
        .run("volume", &fill("/data/x"), |pod| {
            pod["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": { "sizeLimit": "2Mi" } }]);
            pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
        })
        .await;
    let limit = |pod: &mut Value| {
        pod["spec"]["containers"][0]["resources"] = json!({ "limits": { "ephemeral-storage": "2Mi" } });
    };
    world.run("layer", &fill("/x"), limit).await;
    world.run("modest", "echo little > /x; sleep 1000", limit).await;
    let pod = world.until_phase("volume", "Failed").await;
    assert_eq!(reason(&pod), (Some("Evicted"), Some("Usage of EmptyDir volume \"data\" exceeds the limit \"2Mi\". ")));
    let pod = world.until_phase("layer", "Failed").await;
    assert_eq!(
        reason(&pod),
        (Some("Evicted"), Some("Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "))
    );
    let modest = world.until_phase("modest", "Running").await;
    assert_eq!(reason(&modest), (None, None));
    let events: Api<Event> = Api::namespaced(world.client.clone(), "default");
    let list = events.list(&ListParams::default()).await.unwrap();
    let evicted = list.items.iter().filter(|e| e.reason.as_deref() == Some("Evicted")).count();
    assert_eq!(evicted, 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_short_of_memory_evicts_who_took_most_and_says_so() {
    // More than any machine has: short from the first look.
    let eviction = EvictionConfig { memory_bytes: u64::MAX / 2, ..World::calm() };
    let world = World::start_with(|config| config.eviction = eviction).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let node = async || nodes.get(&world.config.node_name).await.unwrap();
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    loop {
        let node = node().await;
        let conditions = node.status.unwrap().conditions.unwrap();
        let pressed = conditions.iter().any(|c| c.type_ == "MemoryPressure" && c.status == "True");
        let taints = node.spec.and_then(|s| s.taints).unwrap_or_default();
        if pressed && taints.iter().any(|t| t.key == "node.kubernetes.io/memory-pressure") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "no pressure is shown");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Nothing without requests is taken any more, but what asked for memory is; and goes, when it takes more.
    world.run("besteffort", "sleep 1000", |_| {}).await;
    let pod = world.until_phase("besteffort", "Failed").await;
    assert_eq!(reason(&pod), (Some("Evicted"), Some("Pod was rejected: The node had condition: [MemoryPressure]. ")));
    world
        .run("greedy", "sleep 1000", |pod| {
            pod["spec"]["containers"][0]["resources"] = json!({ "requests": { "memory": "1" } });
        })
        .await;
    let pod = world.until_phase("greedy", "Failed").await;
    let (why, message) = reason(&pod);
    assert_eq!(why, Some("Evicted"));
    let message = message.unwrap();
    assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: "), "{message}");
    assert!(message.contains("Container main was using ") && message.ends_with("has larger consumption of memory. "));
    let conditions = pod.status.unwrap().conditions.unwrap();
    let target = conditions.iter().find(|c| c.type_ == "DisruptionTarget").unwrap();
    assert_eq!((target.status.as_str(), target.reason.as_deref()), ("True", Some("TerminationByKubelet")));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_has_no_more_processes_than_the_node_allows() {
    let world = World::start_with(|config| config.pod_pids_limit = Some(20)).await;
    world.run("forks", "i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i+1)); done; echo all", |_| {}).await;
    let pod = world
        .until("forks", "it ended or was stopped", |pod| {
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
            matches!(phase, Some("Failed" | "Succeeded" | "Running"))
        })
        .await;
    let uid = pod.metadata.uid.unwrap();
    eventually("the shell could not fork", || {
        let log = world.config.data_dir.join("pods").join(&uid).join("logs/main/0.log");
        std::fs::read_to_string(log).is_ok_and(|text| text.contains("fork"))
    })
    .await;
    assert!(!world.logs("forks", "main").await.contains("all"));
    world.stop().await;
}
