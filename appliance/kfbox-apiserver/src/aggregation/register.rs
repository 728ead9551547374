//! Keeps an APIService for every group and version served here, and the condition of each that another server serves
//! (kube-aggregator `autoregister_controller.go`, kubernetes `crdregistration_controller.go`). Unlike upstream, one of
//! Kubernetes' own groups comes back at once when somebody deletes it, not with the next start.

use super::{COLLECTION, Learned, Remote, condition, connect::Unreachable, list::priority, local_condition, probe};
use crate::{
    handle::own_call,
    object::{meta, now},
    server::Core,
    status::ApiError,
    store::{Key, Watcher},
    verbs::{self, Call, Modification},
};
use futures::StreamExt as _;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Servers are probed this often, and whenever their Service or its endpoints change.
const EVERY: Duration = Duration::from_secs(30);

/// Probes under way together.
const TOGETHER: usize = 8;

/// Brings the APIServices up to date, and keeps them so.
pub async fn start(core: &Arc<Core>) -> Result<(), ApiError> {
    let stored = core.store.list(COLLECTION, None, None, None)?;
    for object in stored.objects {
        core.aggregation.observe(core, &object.key.name);
    }
    register(core).await?;
    keep_authentication(core).await?;
    let weak = Arc::downgrade(core);
    let shutdown = core.shutdown.clone();
    core.tasks.essential("kubernetes-apiservices", async move {
        let Some(mut events) = weak.upgrade().map(|core| Events::new(&core)) else { return Ok(()) };
        loop {
            let Some(core) = weak.upgrade() else {
                shutdown.cancelled().await;
                return Ok(());
            };
            let round = async {
                if let Err(error) = register(&core).await {
                    tracing::warn!(%error, "the APIServices are not up to date");
                }
                if let Err(error) = keep_authentication(&core).await {
                    tracing::warn!(%error, "extension-apiserver-authentication is not up to date");
                }
                futures::stream::iter(core.aggregation.all())
                    .for_each_concurrent(TOGETHER, |remote| check(&core, remote))
                    .await;
                events.next(&core).await;
            };
            tokio::select! {
                () = round => {}
                () = shutdown.cancelled() => return Ok::<_, kfbox_db::Error>(()),
            }
        }
    });
    Ok(())
}

/// What wakes the keeper.
struct Events {
    registry: tokio::sync::watch::Receiver<u64>,
    services: Watcher,
    slices: Watcher,
    objects: Watcher,
}

impl Events {
    fn new(core: &Core) -> Self {
        let watch = |collection| core.store.list_and_watch(collection, None).1;
        Self {
            registry: core.resources.changes(),
            services: watch("services"),
            slices: watch("endpointslices.discovery.k8s.io"),
            objects: watch(COLLECTION),
        }
    }

    /// Returns when something changed that concerns APIServices.
    async fn next(&mut self, core: &Core) {
        let deadline = tokio::time::Instant::now() + EVERY;
        loop {
            let remotes = core.aggregation.all();
            let (watched, collection, by_label) = tokio::select! {
                () = tokio::time::sleep_until(deadline) => return,
                _ = self.registry.changed() => return,
                () = core.aggregation.changed.notified() => return,
                changes = self.objects.next() => (changes, COLLECTION, false),
                changes = self.services.next(), if !remotes.is_empty() => (changes, "services", false),
                changes = self.slices.next(), if !remotes.is_empty() => {
                    (changes, "endpointslices.discovery.k8s.io", true)
                }
            };
            let Ok(changes) = watched else {
                // Too far behind: start again from the present.
                *self = Self::new(core);
                return;
            };
            let concerns = changes.iter().any(|change| {
                let key = &change.object.key;
                let service =
                    if by_label { change.object.label("kubernetes.io/service-name") } else { Some(&*key.name) };
                match collection {
                    COLLECTION => change.deleted,
                    _ => remotes
                        .iter()
                        .any(|r| *r.service.namespace == *key.namespace && service == Some(r.service.name.as_str())),
                }
            });
            if concerns {
                return;
            }
        }
    }
}

fn call(core: &Arc<Core>, name: &str) -> Result<Call, ApiError> {
    let registry = core.resources.current();
    let resource = registry.find("apiregistration.k8s.io", "v1", "apiservices").cloned();
    Ok(own_call(core, resource.ok_or_else(|| ApiError::internal("no APIServices"))?, "", name))
}

/// The APIServices of what is served here, by name.
fn wanted(core: &Core) -> BTreeMap<String, Value> {
    let registry = core.resources.current();
    let mut wanted = BTreeMap::new();
    for group in registry.groups.iter().filter(|g| &*g.name != "apiregistration.k8s.io") {
        for version in &group.versions {
            let name = format!("{}.{}", version.version, group.name);
            let (of_group, of_version) = priority(&group.name, &version.version);
            let custom = version.resources.iter().all(|r| r.custom.is_some());
            let mut object = json!({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {"name": name, "labels": {MANAGED: if custom { "true" } else { "onstart" }}},
                "spec": {
                    "group": &*group.name, "version": &*version.version,
                    "groupPriorityMinimum": of_group, "versionPriority": of_version,
                },
            });
            // People replace this one by a metrics server of theirs; it is made, and then left to them.
            if &*group.name == "metrics.k8s.io" {
                object["metadata"]["labels"] = Value::Null;
            }
            if group.name.is_empty()
                && let Some(spec) = object["spec"].as_object_mut()
            {
                spec.remove("group");
            }
            wanted.insert(name, object);
        }
    }
    wanted
}

async fn register(core: &Arc<Core>) -> Result<(), ApiError> {
    let mut wanted = wanted(core);
    let mut work = Vec::new();
    for object in core.store.list(COLLECTION, None, None, None)?.objects {
        let stored = object.value();
        let managed = stored["metadata"]["labels"][MANAGED].is_string();
        work.push(match wanted.remove(&*object.key.name) {
            None if managed => Work::Delete(object.key.clone()),
            Some(better) if managed && stored["spec"] != better["spec"] => Work::Reset(better),
            _ if stored["spec"]["service"].is_null()
                && condition(&stored).is_none_or(|c| c["reason"] != "Local" || c["status"] != "True") =>
            {
                Work::Local(object.key.name.to_string())
            }
            _ => continue,
        });
    }
    work.extend(wanted.into_values().map(Work::Create));
    futures::future::try_join_all(work.into_iter().map(|work| do_work(core, work))).await?;
    Ok(())
}

enum Work {
    Create(Value),
    Reset(Value),
    Local(String),
    Delete(Key),
}

async fn do_work(core: &Arc<Core>, work: Work) -> Result<(), ApiError> {
    let done = match work {
        Work::Create(object) => {
            let call = call(core, meta(&object, "name"))?;
            verbs::create_object(&call, object, true).await.map(drop)
        }
        Work::Reset(better) => {
            let call = call(core, meta(&better, "name"))?;
            let how = Modification { subresource: "", track: true, replace: false };
            let modified = verbs::modify(&call, &how, |stored| {
                let mut new = stored.clone();
                new["spec"] = better["spec"].clone();
                Ok(new)
            });
            modified.await.map(drop)
        }
        Work::Local(name) => set_condition(core, &name, local_condition()).await,
        Work::Delete(key) => {
            let call = call(core, &key.name)?;
            verbs::delete_object(&call, &key, &verbs::DeleteOptions::default(), false).await.map(drop)
        }
    };
    match done {
        // Somebody else was faster.
        Err(error) if matches!(error.reason(), "NotFound" | "AlreadyExists" | "Conflict") => Ok(()),
        done => done,
    }
}

/// Probes one server and writes what came of it, if that is news.
async fn check(core: &Arc<Core>, remote: Arc<Remote>) {
    let probed = probe::probe(core, &remote).await;
    let (status, reason, message) = match &probed {
        Ok(_) => ("True", "Passed", "all checks passed".to_owned()),
        Err(Unreachable { reason, message }) => ("False", *reason, message.clone()),
    };
    if let Ok(learned) = probed {
        learn(core, &remote, learned);
    }
    let new = json!({
        "type": "Available", "status": status, "reason": reason, "message": message, "lastTransitionTime": now(),
    });
    let before = remote.is_available(core);
    if let Err(error) = set_condition(core, &remote.name, new).await {
        tracing::warn!(apiservice = remote.name, %error, "the condition of an APIService was not written");
    }
    if remote.is_available(core) != before {
        core.documents.forget();
    }
}

fn learn(core: &Core, remote: &Remote, learned: Learned) {
    let mut known = remote.learned.lock();
    let news = known.openapi_v3 != learned.openapi_v3
        || known.openapi_v2.is_some() != learned.openapi_v2.is_some()
        || known.resources != learned.resources;
    *known = learned.clone();
    drop(known);
    // A write of the object may have put another in its place meanwhile.
    if let Some(current) = core.aggregation.find(&remote.group, &remote.version)
        && current.service == remote.service
    {
        *current.learned.lock() = learned;
    }
    if news {
        core.documents.forget();
    }
}

async fn set_condition(core: &Arc<Core>, name: &str, new: Value) -> Result<(), ApiError> {
    let call = call(core, name)?;
    let how = Modification { subresource: "status", track: true, replace: false };
    let modified = verbs::modify(&call, &how, |stored| {
        let mut new = new.clone();
        let old = condition(stored);
        if let Some(old) = old.filter(|o| o["status"] == new["status"]) {
            new["lastTransitionTime"] = old["lastTransitionTime"].clone();
        }
        if old == Some(&new) {
            return Ok(stored.clone());
        }
        let mut object = stored.clone();
        let mut kept = stored["status"]["conditions"].as_array().cloned().unwrap_or_default();
        kept.retain(|c| c["type"] != "Available");
        kept.push(new);
        object["status"]["conditions"] = kept.into();
        Ok(object)
    });
    match modified.await {
        Err(error) if error.reason() != "NotFound" => Err(error),
        _ => Ok(()),
    }
}

/// What extension servers read to know whose word on users to take
/// (<https://kubernetes.io/docs/tasks/extend-kubernetes/configure-aggregation-layer/>).
async fn keep_authentication(core: &Arc<Core>) -> Result<(), ApiError> {
    const NAME: &str = "extension-apiserver-authentication";
    let list = |words: &[&str]| Value::from(json!(words).to_string());
    let data = json!({
        "client-ca-file": core.authority.ca_pem(),
        "requestheader-allowed-names": list(&[super::FRONT_PROXY]),
        "requestheader-client-ca-file": core.aggregation.front_proxy_ca(),
        "requestheader-extra-headers-prefix": list(&["X-Remote-Extra-"]),
        "requestheader-group-headers": list(&["X-Remote-Group"]),
        "requestheader-uid-headers": list(&["X-Remote-Uid"]),
        "requestheader-username-headers": list(&["X-Remote-User"]),
    });
    let registry = core.resources.current();
    let resource = registry.find("", "v1", "configmaps").cloned();
    let resource = resource.ok_or_else(|| ApiError::internal("no config maps"))?;
    let call = own_call(core, resource, "kube-system", NAME);
    let stored = core.store.get("configmaps", &Key::new("kube-system", NAME)).map(|o| o.value());
    match stored {
        Some(stored) if stored["data"] == data => Ok(()),
        Some(_) => {
            let how = Modification { subresource: "", track: true, replace: false };
            let modified = verbs::modify(&call, &how, |stored| {
                let mut new = stored.clone();
                new["data"] = data.clone();
                Ok(new)
            });
            modified.await.map(drop)
        }
        None => {
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": NAME, "namespace": "kube-system"}, "data": data,
            });
            verbs::create_object(&call, object, true).await.map(drop)
        }
    }
}
