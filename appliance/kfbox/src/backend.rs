//! What `kfbox` commands ask of the running daemon, over its components.

use crate::{
    control::{Backend, ErrorBody, ImageRequest, ImageRow, Progress, S3Credentials, TokenRequest},
    daemon::{BUCKET, REGION},
};
use futures::future::BoxFuture;
use kfbox_api::{
    Profile,
    profile::{ProfileSpec, Subject},
};
use kfbox_apiserver::ApiServer;
use kfbox_gateway::Gateway;
use kfbox_node::{
    Node,
    images::{Auths, Image, ImportOptions, OnProgress, Progress as ImageProgress},
};
use kfbox_objects::{Grant, Objects};
use kfbox_platform::DefaultProfile;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::mpsc;

pub struct DaemonBackend {
    pub api: ApiServer,
    pub gateway: Gateway,
    pub objects: Objects,
    pub node: Arc<Node>,
    pub kubernetes_url: String,
    pub objects_url: String,
    pub user: String,
}

/// The longest life of a personal token made on the command line.
const LONGEST_TOKEN: Duration = Duration::from_secs(366 * 86_400);

fn failed(error: impl std::fmt::Display, next: &str) -> ErrorBody {
    ErrorBody { error: error.to_string(), next: next.into() }
}

/// What a namespace's credential reaches: all that is its own in the shared bucket, nothing of its neighbours.
pub fn grants_of(namespace: &str) -> Vec<Grant> {
    vec![
        Grant::write(BUCKET, &format!("v2/artifacts/{namespace}/")),
        Grant::write(BUCKET, &format!("private-artifacts/{namespace}/")),
    ]
}

impl Backend for DaemonBackend {
    fn kubeconfig(&self) -> Result<Value, ErrorBody> {
        self.api.admin_kubeconfig(&self.kubernetes_url).map_err(|e| failed(e, "`kfbox logs` shows more"))
    }

    fn create_token(&self, request: TokenRequest) -> BoxFuture<'_, Result<String, ErrorBody>> {
        Box::pin(async move {
            let expires = Duration::from_secs(request.expires_in_seconds);
            if expires > LONGEST_TOKEN {
                return Err(failed("a token holds at most 366 days", "choose a shorter --expires"));
            }
            let user = request.user.unwrap_or_else(|| self.user.clone());
            let request = kfbox_gateway::TokenRequest::new(request.name, Some(expires));
            let created = self.gateway.create_token(&user, request).await;
            created.map(|t| t.reveal().to_owned()).map_err(|e| failed(e, "`kfbox user list` shows who may sign in"))
        })
    }

    fn s3_credentials(&self, namespace: Option<String>) -> BoxFuture<'_, Result<S3Credentials, ErrorBody>> {
        Box::pin(async move {
            let namespace = namespace.unwrap_or_else(|| DefaultProfile::for_user(&self.user).name);
            let credential = self.objects.credential_for(&namespace, grants_of(&namespace)).await;
            let credential = credential.map_err(|e| failed(e, "`kfbox logs` shows more"))?;
            Ok(S3Credentials {
                endpoint: self.objects_url.clone(),
                region: REGION.into(),
                access_key: credential.access_key,
                secret_key: credential.secret_key,
                bucket: BUCKET.into(),
                prefix: format!("v2/artifacts/{namespace}/"),
            })
        })
    }

    fn users(&self) -> Vec<Value> {
        let users = self.gateway.list_users();
        users.into_iter().map(|u| json!({"email": u.email, "disabled": u.disabled})).collect()
    }

    fn add_user(&self, email: String, password: String) -> BoxFuture<'_, Result<(), ErrorBody>> {
        Box::pin(async move {
            self.gateway
                .add_user(&email, &password, &[])
                .await
                .map_err(|e| failed(e, "`kfbox user list` shows who is there"))?;
            let made = self.make_profile(&email).await;
            made.map_err(|e| failed(e, "the user is there, but has no namespace yet: create a Profile with kubectl"))
        })
    }

    fn set_password(&self, email: String, password: String) -> BoxFuture<'_, Result<(), ErrorBody>> {
        Box::pin(async move {
            let done = self.gateway.set_password(&email, &password).await;
            done.map_err(|e| failed(e, "`kfbox user list` shows who may sign in"))
        })
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<ImageRow>, ErrorBody>> {
        Box::pin(async move { Ok(self.node.images().list().iter().flat_map(rows).collect()) })
    }

    fn remove_image(&self, name: String) -> BoxFuture<'_, Result<(), ErrorBody>> {
        Box::pin(async move {
            let removed = self.node.images().remove(&name).await;
            removed.map(drop).map_err(|e| failed(e, "`kfbox image list` shows what is stored"))
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
        let store = self.node.images().clone();
        Box::pin(async move {
            let name = request.name.unwrap_or_default();
            let last = match store.pull(&name, &Auths::default(), reporter(progress.clone())).await {
                Ok(image) => Progress::Done { images: rows(&image) },
                Err(error) => Progress::Error { message: error.to_string() },
            };
            let _ = progress.send(last).await;
        })
    }
}

impl DaemonBackend {
    /// A namespace of their own for a new person; one that is there already stays as it is.
    async fn make_profile(&self, email: &str) -> Result<(), kube::Error> {
        let DefaultProfile { name, owner } = DefaultProfile::for_user(email);
        let owner = Subject { kind: "User".into(), name: owner, ..Subject::default() };
        let profile = Profile::new(&name, ProfileSpec { owner: Some(owner), ..ProfileSpec::default() });
        match Api::all(self.api.client()).create(&PostParams::default(), &profile).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other.map(drop),
        }
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
