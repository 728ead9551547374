//! Pods with users of their own: root inside is nobody outside, and files belong to whom they should on either side.

use crate::world::{World, eventually, is_ready, main_status, waits_for};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{Api, api::ListParams};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

const SERVE: &str = "echo $(id -u) > /disk/written; echo $(id -u) > /host/written; echo of-the-pod > /here; \
    mkdir -p /tmp/www; echo served > /tmp/www/index.html; httpd -p 80 -h /tmp/www; \
    while [ ! -e /disk/end ]; do sleep 0.05; done; rm /disk/end; exit 3";

fn own_users(pod: &mut Value, host: &Path) {
    pod["spec"]["hostUsers"] = json!(false);
    pod["spec"]["restartPolicy"] = json!("OnFailure");
    pod["spec"]["securityContext"] = json!({ "fsGroup": 4321 });
    pod["spec"]["volumes"] = json!([
        { "name": "disk", "emptyDir": {} },
        { "name": "memory", "emptyDir": { "medium": "Memory" } },
        { "name": "host", "hostPath": { "path": host } },
        { "name": "words", "downwardAPI": { "items": [{ "path": "name", "fieldRef": { "fieldPath": "metadata.name" } }] } },
    ]);
    let main = &mut pod["spec"]["containers"][0];
    main["volumeMounts"] = json!([
        { "name": "disk", "mountPath": "/disk" },
        { "name": "memory", "mountPath": "/memory" },
        { "name": "host", "mountPath": "/host" },
        { "name": "words", "mountPath": "/words" },
        { "name": "disk", "mountPath": "/part", "subPath": "part" },
    ]);
    main["readinessProbe"] = json!({ "httpGet": { "path": "/index.html", "port": 80 }, "periodSeconds": 1 });
    let mut other = main.clone();
    other.as_object_mut().unwrap().remove("readinessProbe");
    other["name"] = json!("other");
    other["command"] = json!(["sh", "-c", "while true; do sleep 0.05; done"]);
    other["securityContext"] = json!({ "runAsUser": 1000, "runAsGroup": 1000, "readOnlyRootFilesystem": true });
    pod["spec"]["containers"].as_array_mut().unwrap().push(other);
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (meta.uid(), meta.gid())
}

impl World {
    fn folder(&self, pod: &Pod) -> PathBuf {
        self.config.data_dir.join("pods").join(pod.metadata.uid.as_ref().unwrap())
    }

    async fn events(&self) -> Vec<String> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let all = events.list(&ListParams::default()).await.unwrap();
        all.items.into_iter().filter_map(|event| event.message).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_of_a_pod_with_users_of_its_own_is_nobody_on_the_host() {
    let mut world = World::start().await;
    let host = world.dir.path().join("of-the-host");
    fs::create_dir(&host).unwrap();
    world.run("first", SERVE, |pod| own_users(pod, &host)).await;
    world.run("second", "while true; do sleep 0.05; done", |pod| pod["spec"]["hostUsers"] = json!(false)).await;
    let pod = world.until("first", "ready", is_ready).await;
    let second = world.until_phase("second", "Running").await;

    // Each pod has a block of ids of its own, and its processes run with those.
    let first = world.config.first_user_id;
    let map = async |name: &str| {
        let text = world.output(name, "main", "cat /proc/self/uid_map /proc/self/gid_map").await;
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let (one, two) = (map("first").await, map("second").await);
    for block in [&one, &two] {
        assert!(block[0] == "0" && block[2] == "65536" && block[..3] == block[3..], "{block:?}");
    }
    let blocks = [&one, &two].map(|block| block[1].parse::<u32>().unwrap());
    assert!(blocks.contains(&first) && blocks.contains(&(first + 65_536)), "{blocks:?}");
    let root = blocks[0];
    let of_host = world.output("first", "main", "grep -l . /proc/[0-9]*/cmdline | wc -l").await;
    assert!(of_host.trim().parse::<u32>().unwrap() < 20, "its own processes alone: {of_host}");
    let started = fs::read_to_string(world.folder(&pod).join("containers/main/0/started.json")).unwrap();
    let started: Value = serde_json::from_str(&started).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", started["init"]["pid"])).unwrap();
    assert!(status.contains(&format!("Uid:\t{root}\t{root}\t{root}\t{root}\n")), "{status}");

    // Owners inside are 0 and 1000, on volumes' disks too; what only the pod has is the block's.
    assert_eq!(world.output("first", "main", "id -u; cat /words/name; hostname").await, "0\nfirstfirst\n");
    assert_eq!(world.output("first", "other", "id -u; id -G").await, "1000\n1000 50 4321\n");
    world.output("first", "other", "echo x > /disk/of-other; echo x > /memory/of-other; touch /part/in-part").await;
    world.output("first", "main", "echo x > /memory/of-root; chown 5:6 /memory/of-root; cat /disk/of-other").await;
    assert_eq!(owner(&host.join("written")), (0, 0));
    let disk = world.folder(&pod).join("volumes/disk");
    assert_eq!((owner(&disk.join("written")), owner(&disk.join("of-other"))), ((0, 4321), (1000, 4321)));
    assert_eq!(owner(&disk.join("part/in-part")).0, 1000);
    let memory = world.config.run_dir.join("pods").join(pod.metadata.uid.as_ref().unwrap()).join("volumes/memory");
    assert_eq!((owner(&memory.join("of-root")), owner(&memory.join("of-other")).0), ((5, 6), 1000));
    assert_eq!(owner(&world.folder(&pod).join("containers/main/0/upper/here")), (root, root));
    // /proc and /sys are the kernel's, so nobody's here.
    let list = "ls -ln / | grep -v ' 0 *0 ' | grep -vE '^total| (proc|sys)$'; ls -ldn /home/user";
    let seen = world.output("first", "main", list).await;
    assert!(seen.lines().all(|line| line.contains(" 1000 ") || line.contains("4321")), "strangers' files: {seen}");

    // It is root over nothing of the host's: not its settings, not its devices, not its clock, not its files.
    for forbidden in [
        "echo 1 > /proc/sys/kernel/panic",
        "mount -t ext4 /dev/vda /tmp",
        "mount -t tmpfs none /sys",
        "dd if=/dev/kmsg count=1",
        "echo 1 > /proc/1/oom_score_adj && echo -1000 > /proc/1/oom_score_adj",
        "cat /proc/kcore",
    ] {
        world.output("first", "main", &format!("({forbidden}) 2>/dev/null && exit 1; exit 0")).await;
    }

    // It outlives the daemon, and a container that runs again finds its files.
    world.crash().await;
    world.restart().await;
    world.until("first", "ready still", is_ready).await;
    world.output("first", "main", "touch /disk/end").await;
    let again = |pod: &Pod| main_status(pod).restart_count == 1 && is_ready(pod);
    world.until("first", "it runs again", again).await;
    assert_eq!(world.output("first", "main", "cat /disk/of-other /proc/self/uid_map").await.trim_end(), {
        format!("x\n         0 {root:10}      65536")
    });
    let folder = world.folder(&second);
    world.delete("second").await;
    eventually("nothing is left of the pod", || !folder.exists()).await;
    world.delete("first").await;
    assert_eq!(owner(&host.join("written")), (0, 0));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_user_namespace_cannot_have_is_said() {
    let world = World::start().await;
    world
        .run("beyond", "true", |pod| {
            pod["spec"]["hostUsers"] = json!(false);
            pod["spec"]["securityContext"] = json!({ "runAsUser": 70_000 });
        })
        .await;
    let pod = world.until("beyond", "refused", |pod| waits_for(pod, "CreateContainerConfigError")).await;
    let state = main_status(&pod).state.clone().unwrap().waiting.unwrap();
    assert!(state.message.unwrap().starts_with("the user 70000 is outside of the pod's user namespace"));

    // A file system without idmapped mounts: nothing runs with owners that are wrong.
    world
        .run("sysfs", "true", |pod| {
            pod["spec"]["hostUsers"] = json!(false);
            pod["spec"]["volumes"] = json!([{ "name": "sys", "hostPath": { "path": "/sys/kernel" } }]);
            pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "sys", "mountPath": "/of-host" }]);
        })
        .await;
    world.until_phase("sysfs", "Failed").await;
    let told = "Error: cannot map the owners of /sys/kernel: ";
    let mut found = false;
    for _ in 0..200 {
        found = world.events().await.iter().any(|message| message.starts_with(told));
        if found {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(found, "{:?}", world.events().await);
    world.delete("beyond").await;
    world.stop().await;
}
