//! A device plugin in Python and CDI specifications of the test's own: pods get their devices, and nobody else's.

use crate::world::{PATIENCE, World, main_status};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, runtime::wait::await_condition};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

const RESOURCE: &str = "vendor.example/card";
const CARDS: &str = r#"{
    "cdiVersion": "0.6.0", "kind": "vendor.example/card",
    "devices": [
        { "name": "a", "containerEdits": { "env": ["CARD=first"], "deviceNodes": [{ "path": "/dev/card", "hostPath": "/dev/full" }] } },
        { "name": "b", "containerEdits": { "env": ["CARD=second"] } }
    ],
    "containerEdits": { "env": ["DRIVER=7"] }
}"#;

struct Plugin {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Plugin {
    fn start(folder: &Path, descriptors: &Path) -> Self {
        let cache = std::env::var_os("KFBOX_CACHE").map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/kfbox");
        let python = cache.unwrap_or_else(home).join("venv-clients/bin/python");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/clients/device_plugin.py");
        let mut child = Command::new(python)
            .arg(script)
            .args([folder.as_os_str(), RESOURCE.as_ref(), descriptors.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("scripts/setup clients");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { stdin: child.stdin.take().unwrap(), child, lines }
    }

    async fn heard(&mut self, wanted: &str) {
        loop {
            let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect(wanted).unwrap();
            let line = line.unwrap_or_else(|| panic!("the plugin ended before {wanted:?}"));
            if line == wanted {
                return;
            }
        }
    }

    async fn told(&mut self, line: &str) {
        self.stdin.write_all(line.as_bytes()).await.unwrap();
    }
}

async fn until_cards(world: &World, capacity: &str, allocatable: &str) {
    let nodes: Api<Node> = Api::all(world.client.clone());
    let has = |node: Option<&Node>| {
        let status = node.and_then(|node| node.status.as_ref());
        let of = |all: Option<
            &std::collections::BTreeMap<_, k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
        >| { all.and_then(|all| all.get(RESOURCE)).map(|q| q.0.clone()) };
        let seen = status.map(|s| (of(s.capacity.as_ref()), of(s.allocatable.as_ref())));
        seen == Some((Some(capacity.to_owned()), Some(allocatable.to_owned())))
    };
    let waited = tokio::time::timeout(PATIENCE, await_condition(nodes, &world.config.node_name, has)).await;
    waited.unwrap_or_else(|_| panic!("{capacity} cards, {allocatable} of them to give")).unwrap();
}

fn wants(pod: &mut Value, count: u32) {
    pod["spec"]["containers"][0]["resources"] = json!({ "limits": { RESOURCE: count.to_string() } });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_plugin_and_cdi_give_pods_their_devices() {
    let cdi = tempfile::tempdir().unwrap();
    fs::write(cdi.path().join("cards.json"), CARDS).unwrap();
    let mut world = World::start_with(|config| config.devices.cdi_dirs = vec![cdi.path().into()]).await;
    let descriptors = world.dir.path().join("descriptors");
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let compiled = protox::compile(["deviceplugin.proto"], [proto]).unwrap();
    fs::write(&descriptors, prost::Message::encode_to_vec(&compiled)).unwrap();
    let folder = world.config.devices.plugins_dir.clone();
    let mut plugin = Plugin::start(&folder, &descriptors);
    let version = "refused INVALID_ARGUMENT requested API version \"v1alpha\" is not supported by kubelet. Supported \
                   version is [\"v1beta1\"]";
    plugin.heard(version).await;
    plugin
        .heard("refused INVALID_ARGUMENT the endpoint \"../vendor.example-card.sock\" is not a plugin's socket here")
        .await;
    plugin.heard("refused INVALID_ARGUMENT the ResourceName \"kubernetes.io/gpu\" is invalid").await;
    plugin.heard(&format!("registered {RESOURCE}")).await;
    until_cards(&world, "2", "2").await;

    let look = "echo $ACCELERATORS $CARD $DRIVER; ls /driver | grep -c kubelet.sock; test -c /dev/accelerator; \
                dd if=/dev/accelerator bs=1 count=4 2>/dev/null | wc -c; (echo x > /dev/card) 2>&1 | grep -c 'No space'; \
                while true; do sleep 0.05; done";
    world.run("first", look, |pod| wants(pod, 1)).await;
    plugin.heard("allocate a").await;
    plugin.heard("start a").await;
    world.until_phase("first", "Running").await;
    let mut log = String::new();
    while log.lines().count() < 4 {
        log = world.logs("first", "main").await;
        tokio::task::yield_now().await;
    }
    assert_eq!(log, "a first 7\n1\n4\n1\n");
    // A pod that did not ask has none, and neither may it open one that it makes.
    world.run("without", "test -e /dev/accelerator && exit 1; env | grep ACCEL && exit 1; exit 0", |_| {}).await;
    world.until_phase("without", "Succeeded").await;
    world.run("second", "echo $ACCELERATORS $CARD; while true; do sleep 0.05; done", |pod| wants(pod, 1)).await;
    plugin.heard("allocate b").await;
    world.until_phase("second", "Running").await;

    // None is left: a pod that is bound all the same waits, and starts when one comes back.
    world.run("third", "echo $ACCELERATORS", |pod| wants(pod, 1)).await;
    let waiting = async {
        let events: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(world.client.clone(), "default");
        loop {
            let all = events.list(&Default::default()).await.unwrap().items;
            let told = |e: &&k8s_openapi::api::core::v1::Event| e.reason.as_deref() == Some("UnexpectedAdmissionError");
            if let Some(event) = all.iter().find(told) {
                return event.message.clone().unwrap_or_default();
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let message = tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    let few = format!("requested number of devices unavailable for {RESOURCE}. Requested: 1, Available: 0");
    assert!(message.contains(&few), "{message}");

    // Who has what outlives the daemon; the plugin sees that its folder was emptied, and registers anew.
    world.crash().await;
    world.restart().await;
    let gone = tokio::time::timeout(PATIENCE, plugin.child.wait());
    plugin.stdin.write_all(b"end\n").await.unwrap();
    gone.await.unwrap().unwrap();
    until_cards(&world, "0", "0").await;
    let mut plugin = Plugin::start(&folder, &descriptors);
    until_cards(&world, "2", "2").await;
    assert_eq!(main_status(&world.until_phase("first", "Running").await).restart_count, 0);
    world.delete("second").await;
    plugin.heard("allocate b").await;
    world.until_phase("third", "Succeeded").await;
    assert_eq!(world.logs("third", "main").await, "b\n");

    // A device that falls ill is given to nobody; those of a plugin that is gone are known but not to give.
    plugin.told("sick b\n").await;
    until_cards(&world, "2", "1").await;
    plugin.told("well b\n").await;
    until_cards(&world, "2", "2").await;
    plugin.told("end\n").await;
    until_cards(&world, "2", "0").await;
    // A CDI device that no specification has: nothing runs without what it asked for.
    let mut plugin = Plugin::start(&folder, &descriptors);
    until_cards(&world, "2", "2").await;
    fs::write(cdi.path().join("cards.json"), CARDS.replace("\"b\"", "\"other\"")).unwrap();
    world.run("unknown", "true", |pod| wants(pod, 1)).await;
    plugin.heard("allocate b").await;
    let waits = |pod: &Pod| crate::world::waits_for(pod, "CreateContainerError");
    let pod = world.until("unknown", "refused", waits).await;
    let message = main_status(&pod).state.clone().unwrap().waiting.unwrap().message.unwrap();
    assert!(message.contains("has the device vendor.example/card=b"), "{message}");
    world.delete("unknown").await;
    world.delete("first").await;
    world.stop().await;
}
