//! Snapshots of local volumes. Invariants: a content's name follows from its snapshot's uid, and the folder of what is taken
//! from the content's name, so that nothing is taken twice; a content is ready when its folder has its name, which it gets
//! when all of it is on the disk; who is bound to whom is looked at from both sides. Snapshots of other drivers are left
//! to their own controllers, and so are the definitions where somebody else installed them.
//! Upstream: <https://kubernetes.io/docs/concepts/storage/volume-snapshots/>, its `snapshot-controller` and `csi-snapshotter`
//! (<https://github.com/kubernetes-csi/external-snapshotter>) in one.

mod content;
mod install;

use crate::{
    LOCAL_PATH_PROVISIONER,
    cache::{self, Cache, Key},
    context::Context,
    queue::{Outcome, Queue},
    volumes::{self, Origin},
    write::{self, WriteError},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ObjectReference, PersistentVolumeClaim},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};
use kfbox_api::snapshots::{
    ContentSource, SnapshotError, VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent,
    VolumeSnapshotContentSpec, VolumeSnapshotStatus, annotation, finalizer,
};
use kube::{Api, api::ObjectMeta, runtime::watcher};
use serde_json::json;
use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

const COMPONENT: &str = "snapshot-controller";
/// Each may be busy with a large volume.
const WORKERS: usize = 4;
/// Between looks at what another change does not bring back.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Default)]
pub struct Caches {
    pub snapshots: Arc<Cache<VolumeSnapshot>>,
    pub contents: Arc<Cache<VolumeSnapshotContent>>,
    pub classes: Arc<Cache<VolumeSnapshotClass>>,
}

impl Caches {
    async fn synced(&self) {
        futures::join!(self.snapshots.synced(), self.contents.synced(), self.classes.synced());
    }

    fn is_synced(&self) -> bool {
        self.snapshots.is_synced() && self.contents.is_synced() && self.classes.is_synced()
    }
}

pub async fn run(context: Arc<Context>) -> Result<(), Infallible> {
    let (snapshots, contents) = (Queue::<Key>::new(), Queue::<String>::new());
    connect(&context, &snapshots, &contents);
    let stop = context.shutdown.clone();
    tokio::select! {
        () = install::run(&context.client) => {}
        () = stop.cancelled() => return Ok(()),
    }
    let (caches, client) = (&context.snapshots, &context.client);
    let watch = watcher::Config::default;
    let watches = async {
        futures::join!(
            caches.snapshots.clone().run(Api::all(client.clone()), watch(), stop.clone()),
            caches.contents.clone().run(Api::all(client.clone()), watch(), stop.clone()),
            caches.classes.clone().run(Api::all(client.clone()), watch(), stop.clone()),
        )
    };
    let work = async {
        context.caches.synced().await;
        caches.synced().await;
        volumes::swept(&context).await;
        let (a, b) = (context.clone(), context.clone());
        futures::join!(
            snapshots.run("volumesnapshot", WORKERS, stop.clone(), move |key| snapshot(a.clone(), key)),
            contents
                .run("volumesnapshotcontent", WORKERS, stop.clone(), move |name| content::reconcile(b.clone(), name)),
        )
    };
    futures::join!(watches, async {
        tokio::select! {
            _ = work => {}
            () = stop.cancelled() => {}
        }
    });
    Ok(())
}

/// Who is looked at again when something changes.
fn connect(context: &Arc<Context>, snapshots: &Arc<Queue<Key>>, contents: &Arc<Queue<String>>) {
    let (s, c) = (snapshots.clone(), contents.clone());
    context.snapshots.snapshots.on_change(move |change| {
        for snapshot in change.both() {
            s.add(cache::key(&**snapshot));
            c.add(content_name(snapshot));
        }
    });
    let (s, c) = (snapshots.clone(), contents.clone());
    context.snapshots.contents.on_change(move |change| {
        for content in change.both() {
            c.add(cache::key(&**content).1);
            let of = &content.spec.volume_snapshot_ref;
            s.add((of.namespace.clone().unwrap_or_default(), of.name.clone().unwrap_or_default()));
        }
    });
    let (s, all) = (snapshots.clone(), context.snapshots.snapshots.clone());
    context.snapshots.classes.on_change(move |_| {
        all.all().iter().filter(|s| !is_ready(s)).for_each(|snapshot| s.add(cache::key(&**snapshot)));
    });
    // A claim that is bound, or gone, or no longer made from the snapshot.
    let (s, all) = (snapshots.clone(), context.snapshots.snapshots.clone());
    context.caches.claims.on_change(move |change| {
        for claim in change.both() {
            let (namespace, name) = cache::key(&**claim);
            let of = |snapshot: &VolumeSnapshot| {
                snapshot.spec.source.persistent_volume_claim_name.as_deref() == Some(&*name)
            };
            all.in_namespace(&namespace).iter().filter(|s| of(s)).for_each(|snapshot| s.add(cache::key(&**snapshot)));
            if let Some(source) = snapshot_source(claim) {
                s.add((namespace, source));
            }
        }
    });
}

/// The content that a snapshot is, or will be, bound to.
fn content_name(snapshot: &VolumeSnapshot) -> String {
    let given = snapshot.spec.source.volume_snapshot_content_name.clone();
    given.unwrap_or_else(|| format!("snapcontent-{}", cache::uid(snapshot)))
}

fn is_ready(snapshot: &VolumeSnapshot) -> bool {
    snapshot.status.as_ref().and_then(|s| s.ready_to_use) == Some(true)
}

/// Whether each names the other.
fn are_bound(snapshot: &VolumeSnapshot, content: &VolumeSnapshotContent) -> bool {
    let of = &content.spec.volume_snapshot_ref;
    of.namespace == snapshot.metadata.namespace
        && of.name == snapshot.metadata.name
        && of.uid == snapshot.metadata.uid
        && content.metadata.name.as_deref() == Some(&*content_name(snapshot))
}

/// The snapshot of its namespace that a claim is made from.
fn snapshot_source(claim: &PersistentVolumeClaim) -> Option<String> {
    match volumes::source(claim) {
        Some((Some(group), kind, name)) if group == kfbox_api::snapshots::GROUP && kind == "VolumeSnapshot" => {
            Some(name)
        }
        _ => None,
    }
}

/// What a claim's volume is to be made from; or why that cannot be.
pub fn origin(context: &Context, namespace: &str, name: &str, wanted: i64) -> Result<Origin, String> {
    let caches = &context.snapshots;
    if !caches.is_synced() {
        return Err("snapshots are not known yet".into());
    }
    let snapshot = caches.snapshots.get(namespace, name).ok_or_else(|| {
        format!(
            "error getting snapshot {name} from api server: volumesnapshots.snapshot.storage.k8s.io {name:?} not found"
        )
    })?;
    let status = snapshot.status.clone().unwrap_or_default();
    let bound = status.bound_volume_snapshot_content_name.ok_or_else(|| format!("snapshot {name} not bound"))?;
    let content = caches.contents.get("", &bound).filter(|content| are_bound(&snapshot, content));
    let content = content.ok_or_else(|| format!("snapshotcontent {bound:?} is not bound to snapshot {name}"))?;
    if content.spec.driver != LOCAL_PATH_PROVISIONER {
        return Err(format!(
            "snapshot {name} is of the driver {}, not of {LOCAL_PATH_PROVISIONER}",
            content.spec.driver
        ));
    }
    if snapshot.metadata.deletion_timestamp.is_some() {
        return Err(format!("snapshot {name} is currently being deleted"));
    }
    let now = content.status.clone().unwrap_or_default();
    let handle = now.snapshot_handle.filter(|_| status.ready_to_use == Some(true) && now.ready_to_use == Some(true));
    let handle = handle.ok_or_else(|| format!("snapshot {name} is not Ready"))?;
    match now.restore_size {
        Some(size) if wanted < size => {
            Err(format!("requested volume size {wanted} is less than the size {size} for the source snapshot {name}"))
        }
        _ => Ok(Origin::Snapshot(handle)),
    }
}

async fn snapshot(context: Arc<Context>, key: Key) -> Result<Outcome, WriteError> {
    let caches = &context.snapshots;
    let Some(snapshot) = caches.snapshots.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
    if snapshot.metadata.deletion_timestamp.is_some() {
        return leave(&context, &snapshot).await;
    }
    let content = caches.contents.get("", &content_name(&snapshot));
    match (content, &snapshot.spec.source.volume_snapshot_content_name) {
        (Some(content), _) if content.spec.driver != LOCAL_PATH_PROVISIONER => Ok(Outcome::Done),
        (Some(content), given) => {
            if given.is_some() && !claimed(&context, &snapshot, &content).await? {
                return Ok(Outcome::Done);
            }
            follow(&context, &snapshot, &content).await
        }
        (None, Some(name)) => {
            // Whose it would be is not known, so others may have their say.
            let message =
                format!("VolumeSnapshotContent {name} is missing; next: create it, or name a PersistentVolumeClaim");
            fail(&context, &snapshot, "SnapshotContentMissing", message).await
        }
        (None, None) => begin(&context, &snapshot).await,
    }
}

/// Makes an existing content this snapshot's, if it was meant for it.
async fn claimed(
    context: &Context,
    snapshot: &VolumeSnapshot,
    content: &VolumeSnapshotContent,
) -> Result<bool, WriteError> {
    if are_bound(snapshot, content) {
        return Ok(true);
    }
    let of = &content.spec.volume_snapshot_ref;
    let meant = of.namespace == snapshot.metadata.namespace && of.name == snapshot.metadata.name;
    let name = content.metadata.name.as_deref().unwrap_or_default();
    if !meant || of.uid.as_deref().is_some_and(|uid| !uid.is_empty()) || content.spec.source.snapshot_handle.is_none() {
        let message = format!("VolumeSnapshotContent [{name}] is bound to a different snapshot");
        fail(context, snapshot, "SnapshotContentMisbound", message).await?;
        return Ok(false);
    }
    let body = json!({ "spec": { "volumeSnapshotRef": reference(snapshot) } });
    write::patch(&context.client, &context.snapshots.contents, content, body).await?;
    Ok(false)
}

fn reference(snapshot: &VolumeSnapshot) -> ObjectReference {
    ObjectReference {
        api_version: Some(snapshot.api_version.clone()).filter(|v| !v.is_empty()),
        kind: Some("VolumeSnapshot".into()),
        namespace: snapshot.metadata.namespace.clone(),
        name: snapshot.metadata.name.clone(),
        uid: snapshot.metadata.uid.clone(),
        resource_version: snapshot.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// The class a snapshot names, or the default one; None where it must be written down first.
fn class(context: &Context, snapshot: &VolumeSnapshot) -> Result<(Arc<VolumeSnapshotClass>, bool), String> {
    let classes = &context.snapshots.classes;
    if let Some(name) = &snapshot.spec.volume_snapshot_class_name {
        let found = classes.get("", name);
        return found.map(|class| (class, true)).ok_or_else(|| {
            format!("failed to get input parameters to create snapshot {}: \"volumesnapshotclass.snapshot.storage.k8s.io {name:?} not found\"", snapshot.metadata.name.as_deref().unwrap_or_default())
        });
    }
    let is_default = |class: &Arc<VolumeSnapshotClass>| {
        let value = class.metadata.annotations.as_ref().and_then(|a| a.get(annotation::DEFAULT_CLASS));
        class.driver == LOCAL_PATH_PROVISIONER && value.is_some_and(|v| v == "true")
    };
    let mut all: Vec<_> = classes.all().into_iter().filter(is_default).collect();
    match (all.pop(), all.len()) {
        (Some(class), 0) => Ok((class, false)),
        (Some(_), more) => Err(format!("{} default snapshot classes were found", more + 1)),
        (None, _) => Err("cannot find default snapshot class".into()),
    }
}

async fn begin(context: &Context, snapshot: &VolumeSnapshot) -> Result<Outcome, WriteError> {
    let (client, caches) = (&context.client, &context.snapshots);
    let (namespace, _) = cache::key(snapshot);
    let claim_name = snapshot.spec.source.persistent_volume_claim_name.clone().unwrap_or_default();
    let claim = context.caches.claims.get(&namespace, &claim_name);
    let class = match class(context, snapshot) {
        Ok((class, true)) => class,
        // Whose volume it is decides whose default counts.
        Ok((class, false)) if claim.as_deref().is_some_and(|claim| volumes::ours(context, claim).is_some()) => {
            let body = json!({ "spec": { "volumeSnapshotClassName": class.metadata.name } });
            write::patch(client, &caches.snapshots, snapshot, body).await?;
            return Ok(Outcome::Done);
        }
        Ok((class, false)) => class,
        Err(why) => {
            let reason = match snapshot.spec.volume_snapshot_class_name {
                Some(_) => "GetSnapshotClassFailed",
                None => "SetDefaultSnapshotClassFailed",
            };
            return fail(context, snapshot, reason, format!("Failed to get a snapshot class with error {why}")).await;
        }
    };
    if class.driver != LOCAL_PATH_PROVISIONER {
        return Ok(Outcome::Done);
    }
    let volume = match &claim {
        None => Err(format!("cannot get claim from snapshot: persistentvolumeclaim {claim_name:?} not found")),
        Some(claim) if !volumes::is_bound(claim) => {
            Err(format!("the PVC {claim_name} is not yet bound to a PV, will not attempt to take a snapshot"))
        }
        Some(claim) => volumes::ours(context, claim).ok_or_else(|| {
            format!("the volume of the PVC {claim_name} was not made by {LOCAL_PATH_PROVISIONER}, which alone can snapshot it")
        }),
    };
    let (claim, volume) = match (claim, volume) {
        (Some(claim), Ok(volume)) => (claim, volume),
        (_, Err(why)) => {
            let text = format!("Failed to create snapshot content with error {why}");
            return fail(context, snapshot, "SnapshotContentCreationFailed", text).await;
        }
        (None, Ok(_)) => return Ok(Outcome::Done),
    };
    hold(context, snapshot, &[finalizer::AS_SOURCE, finalizer::BOUND]).await?;
    let finalizers = with(&claim.metadata, &[finalizer::CLAIM]);
    if let Some(finalizers) = finalizers {
        write::patch(client, &context.caches.claims, &*claim, json!({ "metadata": { "finalizers": finalizers } }))
            .await?;
    }
    let mut content = VolumeSnapshotContent::new(ObjectMeta {
        name: Some(content_name(snapshot)),
        finalizers: Some(vec![finalizer::CONTENT.into()]),
        ..ObjectMeta::default()
    });
    content.spec = VolumeSnapshotContentSpec {
        volume_snapshot_ref: reference(snapshot),
        deletion_policy: class.deletion_policy.clone(),
        driver: LOCAL_PATH_PROVISIONER.into(),
        volume_snapshot_class_name: class.metadata.name.clone(),
        source: ContentSource { volume_handle: volume.metadata.name.clone(), snapshot_handle: None },
        source_volume_mode: volume.spec.as_ref().and_then(|s| s.volume_mode.clone()),
    };
    write::create(client, &caches.contents, &content, None).await?;
    let name = format!("{namespace}/{}", snapshot.metadata.name.as_deref().unwrap_or_default());
    let message = format!("Waiting for a snapshot {name} to be created by the CSI driver.");
    context.events.normal(snapshot, COMPONENT, "CreatingSnapshot", message);
    Ok(Outcome::Done)
}

/// Tells in the snapshot what its content says.
async fn follow(
    context: &Context,
    snapshot: &VolumeSnapshot,
    content: &VolumeSnapshotContent,
) -> Result<Outcome, WriteError> {
    hold(context, snapshot, &[finalizer::AS_SOURCE, finalizer::BOUND]).await?;
    let now = content.status.clone().unwrap_or_default();
    let old = snapshot.status.clone().unwrap_or_default();
    let status = VolumeSnapshotStatus {
        bound_volume_snapshot_content_name: content.metadata.name.clone(),
        creation_time: now.creation_time.and_then(|n| Timestamp::from_nanosecond(n.into()).ok()).map(whole).map(Time),
        ready_to_use: Some(now.ready_to_use == Some(true)),
        restore_size: now.restore_size.map(quantity),
        error: now.error,
    };
    // The cache may know a later one than was read.
    let latest = cache::key(snapshot);
    let Some(snapshot) = context.snapshots.snapshots.get(&latest.0, &latest.1) else { return Ok(Outcome::Done) };
    write::status_of(&context.client, &context.snapshots.snapshots, &*snapshot, &old, &status).await?;
    if status.ready_to_use == Some(true) && old.ready_to_use != Some(true) {
        let name = format!("{}/{}", latest.0, latest.1);
        let told = |reason, text: &str| {
            context.events.normal(&*snapshot, COMPONENT, reason, format!("Snapshot {name} {text}"))
        };
        told("SnapshotCreated", "was successfully created by the CSI driver.");
        told("SnapshotReady", "is ready to use.");
    }
    if status.ready_to_use == Some(true) {
        release(context, &snapshot).await?;
    }
    Ok(Outcome::Done)
}

/// Times on the wire have no fractions of a second.
fn whole(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Bytes as people write them, where that is exact.
fn quantity(bytes: i64) -> Quantity {
    let units = ["Ei", "Pi", "Ti", "Gi", "Mi", "Ki"].iter().zip([60, 50, 40, 30, 20, 10]);
    let exact = units.into_iter().find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    Quantity(exact.map_or(bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift)))
}

/// Says why there is no snapshot, in it and as an event. It is looked at again when something changes, and after a while.
async fn fail(
    context: &Context,
    snapshot: &VolumeSnapshot,
    reason: &'static str,
    message: String,
) -> Result<Outcome, WriteError> {
    let old = snapshot.status.clone().unwrap_or_default();
    if old.error.as_ref().and_then(|e| e.message.as_deref()) != Some(&message) {
        let error = SnapshotError { message: Some(message.clone()), time: Some(Time(whole(Timestamp::now()))) };
        let status = VolumeSnapshotStatus { error: Some(error), ready_to_use: Some(false), ..old.clone() };
        write::status_of(&context.client, &context.snapshots.snapshots, snapshot, &old, &status).await?;
    }
    context.events.warning(snapshot, COMPONENT, reason, message);
    Ok(Outcome::Again(PATIENCE))
}

/// The object's finalizers with these, if any is missing.
fn with(metadata: &ObjectMeta, wanted: &[&str]) -> Option<Vec<String>> {
    let has: BTreeSet<&str> = metadata.finalizers.iter().flatten().map(String::as_str).collect();
    let missing: Vec<&&str> = wanted.iter().filter(|f| !has.contains(**f)).collect();
    let all = metadata.finalizers.iter().flatten().cloned();
    (!missing.is_empty()).then(|| all.chain(missing.into_iter().map(|f| (*f).to_owned())).collect())
}

/// The object's finalizers without these, if any is there.
fn without(metadata: &ObjectMeta, unwanted: &[&str]) -> Option<Vec<String>> {
    let left: Vec<String> =
        metadata.finalizers.iter().flatten().filter(|f| !unwanted.contains(&f.as_str())).cloned().collect();
    (left.len() < metadata.finalizers.as_ref().map_or(0, Vec::len)).then_some(left)
}

async fn hold(context: &Context, snapshot: &VolumeSnapshot, finalizers: &[&str]) -> Result<(), WriteError> {
    let Some(finalizers) = with(&snapshot.metadata, finalizers) else { return Ok(()) };
    let body = json!({ "metadata": { "finalizers": finalizers } });
    write::patch(&context.client, &context.snapshots.snapshots, snapshot, body).await
}

/// Lets go of the claim, unless another snapshot is being taken of it.
async fn release(context: &Context, snapshot: &VolumeSnapshot) -> Result<(), WriteError> {
    let (namespace, _) = cache::key(snapshot);
    let Some(name) = &snapshot.spec.source.persistent_volume_claim_name else { return Ok(()) };
    let Some(claim) = context.caches.claims.get(&namespace, name) else { return Ok(()) };
    let others = context.snapshots.snapshots.in_namespace(&namespace);
    let held = others.iter().any(|other| {
        other.spec.source.persistent_volume_claim_name.as_ref() == Some(name)
            && cache::uid(&**other) != cache::uid(snapshot)
            && other.metadata.deletion_timestamp.is_none()
            && !is_ready(other)
    });
    let Some(left) = without(&claim.metadata, &[finalizer::CLAIM]).filter(|_| !held) else { return Ok(()) };
    write::patch(&context.client, &context.caches.claims, &*claim, json!({ "metadata": { "finalizers": left } })).await
}

/// Deletes what belongs to a snapshot that goes, then lets it go.
async fn leave(context: &Context, snapshot: &VolumeSnapshot) -> Result<Outcome, WriteError> {
    let Some(left) = without(&snapshot.metadata, &[finalizer::AS_SOURCE, finalizer::BOUND]) else {
        return Ok(Outcome::Done);
    };
    let (namespace, name) = cache::key(snapshot);
    let waits = |claim: &Arc<PersistentVolumeClaim>| {
        !volumes::is_bound(claim)
            && claim.metadata.deletion_timestamp.is_none()
            && snapshot_source(claim).as_ref() == Some(&name)
    };
    if is_ready(snapshot) && context.caches.claims.in_namespace(&namespace).iter().any(waits) {
        let message = "Snapshot is being used to restore a PVC";
        context.events.warning(snapshot, COMPONENT, "SnapshotDeletePending", message);
        return Ok(Outcome::Done);
    }
    let content = context.snapshots.contents.get("", &content_name(snapshot));
    if let Some(content) =
        content.filter(|content| are_bound(snapshot, content) && content.spec.deletion_policy == "Delete")
    {
        if content.metadata.deletion_timestamp.is_none() {
            let (_, name) = cache::key(&*content);
            write::delete::<VolumeSnapshotContent>(&context.client, "", &name, cache::uid(&*content)).await?;
        }
        // Its end brings this back.
        return Ok(Outcome::Done);
    }
    release(context, snapshot).await?;
    let body = json!({ "metadata": { "finalizers": left } });
    write::patch(&context.client, &context.snapshots.snapshots, snapshot, body).await?;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests;
