use super::*;
use crate::kubelet::{
    ContainerUsage, Duplex, ExecSession, Kubelet, KubeletError, LogOptions, LogStream, NodeUsage, PodUsage, Streams,
};
use std::sync::Arc;

const METRICS: &str = "/apis/metrics.k8s.io/v1beta1";

/// A node that only measures.
struct Meter;

fn nothing<T>() -> Result<T, KubeletError> {
    Err(KubeletError::Failed("only measures".into()))
}

#[async_trait::async_trait]
impl Kubelet for Meter {
    async fn logs(&self, _: &str, _: &str, _: &str, _: LogOptions) -> Result<LogStream, KubeletError> {
        nothing()
    }
    async fn exec(&self, _: &str, _: &str, _: &str, _: Vec<String>, _: Streams) -> Result<ExecSession, KubeletError> {
        nothing()
    }
    async fn attach(&self, _: &str, _: &str, _: &str, _: Streams) -> Result<ExecSession, KubeletError> {
        nothing()
    }
    async fn port_forward(&self, _: &str, _: &str, _: u16) -> Result<Box<dyn Duplex>, KubeletError> {
        nothing()
    }
    async fn metrics(&self) -> Result<NodeUsage, KubeletError> {
        let container = |name: &str, cpu_nanocores, memory_working_set_bytes| ContainerUsage {
            name: name.into(),
            cpu_nanocores,
            memory_working_set_bytes,
        };
        let pod = |name: &str, containers| PodUsage { namespace: "default".into(), name: name.into(), containers };
        Ok(NodeUsage {
            timestamp: "2026-01-02T03:04:05Z".into(),
            window_seconds: 15.5,
            cpu_nanocores: 1_500_000_000,
            memory_working_set_bytes: 3 << 30,
            pods: vec![
                pod("a", vec![container("main", 250_000_001, 5 << 20), container("side", 1_000_000, 4096)]),
                pod("b", vec![container("main", 0, 1 << 20)]),
                pod("gone", vec![container("main", 7, 7)]),
            ],
        })
    }
}

/// The same without measuring.
struct Blind;

#[async_trait::async_trait]
impl Kubelet for Blind {
    async fn logs(&self, _: &str, _: &str, _: &str, _: LogOptions) -> Result<LogStream, KubeletError> {
        nothing()
    }
    async fn exec(&self, _: &str, _: &str, _: &str, _: Vec<String>, _: Streams) -> Result<ExecSession, KubeletError> {
        nothing()
    }
    async fn attach(&self, _: &str, _: &str, _: &str, _: Streams) -> Result<ExecSession, KubeletError> {
        nothing()
    }
    async fn port_forward(&self, _: &str, _: &str, _: u16) -> Result<Box<dyn Duplex>, KubeletError> {
        nothing()
    }
}

#[tokio::test]
async fn usage_of_the_node_and_its_pods_is_told() {
    let world = world().await;
    world.default_account().await;
    assert_eq!(world.get(&format!("{METRICS}/nodes")).await.0, 503, "no node yet");
    world.server.set_kubelet(Arc::new(Blind));
    assert_eq!(world.get(&format!("{METRICS}/nodes")).await.0, 503, "a node that does not measure");
    world.server.set_kubelet(Arc::new(Meter));
    world.post("/api/v1/nodes", json!({"metadata": {"name": "box", "labels": {"disk": "ssd"}}})).await;
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    for name in ["a", "b", "new"] {
        let mut pod = pod(name);
        pod.metadata.labels = Some([("app".to_owned(), name.to_owned())].into());
        pods.create(&PostParams::default(), &pod).await.unwrap();
    }

    let (_, nodes) = world.get(&format!("{METRICS}/nodes")).await;
    assert_eq!((&nodes["kind"], nodes["items"].as_array().unwrap().len()), (&json!("NodeMetricsList"), 1));
    let node = &nodes["items"][0];
    assert_eq!(node["usage"], json!({"cpu": "1500m", "memory": "3Gi"}));
    assert_eq!((&node["timestamp"], &node["window"]), (&json!("2026-01-02T03:04:05Z"), &json!("15.5s")));
    assert_eq!((&node["metadata"]["name"], &node["metadata"]["labels"]), (&json!("box"), &json!({"disk": "ssd"})));
    assert_eq!(world.get(&format!("{METRICS}/nodes/box")).await.1["kind"], "NodeMetrics");
    assert_eq!(
        world.get(&format!("{METRICS}/nodes/other")).await.1["message"],
        "nodemetrics.metrics.k8s.io \"other\" not found"
    );

    // Only pods that the cluster knows and the node has measured.
    let (_, all) = world.get(&format!("{METRICS}/pods")).await;
    let names: Vec<_> = all["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].clone()).collect();
    assert_eq!(names, ["a", "b"]);
    let (_, some) = world.get(&format!("{METRICS}/namespaces/default/pods?labelSelector=app%3Db")).await;
    assert_eq!((some["items"].as_array().unwrap().len(), &some["items"][0]["metadata"]["name"]), (1, &json!("b")));
    let (_, none) = world.get(&format!("{METRICS}/namespaces/kube-system/pods")).await;
    assert_eq!(none["items"], json!([]));
    let (_, one) = world.get(&format!("{METRICS}/namespaces/default/pods/a")).await;
    assert_eq!(one["containers"][0], json!({"name": "main", "usage": {"cpu": "250000001n", "memory": "5Mi"}}));
    let (code, missing) = world.get(&format!("{METRICS}/namespaces/default/pods/new")).await;
    assert_eq!(
        (code.as_u16(), &missing["message"]),
        (404, &json!("podmetrics.metrics.k8s.io \"default/new\" not found"))
    );
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let (_, _, table) = world.request("GET", &format!("{METRICS}/pods"), &accept, Value::Null).await;
    assert_eq!(table["rows"][0]["cells"], json!(["a", "251000001n", "5124Ki", "15.5s"]));
    assert_eq!(world.delete(&format!("{METRICS}/nodes/box"), Value::Null).await.0, 405);
    let (_, list) = world.get(METRICS).await;
    assert_eq!(list["resources"][1]["verbs"], json!(["get", "list"]));
}
