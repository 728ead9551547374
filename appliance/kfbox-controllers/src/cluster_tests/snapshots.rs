//! Snapshots and clones that cannot be: on a file system that does not clone. Those that can are in the integration tests,
//! where a box has such a disk.

use super::*;
use kfbox_api::snapshots::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent, finalizer};

struct InMemory(std::path::PathBuf);

impl InMemory {
    fn mount(path: std::path::PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        nix::mount::mount(Some("tmpfs"), &path, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
        Self(path)
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

fn claim(name: &str, size: &str, source: Value) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "at-once", "dataSource": source,
            "resources": { "requests": { "storage": size } },
        },
    })
}

fn snapshot(name: &str, source: Value) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "metadata": { "name": name }, "spec": { "source": source },
    })
}

impl World {
    async fn told(&self, about: &str, reason: &str, text: &str) {
        until(&self.api::<Event>(), text, |all| {
            all.iter().any(|e| {
                e.involved_object.name.as_deref() == Some(about)
                    && e.reason.as_deref() == Some(reason)
                    && e.message.as_deref().is_some_and(|m| m.contains(text))
            })
        })
        .await;
    }

    async fn refused(&self, name: &str, text: &str) {
        let wants = |s: &VolumeSnapshot| {
            let status = s.status.clone().unwrap_or_default();
            let message = status.error.and_then(|e| e.message).unwrap_or_default();
            s.name_any() == name && message.contains(text) && status.ready_to_use == Some(false)
        };
        until(&self.api::<VolumeSnapshot>(), text, |all| all.iter().any(wants)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_snapshotted_or_cloned_says_why_and_leaves_nothing() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let memory = InMemory::mount(volumes(dir.path()));
    let world = World::open(dir, Metrics::default()).await;
    let class = json!({
        "metadata": { "name": "at-once" }, "provisioner": crate::LOCAL_PATH_PROVISIONER, "volumeBindingMode": "Immediate",
        "reclaimPolicy": "Delete",
    });
    let classes = Api::<k8s_openapi::api::storage::v1::StorageClass>::all(world.client.clone());
    classes.create(&PostParams::default(), &object(class)).await.unwrap();
    let claims = world.api::<PersistentVolumeClaim>();
    world.create::<PersistentVolumeClaim>(claim("data", "2Gi", json!(null))).await;
    until(&claims, "bound", |all| all.iter().all(crate::volumes::is_bound)).await;
    let served = Api::<VolumeSnapshotClass>::all(world.client.clone());
    tokio::time::timeout(Duration::from_secs(40), async {
        while served.get_opt("standard").await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the kinds are served");

    let of = |claim: &str| json!({ "persistentVolumeClaimName": claim });
    world.create::<VolumeSnapshot>(snapshot("plain", of("data"))).await;
    world.refused("plain", "(tmpfs) cannot clone files").await;
    world.told("plain", "SnapshotCreationFailed", "btrfs, or on XFS").await;
    world.create::<VolumeSnapshot>(snapshot("nothing", of("missing"))).await;
    world.refused("nothing", "persistentvolumeclaim \"missing\" not found").await;
    let given = snapshot("foreign", json!({ "volumeSnapshotContentName": "no-such" }));
    world.create::<VolumeSnapshot>(given).await;
    world.refused("foreign", "VolumeSnapshotContent no-such is missing").await;
    let both = json!({ "persistentVolumeClaimName": "data", "volumeSnapshotContentName": "x" });
    let refused = world.api::<VolumeSnapshot>().create(&PostParams::default(), &object(snapshot("both", both))).await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 422));

    // Somebody else's content is not to be had by its name.
    let theirs = until(&Api::<VolumeSnapshotContent>::all(world.client.clone()), "one", |all| all.len() == 1).await;
    let name = theirs[0].name_any();
    world.create::<VolumeSnapshot>(snapshot("thief", json!({ "volumeSnapshotContentName": name }))).await;
    world.refused("thief", "is bound to a different snapshot").await;

    let (pvc, snap) = (
        |name: &str| json!({ "kind": "PersistentVolumeClaim", "name": name }),
        |name: &str| json!({ "apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name }),
    );
    for (name, size, source, text) in [
        ("no-claim", "2Gi", pvc("missing"), "persistentvolumeclaim \"missing\" not found"),
        ("small", "1Gi", pvc("data"), "requested 1073741824 but source is 2147483648"),
        ("no-snapshot", "2Gi", snap("missing"), "volumesnapshots.snapshot.storage.k8s.io \"missing\" not found"),
        ("not-ready", "2Gi", snap("plain"), "snapshot plain is not Ready"),
        ("no-clone", "2Gi", pvc("data"), "cannot clone files"),
    ] {
        world.create::<PersistentVolumeClaim>(claim(name, size, source)).await;
        world.told(name, "ProvisioningFailed", text).await;
    }
    let other = json!({ "apiGroup": "example.org", "kind": "Backup", "name": "b" });
    world.create::<PersistentVolumeClaim>(claim("other", "2Gi", other)).await;
    world.told("other", "UnrecognizedDataSourceKind", "any registered VolumePopulator").await;
    let listed = Api::<PersistentVolume>::all(world.client.clone()).list(&ListParams::default()).await.unwrap();
    assert_eq!(listed.items.len(), 1, "no volume was made");

    // The claim is held while it is to be snapshotted, and goes when nobody wants that any more.
    let held = claims.get("data").await.unwrap();
    assert!(held.finalizers().iter().any(|f| f == finalizer::CLAIM));
    claims.delete("data", &DeleteParams::default()).await.unwrap();
    world.api::<VolumeSnapshot>().delete("plain", &DeleteParams::default()).await.unwrap();
    until(&claims, "gone", |all| all.iter().all(|c| c.name_any() != "data")).await;
    until(&world.api::<VolumeSnapshot>(), "gone", |all| all.iter().all(|s| s.name_any() != "plain")).await;
    until(&Api::<VolumeSnapshotContent>::all(world.client.clone()), "gone", |all| all.is_empty()).await;
    until(&Api::<PersistentVolume>::all(world.client.clone()), "gone", |all| all.is_empty()).await;
    let left: Vec<_> = std::fs::read_dir(&memory.0).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".snapshots"]);
    assert_eq!(std::fs::read_dir(memory.0.join(".snapshots")).unwrap().count(), 0);
    world.tasks.stop();
    world.tasks.drain(Duration::from_secs(20)).await;
}
