//! Pods come and go by the hundred, and nothing of them stays: mounts, processes, cgroups, links, rules, open files, files.

use crate::world::{PATIENCE, World, eventually};
use futures::{StreamExt, stream};
use kfbox_node::cgroup::Hierarchies;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Pods at once: as many as start within the test's patience on a loaded machine.
const BATCH: usize = 25;

/// All that is this world's on the machine, by kind.
fn traces(world: &World) -> BTreeMap<&'static str, BTreeSet<String>> {
    let own = world.dir.path().to_str().unwrap().to_owned();
    let mut found: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
    let lines = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mounts = lines("/proc/self/mountinfo");
    let mounts = mounts.lines().filter(|line| line.contains(&own)).filter_map(|line| line.split(' ').nth(4));
    found.insert("mounts", mounts.map(str::to_owned).collect());
    let mut processes = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let cgroups = lines(&format!("/proc/{pid}/cgroup"));
        let arguments = lines(&format!("/proc/{pid}/cmdline"));
        if pid != std::process::id()
            && (cgroups.contains(&format!("/{}/", world.config.instance)) || arguments.contains(&own))
        {
            processes.insert(format!("{pid} {arguments}"));
        }
    }
    found.insert("processes", processes);
    let hierarchies = Hierarchies::detect();
    let pods = hierarchies.children(&format!("/{}", world.config.instance));
    found.insert("cgroups", pods.into_iter().collect());
    let prefix = world.config.network.link_prefix();
    let links = nix::net::if_::if_nameindex().unwrap();
    let links = links.iter().map(|link| link.name().to_string_lossy().into_owned());
    found.insert("links", links.filter(|name| name.starts_with(&prefix)).collect());
    for (kind, folder) in [("data", world.config.data_dir.join("pods")), ("run", world.config.run_dir.clone())] {
        let mut files = BTreeSet::new();
        walk(&folder, &mut files);
        found.insert(kind, files);
    }
    found
}

fn walk(folder: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        into.insert(entry.path().display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), into);
        }
    }
}

async fn rules(world: &World) -> String {
    let mut text = String::new();
    for suffix in ["", "_services", "_policy"] {
        let table = format!("{}{suffix}", world.config.network.table());
        text += &kfbox_node::network::nft::run(&["list", "table", "ip", &table], "").await.unwrap_or_default();
    }
    text
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// How many pods: 100, or what `KFBOX_LEAK_PODS` says.
#[expect(clippy::disallowed_methods, reason = "a test's length is the caller's to choose")]
fn how_many() -> usize {
    std::env::var("KFBOX_LEAK_PODS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

async fn come_and_go(world: &World, n: usize) {
    let name = format!("p{n}");
    let pod = world.run(&name, "echo here; [ $N -lt 2 ] && exit $N; sleep 1000", |pod| {
        pod["spec"]["volumes"] = json!([
            { "name": "disk", "emptyDir": {} },
            { "name": "memory", "emptyDir": { "medium": "Memory" } },
            { "name": "map", "configMap": { "name": "leaks", "optional": true } },
        ]);
        let main = &mut pod["spec"]["containers"][0];
        main["env"] = json!([{ "name": "N", "value": (n % 4).to_string() }]);
        main["volumeMounts"] = json!([
            { "name": "disk", "mountPath": "/disk", "subPath": "part" },
            { "name": "memory", "mountPath": "/memory" },
            { "name": "map", "mountPath": "/map" },
        ]);
        if n.is_multiple_of(5) {
            pod["spec"]["shareProcessNamespace"] = json!(true);
        }
        if n.is_multiple_of(10) {
            pod["spec"]["containers"][0]["ports"] = json!([{
                "containerPort": 80, "hostPort": 40_000 + n % 20_000, "protocol": if n.is_multiple_of(20) { "UDP" } else { "TCP" },
            }]);
        }
    });
    let uid = pod.await.metadata.uid.unwrap();
    match n % 4 {
        0 => drop(world.until_phase(&name, "Succeeded").await),
        1 => drop(world.until_phase(&name, "Failed").await),
        2 => {
            world.until_phase(&name, "Running").await;
            let args = ["sh", "-c", "echo x"].map(str::to_owned).to_vec();
            let session = world.node().exec("default", &name, "main", args, false, false).await.unwrap();
            let _ = session.exit.await;
        }
        // Deleted in whatever state it is.
        _ => {}
    }
    let now = DeleteParams { grace_period_seconds: (n.is_multiple_of(3)).then_some(0), ..DeleteParams::default() };
    world.pods().delete(&name, &now).await.unwrap();
    let gone = |pod: Option<&k8s_openapi::api::core::v1::Pod>| pod.is_none();
    tokio::time::timeout(PATIENCE, kube::runtime::wait::await_condition(world.pods(), &name, gone))
        .await
        .unwrap()
        .unwrap();
    let folder = world.config.data_dir.join("pods").join(uid);
    eventually("its folder is gone", || !folder.exists()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_leave_nothing_behind() {
    let world = World::start().await;
    let maps = kube::Api::<k8s_openapi::api::core::v1::ConfigMap>::namespaced(world.client.clone(), "default");
    world.namespace("default").await;
    let map = serde_json::from_value(json!({ "metadata": { "name": "leaks" }, "data": { "k": "v" } })).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    // The first pods make what stays for good: folders, parent cgroups.
    stream::iter(0..4).for_each_concurrent(4, |n| come_and_go(&world, n)).await;
    let settle = async |before: Option<&BTreeMap<&'static str, BTreeSet<String>>>| {
        // A shim's last act comes after its container's end is told.
        let quiet = |now: &BTreeMap<&'static str, BTreeSet<String>>| match before {
            Some(before) => now == before,
            None => now["processes"].is_empty() && now["data"].is_empty(),
        };
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let now = traces(&world);
            if quiet(&now) {
                return now;
            }
            if std::time::Instant::now() > deadline {
                let empty = BTreeMap::new();
                for (kind, found) in &now {
                    let none = BTreeSet::new();
                    let old = before.unwrap_or(&empty).get(kind).unwrap_or(&none);
                    let more: Vec<&String> = found.difference(old).take(10).collect();
                    println!("{kind}: {} before, {} now: {more:?}", old.len(), found.len());
                }
                panic!("something stays");
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let before = settle(None).await;
    let (rules_before, files_before) = (rules(&world).await, open_files());
    let began = std::time::Instant::now();
    let count = how_many();
    stream::iter(4..4 + count).for_each_concurrent(BATCH, |n| come_and_go(&world, n)).await;
    println!("{count} pods came and went in {:?}", began.elapsed());
    settle(Some(&before)).await;
    assert_eq!(rules(&world).await, rules_before);
    // Some connections of the moment are closed a moment later.
    eventually("descriptors stay open", || open_files() <= files_before + 4).await;
    assert!(world.node().usage().await.pods.is_empty());
    world.stop().await;
}
