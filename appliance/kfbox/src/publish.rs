//! The daemon's own servers as Services of the cluster, under the names and ports that upstream's manifests give them, so
//! that SDKs inside pods find them with their defaults.

use kfbox_api::names;
use kube::{
    api::{Api, DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// A Service in `kubeflow` that leads to a port of the daemon on the pods' gateway address.
pub struct Published {
    pub name: &'static str,
    pub port_name: &'static str,
    /// The port that clients use.
    pub port: u16,
    /// The port on which the daemon listens.
    pub target: u16,
}

pub async fn services(client: &kube::Client, address: Ipv4Addr, published: &[Published]) -> kube::Result<()> {
    for service in published {
        let Published { name, port_name, port, target } = service;
        let labels = json!({names::label::MANAGED_BY: "kfbox"});
        let namespace = names::KUBEFLOW_NAMESPACE;
        apply(
            client,
            &GroupVersionKind::gvk("", "v1", "Service"),
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": namespace, "labels": labels},
                "spec": {"ports": [{"name": port_name, "port": port, "protocol": "TCP", "targetPort": target}]},
            }),
        )
        .await?;
        // No selector: nobody but us makes its endpoints.
        apply(
            client,
            &GroupVersionKind::gvk("discovery.k8s.io", "v1", "EndpointSlice"),
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": format!("{name}-kfbox"), "namespace": namespace, "labels": {
                    "kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "kfbox",
                }},
                "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
                "ports": [{"name": port_name, "port": target, "protocol": "TCP"}],
            }),
        )
        .await?;
    }
    Ok(())
}

async fn apply(client: &kube::Client, kind: &GroupVersionKind, object: Value) -> kube::Result<()> {
    let resource = ApiResource::from_gvk(kind);
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), names::KUBEFLOW_NAMESPACE, &resource);
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    api.patch(&name, &PatchParams::apply("kfbox").force(), &Patch::Apply(&object)).await.map(drop)
}
