//! The ConfigMaps and Secrets that a pod names, fetched together.

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::{Api, Client};
use std::collections::{BTreeMap, BTreeSet};

/// Requests under way at once; the server is in this process.
const CONCURRENCY: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    ConfigMap,
    Secret,
}

/// Names in the pod's own namespace.
pub type References = BTreeSet<(Kind, String)>;

/// What was found. A name that is absent was not found.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    pub config_maps: BTreeMap<String, ConfigMap>,
    pub secrets: BTreeMap<String, Secret>,
}

/// What the pod's containers and volumes name, pull secrets excepted.
pub fn references(pod: &Pod) -> References {
    let mut found = References::new();
    let Some(spec) = &pod.spec else { return found };
    for (_, container) in super::record::containers(spec) {
        for source in container.env_from.iter().flatten() {
            if let Some(r) = &source.config_map_ref {
                found.insert((Kind::ConfigMap, r.name.clone()));
            }
            if let Some(r) = &source.secret_ref {
                found.insert((Kind::Secret, r.name.clone()));
            }
        }
        for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            if let Some(r) = &source.config_map_key_ref {
                found.insert((Kind::ConfigMap, r.name.clone()));
            }
            if let Some(r) = &source.secret_key_ref {
                found.insert((Kind::Secret, r.name.clone()));
            }
        }
    }
    for volume in spec.volumes.iter().flatten() {
        if let Some(source) = &volume.config_map {
            found.insert((Kind::ConfigMap, source.name.clone()));
        }
        if let Some(name) = volume.secret.as_ref().and_then(|s| s.secret_name.clone()) {
            found.insert((Kind::Secret, name));
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(s) = &source.config_map {
                found.insert((Kind::ConfigMap, s.name.clone()));
            }
            if let Some(s) = &source.secret {
                found.insert((Kind::Secret, s.name.clone()));
            }
        }
    }
    found
}

pub async fn fetch(client: &Client, namespace: &str, references: &References) -> Result<Objects, kube::Error> {
    enum Fetched {
        ConfigMap(Option<ConfigMap>),
        Secret(Option<Secret>),
    }
    let mut found = Objects::default();
    let owned: Vec<(Kind, String, Client, String)> =
        references.iter().map(|(kind, name)| (*kind, name.clone(), client.clone(), namespace.to_owned())).collect();
    let requests = owned.into_iter().map(|(kind, name, client, namespace)| async move {
        let fetched = match kind {
            Kind::ConfigMap => Fetched::ConfigMap(Api::namespaced(client, &namespace).get_opt(&name).await?),
            Kind::Secret => Fetched::Secret(Api::namespaced(client, &namespace).get_opt(&name).await?),
        };
        Ok::<_, kube::Error>((name, fetched))
    });
    let mut answers = stream::iter(requests).buffer_unordered(CONCURRENCY);
    while let Some(answer) = answers.next().await {
        match answer? {
            (name, Fetched::ConfigMap(Some(object))) => {
                found.config_maps.insert(name, object);
            }
            (name, Fetched::Secret(Some(object))) => {
                found.secrets.insert(name, object);
            }
            (_, Fetched::ConfigMap(None) | Fetched::Secret(None)) => {}
        }
    }
    Ok(found)
}
