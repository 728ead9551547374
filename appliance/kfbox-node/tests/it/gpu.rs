//! NVIDIA's cards without a device plugin, on a machine that has none: a fake NVML, compiled here from `tests/fake/nvml.c`, and
//! a fake driver's files. What is shown is everything but the card: counting, giving, sharing, dividing, falling ill.

use crate::world::{PATIENCE, World, eventually};
use k8s_openapi::api::core::v1::Node;
use kfbox_node::{GpuConfig, MigStrategy};
use kube::{Api, runtime::wait::await_condition};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

const DRIVER: &str = "550.54.14";

struct Fake {
    dir: tempfile::TempDir,
}

impl Fake {
    fn new() -> Self {
        let fake = Self { dir: tempfile::tempdir().unwrap() };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake/nvml.c");
        let event = format!("-DEVENT=\"{}\"", fake.event().display());
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wall", "-Werror", &event, "-o"])
            .args([fake.library().as_os_str(), source.as_ref()])
            .status();
        assert!(built.expect("apt-get install build-essential").success());
        for (path, content) in [
            ("usr/lib/x86_64-linux-gnu/libcuda.so.550.54.14", "the fake driver"),
            ("usr/lib/x86_64-linux-gnu/libc.so.6", "not the driver's"),
            ("usr/bin/nvidia-smi", "#!/bin/sh\necho a fake nvidia-smi\n"),
            ("proc/driver/nvidia/capabilities/gpu1/mig/gi8/access", "DeviceFileMinor: 30\nDeviceFileMode: 292\n"),
            ("proc/driver/nvidia/capabilities/gpu1/mig/gi8/ci0/access", "DeviceFileMinor: 31\n"),
            ("proc/driver/nvidia/capabilities/gpu1/mig/gi11/access", "DeviceFileMinor: 40\n"),
            ("proc/driver/nvidia/capabilities/gpu1/mig/gi11/ci0/access", "DeviceFileMinor: 41\n"),
        ] {
            fake.file(path, content);
        }
        // Any devices will do.
        for (path, target) in [
            ("dev/nvidia0", "/dev/zero"),
            ("dev/nvidia1", "/dev/full"),
            ("dev/nvidiactl", "/dev/null"),
            ("dev/nvidia-caps/nvidia-cap30", "/dev/null"),
            ("dev/nvidia-caps/nvidia-cap31", "/dev/null"),
            ("dev/nvidia-caps/nvidia-cap40", "/dev/null"),
            ("dev/nvidia-caps/nvidia-cap41", "/dev/null"),
            ("usr/lib/x86_64-linux-gnu/libcuda.so.1", "libcuda.so.550.54.14"),
        ] {
            fs::create_dir_all(fake.root().join(path).parent().unwrap()).unwrap();
            symlink(target, fake.root().join(path)).unwrap();
        }
        fs::set_permissions(
            fake.root().join("usr/bin/nvidia-smi"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        fake
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("libnvidia-ml.so.1")
    }

    fn event(&self) -> PathBuf {
        self.dir.path().join("event")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn file(&self, path: &str, content: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn config(&self, shares: u32, mig: MigStrategy) -> GpuConfig {
        GpuConfig { library: Some(self.library()), root: self.root(), shares, mig, ..GpuConfig::default() }
    }

    /// A critical error of a card.
    fn xid(&self, number: u32, card: u32) {
        let next = self.dir.path().join("event.next");
        fs::write(&next, format!("{number} {card}")).unwrap();
        fs::rename(next, self.event()).unwrap();
    }
}

async fn until_gpus(world: &World, resource: &str, capacity: &str, allocatable: &str) {
    let nodes: Api<Node> = Api::all(world.client.clone());
    let has = |node: Option<&Node>| {
        let status = node.and_then(|node| node.status.as_ref());
        let of = |all: Option<
            &std::collections::BTreeMap<_, k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
        >| { all.and_then(|all| all.get(resource)).map(|q| q.0.clone()) };
        let seen = status.map(|s| (of(s.capacity.as_ref()), of(s.allocatable.as_ref())));
        seen == Some((Some(capacity.to_owned()), Some(allocatable.to_owned())))
    };
    let waited = tokio::time::timeout(PATIENCE, await_condition(nodes, &world.config.node_name, has)).await;
    waited.unwrap_or_else(|_| panic!("{capacity} of {resource}, {allocatable} of them to give")).unwrap();
}

fn wants(pod: &mut Value, resource: &str, count: u32) {
    pod["spec"]["containers"][0]["resources"] = json!({ "limits": { resource: count.to_string() } });
}

async fn world(fake: &Fake, shares: u32, mig: MigStrategy, cdi: &Path) -> World {
    let (gpu, cdi) = (fake.config(shares, mig), cdi.to_path_buf());
    World::start_with(move |config| {
        config.devices.gpu = gpu;
        config.devices.cdi_dirs = vec![cdi];
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cards_are_counted_given_and_taken_back() {
    let (fake, cdi) = (Fake::new(), tempfile::tempdir().unwrap());
    let mut world = world(&fake, 1, MigStrategy::None, cdi.path()).await;
    until_gpus(&world, "nvidia.com/gpu", "2", "2").await;
    let look = "echo $NVIDIA_VISIBLE_DEVICES $LD_LIBRARY_PATH; cat /usr/local/nvidia/lib64/libcuda.so.1; echo; \
                ls /usr/local/nvidia/lib64; /usr/local/nvidia/bin/nvidia-smi; dd if=/dev/nvidia0 bs=1 count=4 2>/dev/null | wc -c; \
                test -c /dev/nvidiactl; test -e /dev/nvidia1 && exit 9; (echo x > /usr/local/nvidia/lib64/libcuda.so.1) 2>/dev/null && exit 8; \
                echo end; while true; do sleep 0.05; done";
    world.run("first", look, |pod| wants(pod, "nvidia.com/gpu", 1)).await;
    world.until_phase("first", "Running").await;
    let mut log = String::new();
    while !log.ends_with("end\n") {
        log = world.logs("first", "main").await;
        tokio::task::yield_now().await;
    }
    assert_eq!(
        log,
        format!(
            "GPU-fake-0 /usr/local/nvidia/lib64\nthe fake driver\nlibcuda.so.1\nlibcuda.so.{DRIVER}\na fake nvidia-smi\n4\nend\n"
        )
    );
    // Who did not ask has none, and may not open one that he makes.
    world.run("without", "test -e /dev/nvidia0 && exit 1; test -z \"$NVIDIA_VISIBLE_DEVICES\"", |_| {}).await;
    world.until_phase("without", "Succeeded").await;
    let (report, absent) = world.node().gpus();
    assert_eq!(report[0].held_by, ["default/first"]);
    assert_eq!((report[0].gpu.name.as_str(), report[0].gpu.memory_bytes >> 30), ("NVIDIA Fake 80GB", 80));
    assert!(report[1].held_by.is_empty() && absent["amd"].contains("amdgpu"), "{report:?} {absent:?}");

    // Xid 31 is a program's own fault; 79 is a card that is gone. What it had goes on, others do not get it.
    fake.xid(31, 1);
    eventually("the event is heard", || !fake.event().exists()).await;
    fake.xid(79, 1);
    until_gpus(&world, "nvidia.com/gpu", "2", "1").await;
    assert_eq!(world.node().gpus().0[1].gpu.fault, "Xid 79");
    world.run("second", "echo $NVIDIA_VISIBLE_DEVICES", |pod| wants(pod, "nvidia.com/gpu", 1)).await;
    // Who has what outlives the daemon; a new start asks the driver again.
    world.crash().await;
    world.restart().await;
    until_gpus(&world, "nvidia.com/gpu", "2", "2").await;
    world.until_phase("second", "Succeeded").await;
    assert_eq!(world.logs("second", "main").await, "GPU-fake-1\n");
    assert_eq!(world.node().gpus().0[0].held_by, ["default/first"]);

    // What the maker's own tool wrote is used in place of what is guessed.
    let specification = json!({
        "cdiVersion": "0.6.0", "kind": "nvidia.com/gpu",
        "devices": [{ "name": "1", "containerEdits": { "env": ["FROM=cdi"], "deviceNodes": [{ "path": "/dev/by-cdi", "hostPath": "/dev/full" }] } }],
    });
    fs::write(cdi.path().join("nvidia.json"), specification.to_string()).unwrap();
    let look = "echo $FROM $NVIDIA_VISIBLE_DEVICES; test -c /dev/by-cdi; ls /usr/local/nvidia 2>/dev/null | wc -l";
    world.run("third", look, |pod| wants(pod, "nvidia.com/gpu", 1)).await;
    world.until_phase("third", "Succeeded").await;
    assert_eq!(world.logs("third", "main").await, "cdi GPU-fake-1\n0\n");
    world.delete("first").await;
    assert!(world.node().gpus().0[0].held_by.is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_card_is_shared_or_divided() {
    let (fake, cdi) = (Fake::new(), tempfile::tempdir().unwrap());
    let world = world(&fake, 2, MigStrategy::Mixed, cdi.path()).await;
    // The first card twice, and each of the second's instances twice.
    until_gpus(&world, "nvidia.com/gpu", "2", "2").await;
    until_gpus(&world, "nvidia.com/mig-1g.10gb", "4", "4").await;
    let idle = "echo $NVIDIA_VISIBLE_DEVICES; while true; do sleep 0.05; done";
    for name in ["one", "two"] {
        world.run(name, idle, |pod| wants(pod, "nvidia.com/gpu", 1)).await;
        world.until_phase(name, "Running").await;
        assert_eq!(world.first_line(name, "main").await, "GPU-fake-0");
    }
    let mut sharers = world.node().gpus().0[0].held_by.clone();
    sharers.sort();
    assert_eq!(sharers, ["default/one", "default/two"]);
    // Two of four shares are of two instances, not twice one's.
    let look =
        "echo $NVIDIA_VISIBLE_DEVICES; ls /dev/nvidia-caps; test -e /dev/nvidia0 && exit 1; test -c /dev/nvidia1";
    world.run("parts", look, |pod| wants(pod, "nvidia.com/mig-1g.10gb", 2)).await;
    world.until_phase("parts", "Succeeded").await;
    let log = world.logs("parts", "main").await;
    assert_eq!(log, "MIG-fake-1,MIG-fake-4\nnvidia-cap30\nnvidia-cap31\nnvidia-cap40\nnvidia-cap41\n");
    world.run("part", "ls /dev/nvidia-caps", |pod| wants(pod, "nvidia.com/mig-1g.10gb", 1)).await;
    world.until_phase("part", "Succeeded").await;
    assert_eq!(world.logs("part", "main").await, "nvidia-cap30\nnvidia-cap31\n", "and not its neighbour's");
    for name in ["one", "two"] {
        world.delete(name).await;
    }
    world.stop().await;
}
