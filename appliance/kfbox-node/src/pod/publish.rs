//! Writes a pod's status, the latest one only, and its final deletion.
//! Invariant: the pod's task never waits for the server; what the server last accepted is what changes are taken from.

use super::{context::Context, record::full_name, record::uid, status};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::Value;
use std::time::Duration;
use tokio::sync::watch;

const RETRY: Duration = Duration::from_millis(500);

pub struct Publisher {
    latest: watch::Sender<(u64, Value)>,
    written: watch::Receiver<u64>,
    previous: Option<PodStatus>,
}

impl Publisher {
    pub fn start(ctx: &Context, pod: &Pod) -> Self {
        let old = serde_json::to_value(&pod.status).unwrap_or_default();
        let (latest, updates) = watch::channel((0, old.clone()));
        let (done, written) = watch::channel(0);
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(ctx.client.clone(), namespace);
        let (name, uid, shutdown) =
            (pod.metadata.name.clone().unwrap_or_default(), uid(pod).to_owned(), ctx.tasks.shutdown());
        ctx.tasks.spawn(format!("pod-status/{}", full_name(pod)), async move {
            tokio::select! {
                () = follow(api, name, uid, old, updates, done) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Self { latest, written, previous: None }
    }

    /// The status last handed in, for comparison with the next.
    pub fn previous(&self) -> Option<&PodStatus> {
        self.previous.as_ref()
    }

    pub fn publish(&mut self, status: PodStatus) {
        if self.previous.as_ref() == Some(&status) {
            return;
        }
        let value = serde_json::to_value(&status).unwrap_or_default();
        self.previous = Some(status);
        self.latest.send_modify(|(serial, latest)| {
            *serial += 1;
            *latest = value;
        });
    }

    /// Whether the server has what was handed in, or no longer wants it.
    pub fn is_written(&self) -> bool {
        *self.written.borrow() >= self.latest.borrow().0
    }

    /// Waits for that.
    pub async fn flush(&mut self) {
        let wanted = self.latest.borrow().0;
        let _ = self.written.wait_for(|serial| *serial >= wanted).await;
    }

    /// Removes the object, if it is still the same pod.
    pub async fn delete(&self, ctx: &Context, pod: &Pod) {
        let api = api(&ctx.client, pod);
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() }),
            ..DeleteParams::default()
        };
        loop {
            match api.delete(pod.metadata.name.as_deref().unwrap_or_default(), &parameters).await {
                Ok(_) => return,
                // Gone, or another pod of the name.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(error) => {
                    tracing::warn!(pod = %full_name(pod), %error, "the pod could not be deleted");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

fn api(client: &Client, pod: &Pod) -> Api<Pod> {
    Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default())
}

async fn follow(
    api: Api<Pod>,
    name: String,
    uid: String,
    mut accepted: Value,
    mut updates: watch::Receiver<(u64, Value)>,
    done: watch::Sender<u64>,
) {
    while updates.changed().await.is_ok() {
        loop {
            let (serial, wanted) = updates.borrow_and_update().clone();
            let Some(patch) = status::patch(&uid, &accepted, &wanted) else {
                done.send_replace(serial);
                break;
            };
            match api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
                Ok(_) => {
                    accepted = wanted;
                    done.send_replace(serial);
                    break;
                }
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {
                    // The pod is gone, or another has its name: nobody wants its status.
                    done.send_replace(u64::MAX);
                    return;
                }
                Err(error) => {
                    tracing::warn!(pod = %name, %error, "a pod's status could not be written");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}
