//! Shares of NFS servers. This kernel has no NFS client, so `mount.nfs` is a script that says what it was asked, and mounts a
//! tmpfs, refuses, or hangs: what is shown is all around the mount, not the mount.

use crate::world::{PATIENCE, World, eventually, waits_for};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

const SCRIPT: &str = r#"#!/bin/sh
echo "$*" >>"${0%/*}/asked"
case "$1" in
good:*) exec mount -t tmpfs -o mode=0777 nfs "$2" ;;
hung:*) exec sleep 1000 ;;
*) echo "mount.nfs: access denied by server while mounting $1" >&2; exit 32 ;;
esac
"#;

struct Fake(tempfile::TempDir);

impl Fake {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("mount.nfs");
        fs::write(&program, SCRIPT).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    async fn world(&self) -> World {
        World::start_with(|config| {
            config.nfs.programs = vec![self.0.path().join("mount.nfs")];
            config.nfs.limit = Duration::from_secs(1);
        })
        .await
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.0.path().join("asked")).unwrap_or_default()
    }
}

fn with(volume: Value, read_only: bool) -> impl FnOnce(&mut Value) {
    move |pod| {
        pod["spec"]["volumes"] = json!([volume]);
        let mount = json!({ "name": "v", "mountPath": "/v", "readOnly": read_only });
        pod["spec"]["containers"][0]["volumeMounts"] = json!([mount]);
    }
}

fn share(server: &str) -> Value {
    json!({ "name": "v", "nfs": { "server": server, "path": "/export" } })
}

fn mounts_below(folder: &Path) -> usize {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().filter(|line| line.contains(folder.to_str().unwrap()) && line.contains("- tmpfs nfs ")).count()
}

impl World {
    async fn failed_mount(&self, pod: &str, text: &str) {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let mut stream = Box::pin(watcher(events, watcher::Config::default()).applied_objects());
        let found = async {
            while let Some(event) = stream.try_next().await.unwrap() {
                let message = event.message.as_deref().unwrap_or_default();
                if event.involved_object.name.as_deref() == Some(pod)
                    && event.reason.as_deref() == Some("FailedMount")
                    && message.contains(text)
                {
                    assert!(message.starts_with("MountVolume.SetUp failed for volume \"v\" : "), "{message}");
                    assert!(message.contains("next: "), "{message}");
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect(text);
        // The status may come after the event.
        self.until(pod, "it waits", |pod| waits_for(pod, "ContainerCreating")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_is_mounted_once_for_its_pod_and_goes_with_it() {
    let fake = Fake::new();
    let mut world = fake.world().await;
    let idle = "echo mine > /v/file; cat /v/file; while true; do sleep 0.05; done";
    world.run("own", idle, with(share("good"), false)).await;
    world.until_phase("own", "Running").await;
    assert_eq!(world.first_line("own", "main").await, "mine");
    let asked = fake.asked();
    assert!(asked.starts_with("good:/export ") && asked.trim_end().ends_with("/volumes/v -o retry=0"), "{asked}");
    assert_eq!(mounts_below(world.dir.path()), 1);

    // Who comes after a crash finds it mounted.
    world.crash().await;
    world.restart().await;
    world.until_phase("own", "Running").await;

    // By a claim: the volume's options, and for reading only.
    let volumes: Api<PersistentVolume> = Api::all(world.client.clone());
    let volume = json!({
        "metadata": { "name": "shared" },
        "spec": {
            "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteMany"], "mountOptions": ["nfsvers=4.2", "soft"],
            "nfs": { "server": "good", "path": "/data sets", "readOnly": true },
        },
    });
    volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(world.client.clone(), "default");
    let claim = json!({
        "metadata": { "name": "data" },
        "spec": {
            "accessModes": ["ReadWriteMany"], "volumeName": "shared", "storageClassName": "",
            "resources": { "requests": { "storage": "1Gi" } },
        },
    });
    claims.create(&PostParams::default(), &serde_json::from_value(claim).unwrap()).await.unwrap();
    let bound = Patch::Merge(json!({ "status": { "phase": "Bound" } }));
    claims.patch_status("data", &PatchParams::default(), &bound).await.unwrap();
    let claimed = json!({ "name": "v", "persistentVolumeClaim": { "claimName": "data" } });
    world.run("claimed", "touch /v/x 2>/dev/null || echo refused", with(claimed, false)).await;
    world.until_phase("claimed", "Succeeded").await;
    assert_eq!(world.logs("claimed", "main").await, "refused\n");
    let asked = fake.asked();
    let last = asked.lines().last().unwrap();
    assert!(last.starts_with("good:/data sets ") && last.ends_with(" -o nfsvers=4.2,soft,ro,retry=0"), "{asked}");
    assert_eq!(asked.lines().count(), 2, "{asked}");

    world.delete("claimed").await;
    world.delete("own").await;
    eventually("unmounted", || mounts_below(world.dir.path()) == 0).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_answer_or_refuses_holds_up_its_own_pod_alone() {
    let fake = Fake::new();
    let world = fake.world().await;
    world.run("hung", "true", with(share("hung"), false)).await;
    world.run("refused", "true", with(share("elsewhere"), false)).await;
    world.run("hostile", "true", with(share("-osuid"), false)).await;
    world.run("other", "true", |_| {}).await;
    world.until_phase("other", "Succeeded").await;
    world.failed_mount("hung", "mounting hung:/export did not come to an end within 1 seconds").await;
    world
        .failed_mount("refused", "access denied by server while mounting elsewhere:/export; next: let this machine's")
        .await;
    let hostile = async {
        let events: Api<Event> = Api::namespaced(world.client.clone(), "default");
        let mut stream = Box::pin(watcher(events, watcher::Config::default()).applied_objects());
        while let Some(event) = stream.try_next().await.unwrap() {
            if event
                .message
                .as_deref()
                .is_some_and(|m| m.contains("\"-osuid\" is neither a host's name nor an address"))
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, hostile).await.unwrap();
    assert!(!fake.asked().contains("-osuid"));
    world.delete("refused").await;
    world.delete("hung").await;
    // Reset in the middle of another try leaves nothing.
    world.run("again", "true", with(share("hung"), false)).await;
    let before = fake.asked().lines().filter(|line| line.starts_with("hung:")).count();
    eventually("another try", || fake.asked().lines().filter(|line| line.starts_with("hung:")).count() > before).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_without_the_clients_programs_says_what_to_install() {
    let world = World::start_with(|config| config.nfs.programs = vec!["/nonexistent/mount.nfs".into()]).await;
    world.run("bare", "true", with(share("good"), false)).await;
    world.failed_mount("bare", "apt-get install nfs-common").await;
    world.stop().await;
}
