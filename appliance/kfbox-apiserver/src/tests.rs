//! The server as its clients see it, in this process: typed clients, and requests as they are on the wire.

use crate::{ApiServer, Config, server};
use axum::body::Body;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service, ServiceAccount};
use kfbox_base::{Tasks, UserInfo};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use std::path::Path;

mod aggregation;
mod audit;
mod conversion;
mod custom;
mod documents;
mod flow;
mod golden;
mod groups;
mod limits;
mod manifests;
mod metrics;
mod objects;
mod plugins;
mod pod_security;
mod policies;
mod properties;
mod quotas;
mod reads;
mod rules;
mod webhooks;
mod wire;

pub struct World {
    pub server: ApiServer,
    pub client: Client,
    pub tasks: Tasks,
    pub dir: tempfile::TempDir,
}

pub async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let (server, tasks) = open(dir.path()).await;
    let client = server.client();
    World { server, client, tasks, dir }
}

/// A world with settings of its own.
pub async fn world_with(change: impl FnOnce(&mut Config)) -> World {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path());
    change(&mut config);
    let tasks = Tasks::new();
    let server = ApiServer::open(config, &tasks).await.unwrap();
    let client = server.client();
    World { server, client, tasks, dir }
}

pub async fn open(dir: &Path) -> (ApiServer, Tasks) {
    let tasks = Tasks::new();
    (ApiServer::open(Config::new(dir), &tasks).await.unwrap(), tasks)
}

impl World {
    /// A request by the administrator with these headers; the answer's code, headers and JSON.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> (StatusCode, http::HeaderMap, Value) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let mut request = request.body(body).unwrap();
        request.extensions_mut().insert(server::Local);
        request.extensions_mut().insert(UserInfo::new("admin", [UserInfo::MASTERS.to_owned()]));
        let response = self.server.call(request).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let value =
            serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into()));
        (parts.status, parts.headers, value)
    }

    /// A client over TLS, changed as wished.
    pub async fn remote(&self, change: impl FnOnce(&mut kube::Config)) -> Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.server.serve(listener, &self.tasks).unwrap();
        let config = self.server.admin_kubeconfig(&format!("https://{address}")).unwrap();
        let config = serde_json::from_value(config).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(config, &options).await.unwrap();
        change(&mut config);
        Client::try_from(config).unwrap()
    }

    /// A request by somebody of no special rights, besides those that bindings give.
    pub async fn call_as(&self, user: &str, method: &str, path: &str) -> Response<Body> {
        let mut request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(server::Local);
        request.extensions_mut().insert(UserInfo::new(user, []));
        self.server.call(request).await
    }

    /// Everybody may read configmaps everywhere.
    pub async fn readers(&self) {
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]}]);
        self.post(&format!("{rbac}/clusterroles"), json!({"metadata": {"name": "readers"}, "rules": rules})).await;
        let binding = json!({
            "metadata": {"name": "readers"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "readers"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:authenticated"}],
        });
        assert_eq!(self.post(&format!("{rbac}/clusterrolebindings"), binding).await.0, 201);
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        let (code, _, value) = self.request("GET", path, &[], Value::Null).await;
        (code, value)
    }

    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let (code, _, value) = self.request("POST", path, &[("content-type", "application/json")], body).await;
        (code, value)
    }

    pub async fn put(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let (code, _, value) = self.request("PUT", path, &[("content-type", "application/json")], body).await;
        (code, value)
    }

    pub async fn merge(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let (code, _, value) =
            self.request("PATCH", path, &[("content-type", "application/merge-patch+json")], body).await;
        (code, value)
    }

    pub async fn delete(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let (code, _, value) = self.request("DELETE", path, &[("content-type", "application/json")], body).await;
        (code, value)
    }

    pub async fn config_map(&self, name: &str, value: &str) -> ConfigMap {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), "default");
        api.create(&PostParams::default(), &config_map(name, value)).await.unwrap()
    }

    pub async fn default_account(&self) {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), "default");
        let account = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
        api.create(&PostParams::default(), &account).await.unwrap();
    }
}

pub fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"app": name}}, "data": {"k": value}})).unwrap()
}

pub fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name}, "spec": {"containers": [{"name": "main", "image": "python:3.11"}]},
    }))
    .unwrap()
}

pub async fn next_line(response: &mut Response<Body>, buffer: &mut Vec<u8>) -> Option<Value> {
    loop {
        if let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            return Some(serde_json::from_slice(&line).unwrap());
        }
        let frame = response.body_mut().frame().await?.unwrap();
        buffer.extend_from_slice(frame.data_ref().unwrap());
    }
}
