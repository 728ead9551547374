//! Pipelines, their versions and schedules as the cluster's own resources: `kubectl apply` is another way in, beside REST.
//! A resource shows in REST under its `uid`, deleting it here deletes it there, and the other way round. What came by REST
//! stays in the database alone: its names need not be those of Kubernetes. Upstream: `backend/src/crd` and
//! `backend/src/apiserver/webhook` of <https://github.com/kubeflow/pipelines>.
//!
//! Invariants: a resource reaches only what is in its own namespace; a schedule acts as who applied it, which only the
//! admission here can say; the database never holds a resource's row for longer than a watch takes to notice its end.

mod admission;
mod schedules;
mod versions;

pub(crate) use admission::router as admission_router;
#[cfg(test)]
pub(crate) use admission::{secret as admission_secret, who as acts_for};

use crate::{
    Inner,
    error::{ApiError, ApiResult, Code},
    store::{PipelineRow, RecurringRow, VersionRow},
};
use futures::TryStreamExt;
use k8s_openapi::{
    api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kfbox_api::{names::FIELD_MANAGER, pipelines};
use kfbox_base::BoxError;
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions},
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};
use tokio::sync::broadcast::error::RecvError;

/// Where the API server reaches [`crate::Pipelines::admission_router`], and whom it trusts there.
#[derive(Debug, Clone)]
pub struct Admission {
    /// `https://127.0.0.1:PORT`
    pub url: String,
    /// Certificates in PEM.
    pub ca_pem: String,
}

/// Between tries to install, and between looks at what could not be taken over yet.
const RETRY: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_secs(30);

struct Mirror {
    inner: Arc<Inner>,
    /// What may become right by itself: versions whose pipeline, and schedules whose version, is not there yet.
    waiting_versions: HashMap<String, DynamicObject>,
    waiting_schedules: HashMap<String, DynamicObject>,
    /// The `uid`s of ScheduledWorkflows, and their names.
    schedules: HashMap<String, (String, String)>,
}

pub(crate) async fn run(inner: Arc<Inner>, admission: Admission) -> Result<(), BoxError> {
    let shutdown = inner.tasks.shutdown();
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = install(&inner, &admission) => {}
    }
    let client = inner.deps.client.clone();
    let watch = |kind: ApiResource| {
        watcher(Api::<DynamicObject>::all_with(client.clone(), &kind), watcher::Config::default()).default_backoff()
    };
    let mut pipelines = std::pin::pin!(watch(pipelines::pipeline()));
    let mut versions = std::pin::pin!(watch(pipelines::pipeline_version()));
    let mut workflows = std::pin::pin!(watch(pipelines::scheduled_workflow()));
    let (mut changes, mut fired) = (inner.changes.subscribe(), inner.schedule.fired());
    let mut seen: [HashSet<String>; 3] = Default::default();
    let mut mirror = Mirror {
        inner: inner.clone(),
        waiting_versions: HashMap::new(),
        waiting_schedules: HashMap::new(),
        schedules: HashMap::new(),
    };
    loop {
        let look_again = async {
            if mirror.waiting_versions.is_empty() && mirror.waiting_schedules.is_empty() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            event = pipelines.try_next() => {
                if let Some(event) = noted(event, &mut seen[0])? {
                    mirror.pipeline(event, &mut seen[0]).await;
                }
            }
            event = versions.try_next() => {
                if let Some(event) = noted(event, &mut seen[1])? {
                    mirror.version(event, &mut seen[1]).await;
                }
            }
            event = workflows.try_next() => {
                if let Some(event) = noted(event, &mut seen[2])? {
                    mirror.schedule(event, &mut seen[2]).await;
                }
            }
            change = changes.recv() => mirror.run_changed(change).await,
            id = fired.recv() => match id {
                Ok(id) => mirror.show_schedule(&id).await,
                Err(_) => mirror.show_schedules().await,
            },
            () = look_again => mirror.retry(None).await,
        }
    }
}

/// Keeps book of a list's objects; what a watch cannot say is logged, and it starts anew by itself.
fn noted(
    event: Result<Option<Event<DynamicObject>>, watcher::Error>,
    seen: &mut HashSet<String>,
) -> Result<Option<Event<DynamicObject>>, BoxError> {
    match event {
        Ok(Some(Event::Init)) => {
            seen.clear();
            Ok(None)
        }
        Ok(Some(event)) => {
            if let Event::InitApply(object) = &event {
                seen.insert(object.uid().unwrap_or_default());
            }
            Ok(Some(event))
        }
        Ok(None) => Err("a watch on the pipelines' resources ended".into()),
        Err(error) => {
            tracing::warn!(%error, "a watch on the pipelines' resources failed; it is started again");
            Ok(None)
        }
    }
}

fn logged<T>(what: &str, outcome: ApiResult<T>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "{what}");
    }
}

impl Mirror {
    async fn pipeline(&mut self, event: Event<DynamicObject>, seen: &mut HashSet<String>) {
        match event {
            Event::Apply(object) | Event::InitApply(object) => {
                let namespace = object.namespace().unwrap_or_default();
                logged("a Pipeline cannot be taken over", versions::take_pipeline(&self.inner, &object).await);
                self.retry(Some(&namespace)).await;
            }
            Event::Delete(object) => {
                let id = object.uid().unwrap_or_default();
                logged("a Pipeline cannot be forgotten", self.inner.store.forget_resource_pipeline(&id).await);
            }
            Event::InitDone => {
                let there = std::mem::take(seen);
                logged("Pipelines cannot be forgotten", self.inner.store.keep_resource_pipelines(there).await);
            }
            Event::Init => {}
        }
    }

    async fn version(&mut self, event: Event<DynamicObject>, seen: &mut HashSet<String>) {
        match event {
            Event::Apply(object) | Event::InitApply(object) => {
                let namespace = object.namespace().unwrap_or_default();
                self.take_version(object).await;
                self.retry(Some(&namespace)).await;
            }
            Event::Delete(object) => {
                let id = object.uid().unwrap_or_default();
                self.waiting_versions.remove(&id);
                logged("a PipelineVersion cannot be forgotten", self.inner.store.delete_version(&id).await);
            }
            Event::InitDone => {
                let there = std::mem::take(seen);
                logged("PipelineVersions cannot be forgotten", self.inner.store.keep_resource_versions(there).await);
            }
            Event::Init => {}
        }
    }

    async fn schedule(&mut self, event: Event<DynamicObject>, seen: &mut HashSet<String>) {
        match event {
            Event::Apply(object) | Event::InitApply(object) => self.take_schedule(object).await,
            Event::Delete(object) => {
                let id = object.uid().unwrap_or_default();
                self.waiting_schedules.remove(&id);
                self.schedules.remove(&id);
                logged("a ScheduledWorkflow cannot be forgotten", self.inner.store.delete_recurring(&id).await);
                self.inner.schedule.wake();
            }
            Event::InitDone => {
                let there = std::mem::take(seen);
                self.schedules.retain(|id, _| there.contains(id));
                logged("ScheduledWorkflows cannot be forgotten", self.inner.store.keep_resource_schedules(there).await);
                self.inner.schedule.wake();
            }
            Event::Init => {}
        }
    }

    async fn take_version(&mut self, object: DynamicObject) {
        let id = object.uid().unwrap_or_default();
        match versions::take_version(&self.inner, &object).await {
            Ok(true) => drop(self.waiting_versions.remove(&id)),
            Ok(false) => drop(self.waiting_versions.insert(id, object)),
            Err(error) => {
                tracing::warn!(%error, "a PipelineVersion cannot be taken over; trying again");
                self.waiting_versions.insert(id, object);
            }
        }
    }

    async fn take_schedule(&mut self, object: DynamicObject) {
        let id = object.uid().unwrap_or_default();
        self.schedules.insert(id.clone(), (object.namespace().unwrap_or_default(), object.name_any()));
        match schedules::take(&self.inner, &object).await {
            Ok(true) => drop(self.waiting_schedules.remove(&id)),
            Ok(false) => drop(self.waiting_schedules.insert(id, object)),
            Err(error) => {
                tracing::warn!(%error, "a ScheduledWorkflow cannot be taken over; trying again");
                self.waiting_schedules.insert(id, object);
            }
        }
    }

    /// Looks again at what waits, in one namespace or in all.
    async fn retry(&mut self, namespace: Option<&str>) {
        let due = |waiting: &HashMap<String, DynamicObject>| -> Vec<DynamicObject> {
            let here = |o: &&DynamicObject| namespace.is_none_or(|n| o.namespace().as_deref() == Some(n));
            waiting.values().filter(here).cloned().collect()
        };
        for object in due(&self.waiting_versions) {
            self.take_version(object).await;
        }
        for object in due(&self.waiting_schedules) {
            self.take_schedule(object).await;
        }
    }

    /// A run began or ended: its schedule's status says so.
    async fn run_changed(&mut self, change: Result<crate::RunChange, RecvError>) {
        if self.schedules.is_empty() {
            return;
        }
        let Ok(change) = change else { return self.show_schedules().await };
        if change.state == "RUNNING" {
            return;
        }
        if let Ok(Some(id)) = self.inner.store.recurring_run_of(&change.run_id).await {
            self.show_schedule(&id).await;
        }
    }

    async fn show_schedules(&mut self) {
        let all: Vec<String> = self.schedules.keys().cloned().collect();
        for id in all {
            self.show_schedule(&id).await;
        }
    }

    async fn show_schedule(&mut self, id: &str) {
        let Some((namespace, name)) = self.schedules.get(id).cloned() else { return };
        logged(
            "a ScheduledWorkflow's status cannot be written",
            schedules::show(&self.inner, &namespace, &name, id).await,
        );
    }
}

async fn install(inner: &Inner, admission: &Admission) {
    let client = &inner.deps.client;
    let (mutating, validating) = admission::configurations(inner, admission);
    loop {
        let all = async {
            let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
            for crd in pipelines::crds() {
                apply(&crds, &crd).await?;
            }
            apply::<MutatingWebhookConfiguration>(&Api::all(client.clone()), &mutating).await?;
            apply::<ValidatingWebhookConfiguration>(&Api::all(client.clone()), &validating).await
        };
        match all.await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "the pipelines' resources cannot be installed; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn apply<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&object.name_any(), &params, &Patch::Apply(object)).await.map(drop)
}

/// The `spec` of a resource, as a map that may be empty.
fn spec(object: &DynamicObject) -> Value {
    object.data.get("spec").filter(|s| s.is_object()).cloned().unwrap_or_else(|| json!({}))
}

fn text<'a>(spec: &'a Value, name: &str) -> &'a str {
    spec.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// When the cluster made it, in milliseconds.
fn created_at(object: &DynamicObject) -> i64 {
    object.creation_timestamp().map_or_else(crate::time::now, |t| t.0.as_millisecond())
}

/// What the API server said, as an answer of REST.
fn refused(error: kube::Error, what: &str) -> ApiError {
    match error {
        kube::Error::Api(status) if status.code == 404 => ApiError::new(Code::NotFound, format!("{what} is gone")),
        kube::Error::Api(status) if (400..500).contains(&status.code) => ApiError::invalid(status.message.clone()),
        other => ApiError::internal("changing a resource of the cluster", other),
    }
}

impl Inner {
    fn resources(&self, kind: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.deps.client.clone(), namespace, kind)
    }

    /// Changes the resource that a row shows, if it shows one, before the row itself is changed.
    pub(crate) async fn change_resource(
        &self,
        kind: &ApiResource,
        namespace: &str,
        name: &str,
        spec: impl FnOnce() -> Value,
    ) -> ApiResult<()> {
        if name.is_empty() {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"spec": spec()}));
        let changed = self.resources(kind, namespace).patch(name, &PatchParams::default(), &patch).await;
        changed.map(drop).map_err(|e| refused(e, &format!("the {} {name}", kind.kind)))
    }

    /// Deletes the resource that a row shows, if it shows one; that very one, not one which took its name since.
    async fn delete_resource(&self, kind: &ApiResource, namespace: &str, name: &str, uid: &str) -> ApiResult<()> {
        if name.is_empty() {
            return Ok(());
        }
        let only = Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() };
        match self.resources(kind, namespace).delete(name, &DeleteParams::default().preconditions(only)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(refused(error, &format!("the {} {name}", kind.kind))),
        }
    }

    pub(crate) async fn remove_pipeline(&self, row: &PipelineRow, cascade: bool) -> ApiResult<()> {
        if !row.resource.is_empty() {
            if !cascade {
                self.store.without_versions(&row.id).await?;
            }
            self.delete_resource(&pipelines::pipeline(), &row.namespace, &row.resource, &row.id).await?;
            for (id, name) in self.store.resource_versions_of(&row.id).await? {
                self.delete_resource(&pipelines::pipeline_version(), &row.namespace, &name, &id).await?;
            }
        }
        self.store.delete_pipeline(&row.id, cascade).await
    }

    pub(crate) async fn remove_version(&self, namespace: &str, row: &VersionRow) -> ApiResult<()> {
        self.delete_resource(&pipelines::pipeline_version(), namespace, &row.resource, &row.id).await?;
        self.store.delete_version(&row.id).await
    }

    pub(crate) async fn remove_recurring(&self, row: &RecurringRow) -> ApiResult<()> {
        let name = row.resource().unwrap_or_default();
        self.delete_resource(&pipelines::scheduled_workflow(), &row.namespace, name, &row.id).await?;
        self.store.delete_recurring(&row.id).await
    }
}
