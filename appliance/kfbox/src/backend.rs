//! What `kfbox` commands ask of the running daemon, over its components.

mod people;

use crate::{
    control::{Backend, ErrorBody, GpuRow, Gpus, ImageRequest, ImageRow, Progress, S3Credentials},
    daemon::{BUCKET, REGION},
};
use futures::future::BoxFuture;
use kfbox_apiserver::ApiServer;
use kfbox_gateway::Gateway;
use kfbox_node::{
    GpuReport, Node,
    images::{Image, ImportOptions, OnProgress, Progress as ImageProgress},
};
use kfbox_objects::{Grant, Objects};
use kfbox_platform::DefaultProfile;
use serde_json::Value;
use std::{path::PathBuf, sync::Arc};
use tokio::sync::mpsc;

pub struct DaemonBackend {
    pub api: ApiServer,
    pub gateway: Gateway,
    pub objects: Objects,
    pub node: Arc<Node>,
    pub kubernetes_url: String,
    pub objects_url: String,
    pub objects_url_for_pods: String,
    pub user: String,
}

fn failed(error: impl std::fmt::Display, next: &str) -> ErrorBody {
    ErrorBody { error: error.to_string(), next: next.into() }
}

/// What a namespace's credential reaches: all that is its own in the shared bucket, nothing of its neighbours; and the bucket
/// of its own name, for programs that know of buckets only.
pub fn grants_of(namespace: &str) -> Vec<Grant> {
    let mut grants = vec![
        Grant::write(BUCKET, &format!("v2/artifacts/{namespace}/")),
        Grant::write(BUCKET, &format!("private-artifacts/{namespace}/")),
    ];
    grants.extend(own_bucket(namespace).map(|bucket| Grant::write(bucket, "")));
    grants
}

/// Nobody but the daemon makes other buckets than these, so that the shared one is the only name that is taken. Names of
/// namespaces are names of buckets, but for the shortest.
pub fn own_bucket(namespace: &str) -> Option<&str> {
    (namespace != BUCKET && namespace.len() >= 3).then_some(namespace)
}

impl Backend for DaemonBackend {
    fn kubeconfig(&self) -> Result<Value, ErrorBody> {
        self.api.admin_kubeconfig(&self.kubernetes_url).map_err(|e| failed(e, "`kfbox logs` shows more"))
    }

    fn s3_credentials(&self, namespace: Option<String>) -> BoxFuture<'_, Result<S3Credentials, ErrorBody>> {
        Box::pin(async move {
            let namespace = namespace.unwrap_or_else(|| DefaultProfile::for_user(&self.user).name);
            let credential = self.objects.credential_for(&namespace, grants_of(&namespace)).await;
            let credential = credential.map_err(|e| failed(e, "`kfbox logs` shows more"))?;
            Ok(S3Credentials {
                endpoint: self.objects_url.clone(),
                endpoint_for_pods: self.objects_url_for_pods.clone(),
                region: REGION.into(),
                access_key: credential.access_key,
                secret_key: credential.secret_key,
                bucket: BUCKET.into(),
                prefix: format!("v2/artifacts/{namespace}/"),
                own_bucket: own_bucket(&namespace).map(str::to_owned),
            })
        })
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<ImageRow>, ErrorBody>> {
        Box::pin(async move { Ok(self.node.images().list().iter().flat_map(rows).collect()) })
    }

    fn gpus(&self) -> Gpus {
        let (all, absent) = self.node.gpus();
        let row = |GpuReport { gpu, held_by }: GpuReport| GpuRow {
            vendor: gpu.vendor.into(),
            index: gpu.index,
            id: gpu.id,
            name: gpu.name,
            memory_bytes: gpu.memory_bytes,
            driver: gpu.driver,
            pci: gpu.pci,
            resource: gpu.resource,
            fault: gpu.fault,
            held_by,
        };
        let absent = absent.into_iter().map(|(vendor, why)| (vendor.to_owned(), why)).collect();
        Gpus { gpus: all.into_iter().map(row).collect(), absent }
    }

    fn remove_image(&self, name: String) -> BoxFuture<'_, Result<(), ErrorBody>> {
        Box::pin(async move {
            let removed = self.node.images().remove(&name).await;
            removed.map_err(|e| failed(e, "`kfbox image list` shows what is stored"))?;
            // The name is gone in any case; housekeeping looks at the content again.
            if let Err(error) = self.node.collect_images().await {
                tracing::warn!(%error, "the content of a removed image stays for now");
            }
            Ok(())
        })
    }

    fn import_image(&self, request: ImageRequest, progress: mpsc::Sender<Progress>) -> BoxFuture<'static, ()> {
        let store = self.node.images().clone();
        Box::pin(async move {
            let path = PathBuf::from(&request.path);
            let options = ImportOptions { name: request.name, ..ImportOptions::default() };
            let outcome = store.import(&path, options, reporter(progress.clone())).await;
            let last = match outcome {
                Ok(images) => Progress::Done { images: images.iter().flat_map(rows).collect() },
                Err(error) => Progress::Error { message: error.to_string() },
            };
            let _ = progress.send(last).await;
        })
    }

    fn pull_image(&self, request: ImageRequest, progress: mpsc::Sender<Progress>) -> BoxFuture<'static, ()> {
        let node = self.node.clone();
        Box::pin(async move {
            let name = request.name.unwrap_or_default();
            let last = match node.pull_image(&name, reporter(progress.clone())).await {
                Ok(image) => Progress::Done { images: rows(&image) },
                Err(error) => Progress::Error { message: error.to_string() },
            };
            let _ = progress.send(last).await;
        })
    }
}

fn rows(image: &Image) -> Vec<ImageRow> {
    let row = |name: String| ImageRow {
        name,
        id: image.id.clone(),
        size_bytes: image.size,
        created: Some(image.created.clone()).filter(|c| !c.is_empty()),
    };
    if image.names.is_empty() { vec![row("<none>".into())] } else { image.names.iter().cloned().map(row).collect() }
}

/// Passes progress on while there is room: a terminal that is behind misses some, never the last line.
fn reporter(progress: mpsc::Sender<Progress>) -> OnProgress {
    Arc::new(move |event| {
        let line = match event {
            ImageProgress::Resolving { .. } => return,
            ImageProgress::Downloading { layer, bytes, total } | ImageProgress::Unpacking { layer, bytes, total } => {
                Progress::Layer { id: layer, done: bytes, total }
            }
            ImageProgress::Done { layer } => Progress::Layer { id: layer, done: 1, total: 1 },
        };
        let _ = progress.try_send(line);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_its_own_bucket_and_never_the_shared_one() {
        assert!(grants_of("ann").contains(&Grant::write("ann", "")));
        for odd in [BUCKET, "ab"] {
            assert!(
                grants_of(odd).iter().all(|g| g.bucket == BUCKET && g.prefix.contains(&format!("/{odd}/"))),
                "{odd}"
            );
        }
    }
}
