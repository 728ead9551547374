//! Pods through the API: this node runs what an API server in the same process holds.

use crate::world::{PATIENCE, World, eventually, exit_code, is_ready, main_status, waits_for};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Secret};
use kfbox_node::{LogOptions, Outcome};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::{fs, time::Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn main_container(pod: &mut serde_json::Value) -> &mut serde_json::Value {
    &mut pod["spec"]["containers"][0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_to_its_end_and_says_so() {
    let world = World::start().await;
    world.run("ok", "echo hello; exit 0", |_| {}).await;
    let pod = world.until_phase("ok", "Succeeded").await;
    let status = main_status(&pod);
    assert_eq!(status.state.as_ref().unwrap().terminated.as_ref().unwrap().reason.as_deref(), Some("Completed"));
    assert!(status.container_id.as_deref().unwrap().starts_with("kfbox://"));
    assert!(pod.status.as_ref().unwrap().pod_ip.is_some());
    assert_eq!(world.logs("ok", "main").await, "hello\n");

    world.run("bad", "echo why > /dev/termination-log; exit 3", |_| {}).await;
    let pod = world.until_phase("bad", "Failed").await;
    let end = main_status(&pod).state.as_ref().unwrap().terminated.clone().unwrap();
    assert_eq!((end.exit_code, end.reason.as_deref(), end.message.as_deref()), (3, Some("Error"), Some("why\n")));

    let events: Api<Event> = Api::namespaced(world.client.clone(), "default");
    let list = events.list(&ListParams::default()).await.unwrap();
    let reasons: Vec<&str> = list
        .items
        .iter()
        .filter(|e| e.involved_object.name.as_deref() == Some("ok"))
        .filter_map(|e| e.reason.as_deref())
        .collect();
    for wanted in ["Pulled", "Created", "Started"] {
        assert!(reasons.contains(&wanted), "{reasons:?}");
    }
    world.delete("ok").await;
    let began = Instant::now();
    world.run("timed", "true", |_| {}).await;
    world.until_phase("timed", "Succeeded").await;
    println!("a pod from creation to Succeeded: {:?}", began.elapsed());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_environment_and_identity_reach_the_container() {
    let world = World::start().await;
    world.namespace("default").await;
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "default");
    let map = serde_json::from_value(json!({ "metadata": { "name": "cm" }, "data": { "k": "v1" } })).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(world.client.clone(), "default");
    let secret =
        serde_json::from_value(json!({ "metadata": { "name": "s" }, "stringData": { "p": "hidden" } })).unwrap();
    secrets.create(&PostParams::default(), &secret).await.unwrap();
    let script = "cat /cm/k; echo; cat /s/p; echo; echo $FROM_CM-$FROM_SECRET-$POD-$CPU; id -u; id -g; id -G; \
        hostname; cat /mem/x 2>/dev/null; touch /data/mine && ls -ld /data | head -c 10; echo; \
        cat /token/token | tr . '\\n' | wc -l; cat /proc/self/status | head -60 | while read a b; do \
        [ $a = NoNewPrivs: ] && echo nnp $b; [ $a = Seccomp: ] && echo seccomp $b; done; \
        touch /x 2>/dev/null || echo readonly; mount -t tmpfs x /tmp 2>/dev/null || echo nomount";
    world
        .run("full", script, |pod| {
            pod["spec"]["hostname"] = json!("named");
            pod["spec"]["securityContext"] = json!({
                "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 4242, "runAsNonRoot": true,
                "seccompProfile": { "type": "RuntimeDefault" },
            });
            pod["spec"]["volumes"] = json!([
                { "name": "cm", "configMap": { "name": "cm" } },
                { "name": "s", "secret": { "secretName": "s" } },
                { "name": "data", "emptyDir": {} },
                { "name": "token", "projected": { "sources": [
                    { "serviceAccountToken": { "path": "token", "expirationSeconds": 3600 } } ] } },
            ]);
            let main = main_container(pod);
            main["securityContext"] = json!({
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            });
            main["volumeMounts"] = json!([
                { "name": "cm", "mountPath": "/cm" },
                { "name": "s", "mountPath": "/s" },
                { "name": "data", "mountPath": "/data" },
                { "name": "token", "mountPath": "/token" },
            ]);
            main["env"] = json!([
                { "name": "FROM_CM", "valueFrom": { "configMapKeyRef": { "name": "cm", "key": "k" } } },
                { "name": "FROM_SECRET", "valueFrom": { "secretKeyRef": { "name": "s", "key": "p" } } },
                { "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                { "name": "CPU", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu", "divisor": "1m" } } },
            ]);
            main["resources"] = json!({ "limits": { "cpu": "500m", "memory": "64Mi" } });
        })
        .await;
    world.until_phase("full", "Succeeded").await;
    let log = world.logs("full", "main").await;
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(&lines[..7], ["v1", "hidden", "v1-hidden-full-500", "1000", "1000", "1000 50 4242", "named"], "{log}");
    assert_eq!(&lines[7..], ["drwxrwsrwx", "2", "nnp 1", "seccomp 2", "readonly", "nomount"], "{log}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_pod_sees_changes_answers_and_dies_gracefully() {
    let world = World::start().await;
    world.namespace("default").await;
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "default");
    let map = serde_json::from_value(json!({ "metadata": { "name": "live" }, "data": { "k": "old" } })).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    let script = "trap 'echo bye; exit 0' TERM; echo up; while true; do sleep 0.05; done";
    world
        .run("live", script, |pod| {
            pod["spec"]["terminationGracePeriodSeconds"] = json!(20);
            pod["spec"]["volumes"] = json!([{ "name": "cm", "configMap": { "name": "live" } }]);
            let main = main_container(pod);
            main["volumeMounts"] = json!([{ "name": "cm", "mountPath": "/cm" }]);
            main["readinessProbe"] = json!({ "exec": { "command": ["test", "-e", "/tmp/ready"] }, "periodSeconds": 1 });
        })
        .await;
    world
        .until("live", "running", |pod| pod.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running")))
        .await;

    let exec = async |command: &str| {
        let args = ["sh", "-c", command].map(str::to_owned).to_vec();
        let mut session = world.node().exec("default", "live", "main", args, false, false).await.unwrap();
        let mut out = String::new();
        session.stdout.read_to_string(&mut out).await.unwrap();
        assert_eq!(session.exit.await.unwrap(), Outcome::Exited(0), "{command}");
        out
    };
    assert!(!is_ready(&world.pods().get("live").await.unwrap()));
    exec("touch /tmp/ready").await;
    world.until("live", "ready", is_ready).await;

    assert_eq!(exec("cat /cm/k").await, "old");
    maps.patch("live", &PatchParams::default(), &Patch::Merge(json!({ "data": { "k": "new" } }))).await.unwrap();
    assert_eq!(exec("while [ $(cat /cm/k) != new ]; do sleep 0.02; done; cat /cm/k").await, "new");

    // A port that listens on the pod's loopback only.
    exec("mkdir /tmp/web; echo pong > /tmp/web/x; httpd -p 127.0.0.1:7777 -h /tmp/web").await;
    let mut stream = world.node().port_forward("default", "live", 7777).await.unwrap();
    let mut answer = String::new();
    stream.write_all(b"GET /x HTTP/1.0\r\n\r\n").await.unwrap();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("\r\n\r\npong\n"), "{answer}");
    assert!(world.node().port_forward("default", "live", 7778).await.is_err());

    let usage = world.node().usage().await;
    let used = usage.pods.iter().find(|p| p.name == "live").unwrap();
    assert!(used.containers[0].used.memory_bytes > 0 && used.used.cpu_nanoseconds > 0, "{usage:?}");

    let follow = LogOptions { follow: true, ..LogOptions::default() };
    let log = world.node().logs("default", "live", "main", follow).await.unwrap();
    let (log, ()) = tokio::join!(log.try_collect::<Vec<bytes::Bytes>>(), world.delete("live"));
    assert_eq!(String::from_utf8(log.unwrap().concat()).unwrap(), "up\nbye\n");
    let folders = || fs::read_dir(world.config.data_dir.join("pods")).unwrap().count();
    eventually("its folders are gone", || folders() == 0).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_containers_sidecars_and_restarts() {
    let world = World::start().await;
    world
        .run("steps", "cat /work/one; exit 0", |pod| {
            let image = pod["spec"]["containers"][0]["image"].clone();
            let mount = json!([{ "name": "work", "mountPath": "/work" }]);
            pod["spec"]["volumes"] = json!([{ "name": "work", "emptyDir": { "medium": "Memory" } }]);
            pod["spec"]["initContainers"] = json!([
                { "name": "one", "image": image, "imagePullPolicy": "Never", "volumeMounts": mount,
                  "command": ["sh", "-c", "echo from-init > /work/one"] },
                { "name": "side", "image": image, "imagePullPolicy": "Never", "restartPolicy": "Always",
                  "command": ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.05; done"] },
            ]);
            main_container(pod)["volumeMounts"] = mount;
        })
        .await;
    let pod = world.until_phase("steps", "Succeeded").await;
    assert_eq!(world.logs("steps", "main").await, "from-init\n");
    let init = pod.status.unwrap().init_container_statuses.unwrap();
    assert!(init.iter().all(|s| s.state.as_ref().unwrap().terminated.is_some()), "{init:?}");

    world.run("again", "exit 1", |pod| pod["spec"]["restartPolicy"] = json!("Always")).await;
    let pod = world.until("again", "crash loop", |pod| waits_for(pod, "CrashLoopBackOff")).await;
    let status = main_status(&pod);
    assert_eq!(status.restart_count, 1, "the first restart is at once");
    assert_eq!(status.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    let previous = LogOptions { previous: true, ..LogOptions::default() };
    assert!(world.node().logs("default", "again", "main", previous).await.is_ok());
    world.delete("again").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_is_shared_where_a_pod_asks_for_it() {
    let world = World::start().await;
    world
        .run("host", "hostname; ls /proc | head -1; ls /dev/kmsg /dev/null", |pod| {
            pod["spec"]["hostNetwork"] = json!(true);
            pod["spec"]["hostPID"] = json!(true);
            main_container(pod)["securityContext"] = json!({ "privileged": true });
        })
        .await;
    let pod = world.until_phase("host", "Succeeded").await;
    let status = pod.status.unwrap();
    assert_eq!(status.pod_ip, status.host_ip);
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(world.logs("host", "main").await.starts_with(&name));

    world
        .run("terminal", "read line; echo got $line; stty size", |pod| {
            main_container(pod)["tty"] = json!(true);
            main_container(pod)["stdin"] = json!(true);
        })
        .await;
    world.until_phase("terminal", "Running").await;
    let mut session = world.node().attach("default", "terminal", "main").await.unwrap();
    session.resize.send(kfbox_node::TerminalSize { columns: 99, rows: 22 }).await.unwrap();
    session.stdin.write_all(b"text\n").await.unwrap();
    let mut out = Vec::new();
    tokio::time::timeout(PATIENCE, session.stdout.read_to_end(&mut out)).await.unwrap().unwrap();
    let out = String::from_utf8_lossy(&out).into_owned();
    assert!(out.contains("got text") && out.contains("22 99"), "{out}");
    world.until_phase("terminal", "Succeeded").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_run_says_why() {
    let world = World::start().await;
    let waits = async |name: &str, reason: &str| {
        let pod = world.until(name, reason, |pod| waits_for(pod, reason)).await;
        let message = main_status(&pod).state.as_ref().unwrap().waiting.as_ref().unwrap().message.clone();
        world.delete(name).await;
        message.unwrap_or_default()
    };
    world
        .run("never", "true", |pod| {
            main_container(pod)["image"] = json!("none/such:1");
            main_container(pod)["imagePullPolicy"] = json!("Never");
        })
        .await;
    assert!(waits("never", "ErrImageNeverPull").await.contains("none/such:1"));
    world.run("name", "true", |pod| main_container(pod)["image"] = json!("Not A Name")).await;
    waits("name", "InvalidImageName").await;
    world
        .run("config", "true", |pod| {
            main_container(pod)["envFrom"] = json!([{ "configMapRef": { "name": "absent" } }]);
        })
        .await;
    assert_eq!(waits("config", "CreateContainerConfigError").await, "configmap \"absent\" not found");
    world.run("root", "true", |pod| main_container(pod)["securityContext"] = json!({ "runAsNonRoot": true })).await;
    assert!(waits("root", "CreateContainerConfigError").await.contains("runAsNonRoot"));
    world.run("missing", "true", |pod| main_container(pod)["command"] = json!(["no-such-program"])).await;
    let pod = world.until_phase("missing", "Failed").await;
    let end = main_status(&pod).state.as_ref().unwrap().terminated.clone().unwrap();
    assert_eq!((end.exit_code, end.reason.as_deref()), (128, Some("StartError")));
    assert!(end.message.unwrap().contains("no-such-program"));

    world
        .run("hungry", "x=a; while true; do x=$x$x; done", |pod| {
            main_container(pod)["resources"] = json!({ "limits": { "memory": "16Mi" } });
        })
        .await;
    let pod = world.until_phase("hungry", "Failed").await;
    assert_eq!(exit_code(&pod), 137);
    let end = main_status(&pod).state.as_ref().unwrap().terminated.clone().unwrap();
    assert_eq!(end.reason.as_deref(), Some("OOMKilled"));

    world.run("late", "sleep 1000", |pod| pod["spec"]["activeDeadlineSeconds"] = json!(1)).await;
    let pod = world.until_phase("late", "Failed").await;
    assert_eq!(pod.status.unwrap().reason.as_deref(), Some("DeadlineExceeded"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_survive_the_daemon_and_nothing_runs_twice() {
    let mut world = World::start().await;
    let marks = world.dir.path().join("marks");
    fs::create_dir_all(&marks).unwrap();
    let host = |pod: &mut serde_json::Value| {
        pod["spec"]["volumes"] = json!([{ "name": "m", "hostPath": { "path": marks.to_str().unwrap() } }]);
        main_container(pod)["volumeMounts"] = json!([{ "name": "m", "mountPath": "/marks" }]);
    };
    let wait = "echo x >> /marks/NAME; while [ ! -e /marks/go-NAME ]; do sleep 0.02; done; echo done";
    for name in ["across", "during", "removed"] {
        world.run(name, &wait.replace("NAME", name), host).await;
        world.until_phase(name, "Running").await;
    }
    let before = main_status(&world.pods().get("across").await.unwrap()).container_id.clone();
    world.crash().await;
    // One ends while nobody looks.
    fs::write(marks.join("go-during"), "").unwrap();
    let record = || walk(&world.config.data_dir.join("pods")).into_iter().filter(|p| p.ends_with("exit.json")).count();
    eventually("the exit is on disk", || record() > 0).await;
    world.restart().await;
    world.until_phase("during", "Succeeded").await;
    let pod = world.until_phase("across", "Running").await;
    assert_eq!(main_status(&pod).container_id, before);
    assert_eq!(main_status(&pod).restart_count, 0);
    world.delete("removed").await;
    fs::write(marks.join("go-across"), "").unwrap();
    world.until_phase("across", "Succeeded").await;
    assert_eq!(world.logs("across", "main").await, "done\n");
    for name in ["across", "during", "removed"] {
        assert_eq!(fs::read_to_string(marks.join(name)).unwrap(), "x\n", "{name} ran once");
    }

    // A pod whose object goes while the daemon is away leaves nothing.
    world.run("orphan", "sleep 1000", |_| {}).await;
    let pod = world.until_phase("orphan", "Running").await;
    let folder = world.config.data_dir.join("pods").join(pod.metadata.uid.as_deref().unwrap());
    world.crash().await;
    world.restart_without("orphan").await;
    eventually("nothing is left of the pod", || !folder.exists()).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_ended_needs_nobody_until_it_is_deleted() {
    let mut world = World::start().await;
    let mut folders = std::collections::HashMap::new();
    for name in ["failed", "deleted", "forced", "later"] {
        let script = if name == "failed" { "echo once; exit 3" } else { "echo once" };
        let pod = world.run(name, script, |_| {}).await;
        folders.insert(name, world.config.data_dir.join("pods").join(pod.metadata.uid.as_deref().unwrap()));
    }
    for name in folders.keys() {
        world.until_phase(name, if *name == "failed" { "Failed" } else { "Succeeded" }).await;
    }
    let has_task = |world: &World| world.tasks.running().iter().any(|name| name.starts_with("pod/"));
    eventually("their tasks have ended", || !has_task(&world)).await;
    // A change of the object brings none back, and runs nothing again.
    let labels = json!({ "metadata": { "labels": { "changed": "yes" } } });
    world.pods().patch("failed", &PatchParams::default(), &Patch::Merge(&labels)).await.unwrap();
    world.delete("deleted").await;
    eventually("nothing is left of the deleted pod", || !folders["deleted"].exists()).await;
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    world.pods().delete("forced", &now).await.unwrap();
    eventually("nothing is left of the pod deleted by force", || !folders["forced"].exists()).await;
    world.crash().await;
    world.restart().await;
    // By then the node has seen them all.
    world.run("after", "true", |_| {}).await;
    world.until_phase("after", "Succeeded").await;
    eventually("no task stays", || !has_task(&world)).await;
    assert_eq!(world.logs("failed", "main").await, "once\n");
    let pod = world.pods().get("failed").await.unwrap();
    assert_eq!((exit_code(&pod), main_status(&pod).restart_count), (3, 0));
    world.delete("later").await;
    world.delete("failed").await;
    eventually("nothing is left", || folders.values().all(|folder| !folder.exists())).await;
    world.stop().await;
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            all.extend(walk(&path));
        } else {
            all.push(path);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_reach_each_other_and_a_forced_deletion_is_final() {
    let world = World::start().await;
    world
        .run("server", "echo hi > /tmp/index.html; httpd -f -p 8080 -h /tmp", |pod| {
            main_container(pod)["readinessProbe"] = json!({ "httpGet": { "path": "/index.html", "port": 8080 } });
        })
        .await;
    let pod = world.until("server", "ready", is_ready).await;
    let ip = pod.status.unwrap().pod_ip.unwrap();
    world.run("client", &format!("wget -q -O - http://{ip}:8080/index.html"), |_| {}).await;
    world.until_phase("client", "Succeeded").await;
    assert_eq!(world.logs("client", "main").await, "hi\n");
    let uid = pod.metadata.uid.unwrap();
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    world.pods().delete("server", &now).await.unwrap();
    let folder = world.config.data_dir.join("pods").join(uid);
    eventually("nothing is left of the pod", || !folder.exists()).await;
    world.stop().await;
}
