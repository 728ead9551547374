//! Claims and volumes: binding, and making volumes as folders under one root. Invariants: a volume's name follows from its
//! claim's uid, so a claim never gets two; a folder is removed only when it is the volume's own, directly under the root.
//! Upstream: <https://kubernetes.io/docs/concepts/storage/persistent-volumes/>.

mod bind;
mod clone;
mod folder;

use crate::{
    LOCAL_PATH_PROVISIONER,
    cache::{self, Key},
    context::{Context, Registered},
    pods,
    queue::{Outcome, Queue},
    scheduler,
    scheduler::fit::milli,
    snapshots,
    write::{self, WriteError},
};
use bind::Step;
pub use bind::{is_bound, is_ours, suits};
pub use clone::CloneError;
pub use folder::{FolderError, Origin, Taken, forget, take, taken};
use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim},
    apimachinery::pkg::api::resource::Quantity,
};
use serde_json::json;
use std::{sync::Arc, time::Duration};

const COMPONENT: &str = "persistentvolume-controller";
const WORKERS: usize = 8;
/// Between looks at what a claim is made from; snapshots are told of at once.
const SOURCE_AGAIN: Duration = Duration::from_secs(10);
const PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

pub fn register(context: &Arc<Context>) -> Registered {
    let (claims_queue, volumes_queue) = (Queue::<Key>::new(), Queue::<String>::new());
    let caches = &context.caches;
    let (q, v) = (claims_queue.clone(), volumes_queue.clone());
    caches.claims.on_change(move |change| {
        for claim in change.both() {
            q.add(cache::key(&**claim));
            let volume = claim.spec.as_ref().and_then(|s| s.volume_name.clone());
            v.add(volume.unwrap_or_else(|| bind::volume_name(claim)));
        }
    });
    let (q, v, claims) = (claims_queue.clone(), volumes_queue.clone(), caches.claims.clone());
    caches.volumes.on_change(move |change| {
        for volume in change.both() {
            v.add(volume.metadata.name.clone().unwrap_or_default());
            if let Some(claim) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) {
                q.add((claim.namespace.clone().unwrap_or_default(), claim.name.clone().unwrap_or_default()));
            }
        }
        // A volume that is new may suit a claim that waits.
        if change.old.is_none() {
            for claim in claims.all().iter().filter(|c| !bind::is_bound(c)) {
                q.add(cache::key(&**claim));
            }
        }
    });
    let (q, claims) = (claims_queue.clone(), caches.claims.clone());
    caches.classes.on_change(move |_| {
        for claim in claims.all().iter().filter(|c| !bind::is_bound(c)) {
            q.add(cache::key(&**claim));
        }
    });
    let (q, claims) = (claims_queue.clone(), caches.claims.clone());
    context.snapshots.snapshots.on_change(move |change| {
        for snapshot in change.both() {
            let namespace = snapshot.metadata.namespace.clone().unwrap_or_default();
            for claim in claims.in_namespace(&namespace).iter().filter(|c| !bind::is_bound(c) && source(c).is_some()) {
                q.add(cache::key(&**claim));
            }
        }
    });
    // A claim in use stays until its last pod is gone.
    let (q, claims) = (claims_queue.clone(), caches.claims.clone());
    caches.pods.on_change(move |change| {
        let Some(pod) = change.old else {
            return if let Some(pod) = change.new {
                let namespace = pod.metadata.namespace.clone().unwrap_or_default();
                scheduler::claim_names(pod).into_iter().for_each(|name| q.add((namespace.clone(), name)));
            };
        };
        if change.new.is_some_and(|p| !pods::is_finished(p)) {
            return;
        }
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        for name in scheduler::claim_names(pod) {
            if claims.get(&namespace, &name).is_some_and(|c| c.metadata.deletion_timestamp.is_some()) {
                q.add((namespace.clone(), name));
            }
        }
    });

    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        swept(&context).await;
        let (a, b) = (context.clone(), context.clone());
        let claims = claims_queue
            .run("persistentvolumeclaim", WORKERS, context.shutdown.clone(), move |key| claim(a.clone(), key));
        let volumes = volumes_queue
            .run("persistentvolume", WORKERS, context.shutdown.clone(), move |name| volume(b.clone(), name));
        let (claims, volumes) = futures::join!(claims, volumes);
        claims.and(volumes)
    };
    ("persistentvolume", Box::pin(run))
}

/// Waits until the rests of an earlier run are gone, so that they are not taken for what is being made.
pub async fn swept(context: &Context) {
    context.volumes_swept.get_or_init(|| folder::sweep(&context.config.local_path_root)).await;
}

/// What a claim is to be made from: the group (none: the core's), kind and name.
pub fn source(claim: &PersistentVolumeClaim) -> Option<(Option<String>, String, String)> {
    let spec = claim.spec.as_ref()?;
    let group = |group: &Option<String>| group.clone().filter(|g| !g.is_empty());
    let reference = spec.data_source_ref.as_ref().map(|r| (group(&r.api_group), r.kind.clone(), r.name.clone()));
    reference.or_else(|| spec.data_source.as_ref().map(|s| (group(&s.api_group), s.kind.clone(), s.name.clone())))
}

/// The volume of a bound claim, if it is one of ours and bound to it.
pub fn ours(context: &Context, claim: &PersistentVolumeClaim) -> Option<Arc<PersistentVolume>> {
    let name = claim.spec.as_ref()?.volume_name.as_ref()?;
    let volume = context.caches.volumes.get("", name)?;
    (bind::is_bound(claim)
        && bind::phase(&volume, Some(claim)) == "Bound"
        && is_ours(&volume, &context.config.local_path_root))
    .then_some(volume)
}

/// Bytes that a volume was asked to have.
pub fn size(volume: &PersistentVolume) -> i64 {
    bytes(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage")))
}

fn bytes(quantity: Option<&Quantity>) -> i64 {
    quantity.and_then(milli).and_then(|n| i64::try_from((n + 999) / 1000).ok()).unwrap_or(0)
}

/// What the claim's volume is made from, if it is made from anything; or why that cannot be, in upstream's words.
fn origin(context: &Context, claim: &PersistentVolumeClaim) -> Result<Option<Origin>, (&'static str, String)> {
    let Some((group, kind, name)) = source(claim) else { return Ok(None) };
    let spec = claim.spec.clone().unwrap_or_default();
    let (namespace, _) = cache::key(claim);
    let wanted = bytes(spec.resources.as_ref().and_then(|r| r.requests.as_ref()?.get("storage")));
    let elsewhere = spec.data_source_ref.as_ref().and_then(|r| r.namespace.as_ref()).is_some_and(|n| *n != namespace);
    let found = match (group.as_deref(), kind.as_str()) {
        _ if elsewhere => Err("a data source in another namespace is not allowed".to_owned()),
        (None, "PersistentVolumeClaim") => of_claim(context, &namespace, &name, wanted),
        (Some(kfbox_api::snapshots::GROUP), "VolumeSnapshot") => snapshots::origin(context, &namespace, &name, wanted),
        _ => {
            let message = "The data source for this PVC does not match any registered VolumePopulator";
            return Err(("UnrecognizedDataSourceKind", message.into()));
        }
    };
    found.map(Some).map_err(|why| {
        let class = spec.storage_class_name.unwrap_or_default();
        let message = format!(
            "failed to provision volume with StorageClass {class:?}: error getting handle for DataSource Type {kind} by Name {name}: {why}"
        );
        ("ProvisioningFailed", message)
    })
}

fn of_claim(context: &Context, namespace: &str, name: &str, wanted: i64) -> Result<Origin, String> {
    let source = context.caches.claims.get(namespace, name).ok_or_else(|| {
        format!("error getting PVC {name} (namespace {namespace:?}) from api server: persistentvolumeclaim {name:?} not found")
    })?;
    if source.metadata.deletion_timestamp.is_some() {
        return Err(format!("the PVC DataSource {name} is currently being deleted"));
    }
    if !bind::is_bound(&source) {
        let phase = source.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
        return Err(format!("the PVC DataSource {name} must have a status of Bound.  Got {phase}"));
    }
    let requests = source.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref());
    let size = bytes(requests.and_then(|r| r.get("storage")));
    if wanted < size {
        return Err(format!(
            "error, new PVC request must be greater than or equal in size to the specified PVC data source, requested {wanted} but source is {size}"
        ));
    }
    let volume = ours(context, &source).ok_or("claim in dataSource not bound or invalid")?;
    Ok(Origin::Volume(volume.metadata.name.clone().unwrap_or_default()))
}

/// The volumes, but for free ones that the node chosen for the claim's pod cannot reach.
fn within_reach(context: &Context, claim: &PersistentVolumeClaim) -> Vec<Arc<PersistentVolume>> {
    let mut volumes = context.caches.volumes.all();
    let node = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE));
    if let Some(node) = node.and_then(|name| context.caches.nodes.get("", name)) {
        volumes.retain(|volume| {
            let spec = volume.spec.as_ref();
            let required = spec.and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
            spec.is_some_and(|s| s.claim_ref.is_some())
                || required.is_none_or(|selector| scheduler::fit::selector_matches(selector, &node))
        });
    }
    volumes
}

async fn claim(context: Arc<Context>, key: Key) -> Result<Outcome, WriteError> {
    let (client, caches) = (&context.client, &context.caches);
    let Some(claim) = caches.claims.get(&key.0, &key.1) else {
        // A pod may want it made from its own template.
        return ephemeral(&context, &key).await;
    };
    let protected = claim.metadata.finalizers.iter().flatten().any(|f| f == PROTECTION);
    if claim.metadata.deletion_timestamp.is_some() {
        let used =
            caches.pods.in_namespace(&key.0).iter().any(|p| {
                !pods::is_finished(p) && pods::node(p).is_some() && scheduler::claim_names(p).contains(&key.1)
            });
        if protected && !used {
            let mut finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
            finalizers.retain(|f| f != PROTECTION);
            write::patch(client, &caches.claims, &*claim, json!({ "metadata": { "finalizers": finalizers } })).await?;
        }
        return Ok(Outcome::Done);
    }
    if !protected {
        let finalizers: Vec<String> =
            claim.metadata.finalizers.iter().flatten().cloned().chain([PROTECTION.to_owned()]).collect();
        write::patch(client, &caches.claims, &*claim, json!({ "metadata": { "finalizers": finalizers } })).await?;
        // Its event brings it back, as it now is.
        return Ok(Outcome::Done);
    }
    let steps = bind::decide(&claim, &within_reach(&context, &claim), &caches.classes.all(), &context.config);
    for step in steps {
        match step {
            Step::Class(name) => {
                write::patch(client, &caches.claims, &*claim, json!({ "spec": { "storageClassName": name } })).await?;
            }
            Step::Say { warning, reason, message } => {
                if warning {
                    context.events.warning(&*claim, COMPONENT, reason, message);
                } else {
                    context.events.normal(&*claim, COMPONENT, reason, message);
                }
            }
            Step::Reserve(volume, reference) => {
                write::patch(client, &caches.volumes, &*volume, json!({ "spec": { "claimRef": reference } })).await?;
            }
            Step::Bind(body) => write::patch(client, &caches.claims, &*claim, body).await?,
            Step::Status(status) => {
                let Some(now) = caches.claims.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
                let old = now.status.clone().unwrap_or_default();
                write::status_of(client, &caches.claims, &*now, &old, &status).await?;
            }
            Step::Provision(volume) => {
                let name = volume.metadata.name.clone().unwrap_or_default();
                let root = &context.config.local_path_root;
                match origin(&context, &claim) {
                    Ok(None) => folder::create(root, &name)
                        .await
                        .map_err(|source| disk("cannot make the volume folder", &context, &name, source))?,
                    Ok(Some(origin)) => {
                        let made = folder::create_from(root, &name, &origin, &context.shutdown).await;
                        if let Err(error) = made {
                            if context.shutdown.is_cancelled() {
                                return Ok(Outcome::Done);
                            }
                            let message = format!("failed to provision volume: {error}");
                            context.events.warning(&*claim, LOCAL_PATH_PROVISIONER, "ProvisioningFailed", message);
                            return Err(error.into());
                        }
                    }
                    Err((reason, message)) => {
                        context.events.warning(&*claim, LOCAL_PATH_PROVISIONER, reason, message);
                        return Ok(Outcome::Again(SOURCE_AGAIN));
                    }
                }
                write::create(client, &caches.volumes, &*volume, None).await?;
                let message = format!("Successfully provisioned volume {name}");
                context.events.normal(&*claim, LOCAL_PATH_PROVISIONER, "ProvisioningSucceeded", message);
            }
            Step::Grow(volume, quantity) => {
                write::patch(
                    client,
                    &caches.volumes,
                    &*volume,
                    json!({ "spec": { "capacity": { "storage": quantity } } }),
                )
                .await?;
            }
        }
    }
    Ok(Outcome::Done)
}

/// Makes the claim of a pod's ephemeral volume, owned by the pod.
async fn ephemeral(context: &Context, (namespace, name): &Key) -> Result<Outcome, WriteError> {
    for pod in context.caches.pods.in_namespace(namespace).iter().filter(|p| pods::is_active(p)) {
        for volume in pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default() {
            let Some(template) = volume.ephemeral.as_ref().and_then(|e| e.volume_claim_template.as_ref()) else {
                continue;
            };
            if *name != format!("{}-{}", pods::name(pod), volume.name) {
                continue;
            }
            let given = template.metadata.clone().unwrap_or_default();
            let claim = PersistentVolumeClaim {
                metadata: kube::api::ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(namespace.clone()),
                    labels: given.labels,
                    annotations: given.annotations,
                    owner_references: Some(vec![pods::owned_by(&**pod)]),
                    ..Default::default()
                },
                spec: Some(template.spec.clone()),
                status: None,
            };
            write::create(&context.client, &context.caches.claims, &claim, pod.metadata.uid.as_deref()).await?;
        }
    }
    Ok(Outcome::Done)
}

fn disk(what: &'static str, context: &Context, name: &str, source: std::io::Error) -> WriteError {
    WriteError::Disk { what, path: context.config.local_path_root.join(name).display().to_string(), source }
}

async fn volume(context: Arc<Context>, name: String) -> Result<Outcome, WriteError> {
    let (client, caches) = (&context.client, &context.caches);
    let Some(volume) = caches.volumes.get("", &name) else { return Ok(Outcome::Done) };
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.clone());
    let claim = reference.as_ref().and_then(|r| {
        caches.claims.get(r.namespace.as_deref().unwrap_or_default(), r.name.as_deref().unwrap_or_default())
    });
    let phase = bind::phase(&volume, claim.as_deref());
    let deleting = volume.metadata.deletion_timestamp.is_some();
    if phase == "Released" && bind::is_ours_to_remove(&volume, &context.config.local_path_root) {
        // The cache may be behind: the claim must be gone for the server too.
        if let Some(reference) = &reference {
            let api = kube::Api::<PersistentVolumeClaim>::namespaced(
                client.clone(),
                reference.namespace.as_deref().unwrap_or_default(),
            );
            let live = api.get_opt(reference.name.as_deref().unwrap_or_default()).await?;
            if live.is_some_and(|c| c.metadata.uid == reference.uid) {
                return Ok(Outcome::Done);
            }
        }
        let in_use = caches
            .pods
            .all()
            .iter()
            .any(|p| !pods::is_finished(p) && pods::node(p).is_some() && bind::uses(p, reference.as_ref()));
        if in_use {
            return Ok(Outcome::Again(Duration::from_secs(1)));
        }
        folder::remove(&context.config.local_path_root, &name)
            .await
            .map_err(|source| disk("cannot remove the volume folder", &context, &name, source))?;
        if !deleting {
            write::delete::<PersistentVolume>(client, "", &name, cache::uid(&*volume)).await?;
            return Ok(Outcome::Done);
        }
    }
    if deleting {
        // While a claim has it, it only waits.
        let mut finalizers = volume.metadata.finalizers.clone().unwrap_or_default();
        if phase != "Bound" && finalizers.iter().any(|f| f == VOLUME_PROTECTION) {
            finalizers.retain(|f| f != VOLUME_PROTECTION);
            write::patch(client, &caches.volumes, &*volume, json!({ "metadata": { "finalizers": finalizers } }))
                .await?;
        }
        return Ok(Outcome::Done);
    }
    let old = volume.status.clone().unwrap_or_default();
    let mut status = old.clone();
    if status.phase.as_deref() != Some(phase) {
        status.phase = Some(phase.into());
        status.last_phase_transition_time =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now()));
    }
    write::status_of(client, &caches.volumes, &*volume, &old, &status).await?;
    Ok(Outcome::Done)
}

#[cfg(test)]
pub fn is_bound_claim(claim: &PersistentVolumeClaim) -> bool {
    bind::is_bound(claim)
}
