//! Looking into running pods: ephemeral containers, shared processes, the host's view, and what pods use.

use crate::world::{PATIENCE, World, is_ready};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kfbox_node::{NodeError, Outcome};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn ephemeral(pod: &Pod, name: &str) -> Option<ContainerStatus> {
    let all = pod.status.as_ref()?.ephemeral_container_statuses.as_ref()?;
    all.iter().find(|s| s.name == name).cloned()
}

fn runs(pod: &Pod, name: &str) -> bool {
    ephemeral(pod, name).is_some_and(|s| s.state.is_some_and(|s| s.running.is_some()))
}

impl World {
    /// As `kubectl debug` puts a container into a pod.
    async fn debug(&self, pod: &str, container: Value) {
        let patch = json!({ "spec": { "ephemeralContainers": [container] } });
        self.pods()
            .patch_subresource("ephemeralcontainers", pod, &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .unwrap();
    }

    pub async fn output(&self, pod: &str, container: &str, command: &str) -> String {
        let args = ["sh", "-c", command].map(str::to_owned).to_vec();
        let deadline = std::time::Instant::now() + PATIENCE;
        let mut session = loop {
            match self.node().exec("default", pod, container, args.clone(), false, false).await {
                Ok(session) => break session,
                // A daemon that has just come back does not know its pods yet.
                Err(NodeError::NoPod(_) | NodeError::NotRunning { .. }) if std::time::Instant::now() < deadline => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{command}: {error}"),
            }
        };
        let (mut out, mut err) = (String::new(), String::new());
        let (read, errors) =
            tokio::join!(session.stdout.read_to_string(&mut out), session.stderr.read_to_string(&mut err));
        read.and(errors).unwrap();
        assert_eq!(session.exit.await.unwrap(), Outcome::Exited(0), "{command}: {out}{err}");
        out
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ephemeral_container_joins_a_running_pod() {
    let mut world = World::start().await;
    world.run("looked-at", "while true; do sleep 0.05; done", |_| {}).await;
    let before = world.until_phase("looked-at", "Running").await;
    let id = before.status.unwrap().container_statuses.unwrap()[0].container_id.clone();
    let image = "test/busybox:1";
    world
        .debug(
            "looked-at",
            json!({
                "name": "shell", "image": image, "imagePullPolicy": "Never", "targetContainerName": "main",
                "stdin": true, "command": ["sh", "-c", "read line; echo got $line; while true; do sleep 0.05; done"],
            }),
        )
        .await;
    let pod = world.until("looked-at", "the shell runs", |pod| runs(pod, "shell")).await;
    let main = pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0].clone();
    assert_eq!((main.container_id, main.restart_count), (id.clone(), 0), "the others are not touched");
    assert_eq!(ephemeral(&pod, "shell").unwrap().started, None);

    // It sees the target's processes, and the target's files by them.
    assert!(world.output("looked-at", "shell", "cat /proc/1/cmdline | tr '\\0' ' '").await.contains("while true"));
    world.output("looked-at", "main", "echo inside > /tmp/mark").await;
    assert_eq!(world.output("looked-at", "shell", "cat /proc/1/root/tmp/mark").await, "inside\n");
    let mut session = world.node().attach("default", "looked-at", "shell").await.unwrap();
    session.stdin.write_all(b"word\n").await.unwrap();
    let mut text = [0; 9];
    tokio::time::timeout(PATIENCE, session.stdout.read_exact(&mut text)).await.unwrap().unwrap();
    assert_eq!(&text, b"got word\n");
    assert_eq!(world.logs("looked-at", "shell").await, "got word\n");

    // A second one ends by itself, and is not run again; without a target it has processes of its own.
    world.debug("looked-at", json!({
        "name": "once", "image": image, "imagePullPolicy": "Never", "command": ["sh", "-c", "echo $$$$; exit 3"],
    })).await;
    let ended = |pod: &Pod| ephemeral(pod, "once").is_some_and(|s| s.state.is_some_and(|s| s.terminated.is_some()));
    let pod = world.until("looked-at", "once has ended", ended).await;
    let end = ephemeral(&pod, "once").unwrap();
    assert_eq!((end.state.unwrap().terminated.unwrap().exit_code, end.restart_count), (3, 0));
    assert_eq!(world.logs("looked-at", "once").await, "1\n");
    assert_eq!(pod.status.unwrap().phase.as_deref(), Some("Running"));

    // The daemon goes and comes: what ran runs, what ended stays ended.
    world.crash().await;
    world.restart().await;
    let pod = world.until("looked-at", "the shell still runs", |pod| runs(pod, "shell")).await;
    assert_eq!(pod.status.unwrap().container_statuses.unwrap()[0].container_id, id);
    assert!(world.output("looked-at", "shell", "echo again").await == "again\n");
    world.delete("looked-at").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_share_processes_where_the_pod_says_so() {
    let mut world = World::start().await;
    world
        .run("shared", "while true; do sleep 0.05; done", |pod| {
            pod["spec"]["shareProcessNamespace"] = json!(true);
            let mut other = pod["spec"]["containers"][0].clone();
            other["name"] = json!("other");
            other["command"] = json!(["sh", "-c", "echo $$$$; (sleep 0.01 &); while true; do sleep 0.05; done"]);
            pod["spec"]["containers"].as_array_mut().unwrap().push(other);
        })
        .await;
    world.until_phase("shared", "Running").await;
    let own: u32 = world.first_line("shared", "other").await.parse().unwrap();
    assert!(own > 1, "the first process is nobody's container");
    let list = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done";
    let seen = world.output("shared", "main", list).await;
    assert!(seen.lines().any(|l| l.trim() == "/pause") && seen.contains("echo $$"), "{seen}");
    // The process that holds the namespace shows nothing of the host, and nobody but it reaps orphans.
    for command in ["ls /proc/1/root/etc", "cat /proc/1/environ", "cat /proc/1/exe"] {
        let script = format!("{command} 2>/dev/null && exit 1; exit 0");
        assert_eq!(world.output("shared", "main", &script).await, "", "{command}");
    }
    assert_eq!(
        world.output("shared", "main", "kill -9 1; grep -c State:.Z /proc/[0-9]*/status | grep -v :0; true").await,
        ""
    );
    world.output("shared", "main", &format!("kill -0 {own}")).await;

    // It outlives the daemon.
    world.crash().await;
    world.restart().await;
    world.until_phase("shared", "Running").await;
    assert!(world.output("shared", "other", list).await.contains("/pause"));
    world.delete("shared").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_may_look_at_the_whole_host() {
    // What `kubectl debug node/...` makes.
    let world = World::start().await;
    let mark = world.dir.path().join("mark");
    std::fs::write(&mark, "of the host").unwrap();
    world
        .run("node-debugger", &format!("cat /host{} 2>&1; readlink /proc/self/ns/ipc 2>&1", mark.display()), |pod| {
            for field in ["hostNetwork", "hostPID", "hostIPC"] {
                pod["spec"][field] = json!(true);
            }
            pod["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
            pod["spec"]["volumes"] = json!([{ "name": "host-root", "hostPath": { "path": "/" } }]);
            let main = &mut pod["spec"]["containers"][0];
            main["volumeMounts"] = json!([{ "name": "host-root", "mountPath": "/host" }]);
            main["securityContext"] = json!({ "privileged": true });
        })
        .await;
    let over = |pod: &Pod| {
        pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| p != "Running" && p != "Pending")
    };
    let pod = world.until("node-debugger", "it ended", over).await;
    let ipc = std::fs::read_link("/proc/self/ns/ipc").unwrap();
    let log = world.logs("node-debugger", "main").await;
    assert_eq!(log, format!("of the host{}\n", ipc.display()), "{pod:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn use_is_measured_when_somebody_asks() {
    let world = World::start().await;
    world.run("busy", "while true; do :; done", |_| {}).await;
    world.run("idle", "sleep 1000", |_| {}).await;
    world.until_phase("busy", "Running").await;
    world.until_phase("idle", "Running").await;
    let usage = world.node().usage().await;
    let of = |name: &str| usage.pods.iter().find(|p| p.name == name).unwrap().clone();
    let (busy, idle) = (of("busy"), of("idle"));
    assert!(busy.containers[0].used.cpu_nanocores > 50_000_000, "{busy:?}");
    assert!(idle.containers[0].used.cpu_nanocores < busy.containers[0].used.cpu_nanocores / 4, "{idle:?}");
    assert!(idle.used.memory_working_set_bytes > 0 && idle.containers[0].used.memory_working_set_bytes > 0);
    assert!(busy.used.cpu_nanoseconds >= busy.containers[0].used.cpu_nanoseconds);
    assert!(usage.used.cpu_nanocores > 0 && usage.used.memory_working_set_bytes > 1 << 20);
    assert!(usage.window > std::time::Duration::ZERO && usage.timestamp.ends_with('Z'));

    let summary: Value = serde_json::from_str(&world.node().http("/stats/summary").await.unwrap().1).unwrap();
    assert_eq!(summary["node"]["nodeName"], json!(world.config.node_name));
    assert!(summary["pods"].as_array().unwrap().iter().any(|p| p["podRef"]["name"] == "busy"));
    let metrics = world.node().http("/metrics/resource").await.unwrap().1;
    assert!(
        metrics.contains("container_memory_working_set_bytes{container=\"main\",namespace=\"default\",pod=\"idle\"}")
    );
    let metrics = world.node().http("/metrics/cadvisor").await.unwrap().1;
    assert!(metrics.contains("container_cpu_usage_seconds_total{container=\"main\",cpu=\"total\",id=\"/"), "{metrics}");
    let pods: Value = serde_json::from_str(&world.node().http("/pods").await.unwrap().1).unwrap();
    assert_eq!(pods["items"].as_array().unwrap().len(), 2);
    assert_eq!(world.node().http("/healthz").await.unwrap().1, "ok");
    assert!(world.node().http("/configz").await.unwrap().1.contains("evictionHard"));
    assert!(world.node().http("/run/default/busy/main").await.is_none());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_port_is_the_pods_and_the_next_pod_waits_for_it() {
    let world = World::start().await;
    let port = 20_000 + std::process::id() % 20_000;
    let serve = |text: &str| format!("echo {text} > /tmp/index.html; httpd -f -p 8080 -h /tmp");
    let with = |pod: &mut Value| {
        let main = &mut pod["spec"]["containers"][0];
        main["ports"] = json!([{ "containerPort": 8080, "hostPort": port }]);
        main["readinessProbe"] = json!({ "tcpSocket": { "port": 8080 }, "periodSeconds": 1 });
    };
    world.run("first", &serve("first"), with).await;
    world.until("first", "ready", is_ready).await;
    let ask = async || {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).await.unwrap();
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.lines().last().unwrap_or_default().to_owned()
    };
    assert_eq!(ask().await, "first");
    // The scheduler keeps them apart; one that is bound all the same waits until the port is free.
    world.run("second", &serve("second"), with).await;
    world.delete("first").await;
    world.until("second", "ready", is_ready).await;
    assert_eq!(ask().await, "second");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_container_is_given_more_without_a_restart() {
    let world = World::start().await;
    let resources = |cpu: &str, memory: &str| json!({ "limits": { "cpu": cpu, "memory": memory } });
    world
        .run("grows", "while true; do sleep 0.05; done", |pod| {
            pod["spec"]["restartPolicy"] = json!("Always");
            pod["spec"]["containers"][0]["resources"] = resources("100m", "32Mi");
            pod["spec"]["containers"][0]["resizePolicy"] = json!([
                { "resourceName": "cpu", "restartPolicy": "NotRequired" },
                { "resourceName": "memory", "restartPolicy": "NotRequired" },
            ]);
        })
        .await;
    let pod = world.until_phase("grows", "Running").await;
    let id = crate::world::main_status(&pod).container_id.clone();
    let resize = async |cpu: &str, memory: &str| {
        let patch = json!({ "spec": { "containers": [{ "name": "main", "resources": {
            "requests": { "cpu": cpu, "memory": memory }, "limits": { "cpu": cpu, "memory": memory } } }] } });
        world
            .pods()
            .patch_subresource("resize", "grows", &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .unwrap();
    };
    let has = |pod: &Pod, name: &str, amount: &str| {
        let resources = crate::world::main_status(pod).resources.clone();
        resources.and_then(|r| r.limits).is_some_and(|limits| limits.get(name).is_some_and(|q| q.0 == amount))
    };
    resize("200m", "64Mi").await;
    let pod = world.until("grows", "it has more", |pod| has(pod, "memory", "64Mi") && has(pod, "cpu", "200m")).await;
    let status = crate::world::main_status(&pod);
    assert_eq!((status.container_id.clone(), status.restart_count), (id.clone(), 0));
    assert_eq!(status.allocated_resources.as_ref().unwrap()["cpu"].0, "200m");
    let limit = world
        .output(
            "grows",
            "main",
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true",
        )
        .await;
    assert_eq!(limit.trim(), (64 << 20).to_string());

    // More than the machine has is never given, and the container goes on with what it has.
    resize("200m", "900Ti").await;
    let pending = |pod: &Pod| {
        pod.status.as_ref().unwrap().conditions.iter().flatten().find(|c| c.type_ == "PodResizePending").cloned()
    };
    let pod = world.until("grows", "it is told", |pod| pending(pod).is_some()).await;
    assert_eq!(pending(&pod).unwrap().reason.as_deref(), Some("Infeasible"));
    assert!(has(&pod, "memory", "64Mi"));
    resize("200m", "48Mi").await;
    let pod = world.until("grows", "it has less", |pod| has(pod, "memory", "48Mi") && pending(pod).is_none()).await;
    assert_eq!(crate::world::main_status(&pod).container_id, id);
    world.delete("grows").await;
    world.stop().await;
}
