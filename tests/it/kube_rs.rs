//! kube-rs over TLS, as a program outside the daemon uses it: with the kubeconfig, or with a service account's token.

mod access;
mod controller;
mod streams;
mod watching;

use kfbox_tests::Space;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// The administrator's client; its default namespace is the test's.
async fn client(space: &Space) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::read_from(space.kubeconfig())?;
    Ok(Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)?)
}

/// A pod whose process runs this Python program; quick to stop.
fn pod(name: &str, program: &str) -> k8s_openapi::api::core::v1::Pod {
    use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
    let container = Container {
        name: "main".into(),
        image: Some("python:3.11".into()),
        command: Some(["python3", "-u", "-c", program].map(String::from).into()),
        stdin: Some(true),
        ..Container::default()
    };
    let spec = PodSpec {
        containers: vec![container],
        restart_policy: Some("Never".into()),
        termination_grace_period_seconds: Some(0),
        ..PodSpec::default()
    };
    let metadata = kube::api::ObjectMeta { name: Some(name.into()), ..Default::default() };
    Pod { metadata, spec: Some(spec), status: None }
}
