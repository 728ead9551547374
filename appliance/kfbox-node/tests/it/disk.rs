//! A disk that fills up: a small file system of the test's own below the node's data. Who goes, and that
//! nobody else notices.

use crate::{
    lab::Lab,
    world::{PATIENCE, World, eventually, main_status, waits_for},
};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Event, Node};
use kfbox_node::{EvictionConfig, ImageGcConfig};
use kube::{
    Api,
    runtime::{WatchStreamExt, wait::await_condition, watcher},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, path::Path, time::Duration};

impl World {
    async fn until_disk_pressure(&self, wanted: bool) -> Node {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let holds = |node: Option<&Node>| {
            let status = node.and_then(|node| node.status.as_ref());
            let conditions = status.and_then(|s| s.conditions.as_ref());
            let found = conditions.and_then(|all| all.iter().find(|c| c.type_ == "DiskPressure"));
            let taints = node.and_then(|node| node.spec.as_ref()?.taints.as_ref());
            let tainted = taints.is_some_and(|all| all.iter().any(|t| t.key.ends_with("disk-pressure")));
            found.is_some_and(|c| (c.status == "True") == wanted) && tainted == wanted
        };
        let waited = await_condition(nodes, &self.config.node_name, holds);
        tokio::time::timeout(crate::world::PATIENCE, waited).await.expect("the condition").unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pod_that_fills_the_disk_goes_and_the_disk_is_free_again() {
    let world = World::start_with(|config| {
        World::small_disk(config, 96);
        config.eviction = EvictionConfig { node_fs_percent: 30, transition: Duration::from_secs(1), ..World::calm() };
    })
    .await;
    let idle = "while true; do sleep 0.05; done";
    world.run("modest", idle, |_| {}).await;
    world.until_phase("modest", "Running").await;
    world
        .run("greedy", &format!("dd if=/dev/zero of=/big bs=1M count=72 2>/dev/null; {idle}"), |pod| {
            pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
        })
        .await;
    let pod = world.until_phase("greedy", "Failed").await;
    let status = pod.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    let message = status.message.unwrap();
    assert!(message.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: "), "{message}");
    assert!(message.contains("Container main was using ") && message.contains("has larger consumption"), "{message}");
    let told = status.conditions.unwrap().into_iter().find(|c| c.type_ == "DisruptionTarget").unwrap();
    assert_eq!((told.status.as_str(), told.reason.as_deref()), ("True", Some("TerminationByKubelet")));

    // What it wrote is gone with it, and nobody else went.
    world.until_disk_pressure(false).await;
    assert_eq!(main_status(&world.until_phase("modest", "Running").await).restart_count, 0);
    world.run("later", "true", |_| {}).await;
    world.until_phase("later", "Succeeded").await;

    // A disk that the pods did not fill: they go, the least modest first, and new ones are refused.
    let filler = world.config.data_dir.join("filler");
    std::fs::write(&filler, vec![1; 80 << 20]).unwrap();
    let node = world.until_disk_pressure(true).await;
    assert!(node.spec.unwrap().taints.into_iter().flatten().all(|t| t.effect == "NoSchedule"));
    world.until("modest", "evicted", |pod| pod.status.as_ref().unwrap().reason.as_deref() == Some("Evicted")).await;
    world.run("refused", "true", |_| {}).await;
    let pod = world.until_phase("refused", "Failed").await.status.unwrap();
    assert_eq!(pod.message.as_deref(), Some("Pod was rejected: The node had condition: [DiskPressure]. "));
    std::fs::remove_file(&filler).unwrap();
    world.until_disk_pressure(false).await;
    world.run("welcome", "true", |_| {}).await;
    world.until_phase("welcome", "Succeeded").await;
    world.stop().await;
}

const MIB: u64 = 1 << 20;

/// Part of the disk in use, as `df` shows it, in thousandths.
fn used(path: &Path) -> u64 {
    let found = nix::sys::statvfs::statvfs(path).unwrap();
    (found.blocks() - found.blocks_available()) * 1000 / found.blocks()
}

/// Takes so much of the disk, at once, that this part of it, in thousandths, is in use.
fn fill(world: &World, name: &str, thousandths: u64) {
    let file = fs::File::create(world.config.data_dir.join(name)).unwrap();
    let found = nix::sys::statvfs::statvfs(&world.config.data_dir).unwrap();
    let wanted = found.blocks() * thousandths / 1000 - (found.blocks() - found.blocks_available());
    let bytes = i64::try_from(wanted * found.fragment_size()).unwrap();
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, bytes).unwrap();
    nix::unistd::syncfs(&file).unwrap();
}

impl World {
    /// The event of this reason at the node.
    async fn node_event(&self, reason: &str) -> Event {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let mut stream = Box::pin(watcher(events, watcher::Config::default()).applied_objects());
        let found = async {
            while let Some(event) = stream.try_next().await.unwrap() {
                if event.reason.as_deref() == Some(reason) {
                    return event;
                }
            }
            panic!("no {reason}");
        };
        tokio::time::timeout(PATIENCE, found).await.expect(reason)
    }

    /// The images that a registry gave, by repository.
    fn pulled(&self) -> BTreeSet<String> {
        let images = self.node().images();
        let pulled = images.list().into_iter().filter(|image| images.is_pulled(image));
        pulled
            .filter_map(|image| Some(image.names.first()?.split('/').nth(1)?.split([':', '@']).next()?.to_owned()))
            .collect()
    }
}

fn from_image(image: &str) -> impl FnOnce(&mut Value) {
    move |pod| pod["spec"]["containers"][0]["image"] = json!(image)
}

/// Six images, of which three are in use, one way each; the others go one by one, the longest unused first, and only so
/// far as is needed.
async fn images_go_in_order(kind: &str, mebibytes: u64, full: u64) {
    let (mut lab, listener) = Lab::prepare();
    let names = ["running", "stopped", "volume", "a-last", "b-second", "c-first"];
    let [running, stopped, volume, last, second, first] = names.map(|name| lab.add(name, 4 << 20));
    let host = lab.host.clone();
    lab.serve(listener);
    let world = World::start_with(|config| {
        World::own_disk(config, kind, mebibytes);
        config.images.insecure.push(host);
        config.image_gc = ImageGcConfig {
            minimum_age: Duration::ZERO,
            interval: Duration::from_millis(200),
            ..ImageGcConfig::default()
        };
    })
    .await;
    let idle = "while true; do sleep 0.05; done";
    for (name, image) in [("c", &first), ("b", &second), ("a", &last)] {
        // Long enough to be seen in use.
        world.run(name, "sleep 1", from_image(image)).await;
        world.until_phase(name, "Succeeded").await;
        world.delete(name).await;
    }
    world.run("stopped", "true", from_image(&stopped)).await;
    world.until_phase("stopped", "Succeeded").await;
    world
        .run("running", idle, |pod| {
            from_image(&running)(pod);
            pod["spec"]["volumes"] =
                json!([{ "name": "v", "image": { "reference": volume, "pullPolicy": "IfNotPresent" } }]);
            pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v" }]);
        })
        .await;
    world.until_phase("running", "Running").await;
    let mut here: BTreeSet<String> = names.map(str::to_owned).into();
    assert_eq!(world.pulled(), here);
    assert!(used(&world.config.data_dir) < 800, "{}", used(&world.config.data_dir));

    // Above the upper threshold by less than one image, down to the lower one.
    fill(&world, "filler-1", 855);
    eventually("below the lower threshold", || used(&world.config.data_dir) <= 800).await;
    let after = world.pulled();
    let gone: Vec<&String> = here.difference(&after).collect();
    let order: BTreeSet<&str> = ["c-first", "b-second", "a-last"].into_iter().take(gone.len()).collect();
    assert!((1..3).contains(&gone.len()), "not all: {gone:?}");
    assert_eq!(gone, order.iter().collect::<Vec<_>>(), "the longest unused first");

    // More than images take: all that nobody uses go, and that it is not enough is said.
    fill(&world, "filler-2", full);
    let event = world.node_event("FreeDiskSpaceFailed").await;
    let message = event.message.unwrap();
    assert!(
        message.starts_with("Failed to garbage collect required amount of images. Attempted to free "),
        "{message}"
    );
    assert!(message.contains("bytes eligible to free.") && message.contains("next: "), "{message}");
    assert!(message.contains("Images of pods stay (3), and those that were loaded by hand (1)"), "{message}");
    assert_eq!((event.type_.as_deref(), event.involved_object.kind.as_deref()), (Some("Warning"), Some("Node")));
    here.retain(|name| !name.contains('-'));
    assert_eq!(world.pulled(), here, "images in use stay");
    assert_eq!(main_status(&world.until_phase("running", "Running").await).restart_count, 0);

    // With room again, the next pod fetches what went.
    for filler in ["filler-1", "filler-2"] {
        fs::remove_file(world.config.data_dir.join(filler)).unwrap();
    }
    world.run("again", "true", from_image(&first)).await;
    world.until_phase("again", "Succeeded").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unused_images_make_room_from_the_upper_threshold_down_to_the_lower() {
    images_go_in_order("ext4", 192, 970).await;
}

/// There, what was deleted is not counted as free for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_images_go_than_needed_where_space_comes_back_late() {
    images_go_in_order("btrfs", 320, 900).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_while_an_image_comes_holds_nothing_of_it_afterwards() {
    let (mut lab, listener) = Lab::prepare();
    let (large, small) = (lab.add("large", 24 << 20), lab.add("small", 1 << 20));
    let host = lab.host.clone();
    lab.serve(listener);
    let world = World::start_with(|config| {
        World::own_disk(config, "ext4", 160);
        config.images.insecure.push(host);
        config.image_gc.high_percent = 100;
    })
    .await;
    let content = || {
        let files = |folder: &str| fs::read_dir(world.config.data_dir.join("images").join(folder)).unwrap();
        let all = ["blobs/sha256", "layers", "tmp"].map(files).into_iter().flatten();
        all.map(|entry| entry.unwrap().path()).collect::<BTreeSet<_>>()
    };
    let free = || {
        let found = nix::sys::statvfs::statvfs(&world.config.data_dir).unwrap();
        found.blocks_available() * found.fragment_size()
    };
    let before = content();
    let filler = fs::File::create(world.config.data_dir.join("filler")).unwrap();
    // While it is fetched, and while it is unpacked.
    for (name, room) in [("fetched", 12), ("unpacked", 36)] {
        nix::fcntl::fallocate(&filler, nix::fcntl::FallocateFlags::empty(), 0, 1).unwrap();
        filler.set_len(0).unwrap();
        let length = i64::try_from(free() - room * MIB).unwrap();
        nix::fcntl::fallocate(&filler, nix::fcntl::FallocateFlags::empty(), 0, length).unwrap();
        world.run(name, "true", from_image(&large)).await;
        let pod =
            world.until(name, "told", |pod| waits_for(pod, "ErrImagePull") || waits_for(pod, "ImagePullBackOff")).await;
        let state = main_status(&pod).state.clone().unwrap();
        let message = state.waiting.unwrap().message.unwrap();
        assert!(message.contains("No space left on device") && message.contains("`kfbox image remove"), "{message}");
        world.delete(name).await;
        assert_eq!(content(), before, "{name}");
    }
    // Others are not held up, and with room it comes.
    world.run("small", "true", from_image(&small)).await;
    world.until_phase("small", "Succeeded").await;
    filler.set_len(0).unwrap();
    world.run("large", "true", from_image(&large)).await;
    world.until_phase("large", "Succeeded").await;
    world.stop().await;
}
