//! What the tests stand on: a root file system of busybox, and a node with an API server in this process, on a network
//! of its own. Everything is removed again when it goes out of scope.

use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kfbox_apiserver::ApiServer;
use kfbox_base::{Readiness, Tasks};
use kfbox_node::{EvictionConfig, LogOptions, Node, NodeConfig, images::RunConfig, network::NetworkConfig};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
    runtime::wait::await_condition,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// Long enough for a loaded machine; nothing waits for it when things go well.
pub const PATIENCE: Duration = Duration::from_secs(60);

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A number that no other test of this machine has at this time: tests run one a process.
pub fn unique() -> u32 {
    std::process::id() * 8 + SERIAL.fetch_add(1, Ordering::Relaxed) % 8
}

/// A root file system with busybox and the folders that runtimes expect.
pub fn busybox(root: &Path) {
    for folder in ["bin", "proc", "sys", "dev", "etc", "tmp", "root", "home/user"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("apt-get install busybox-static");
    for name in [
        "sh", "true", "false", "echo", "cat", "sleep", "yes", "head", "id", "hostname", "ls", "env", "pwd", "stty",
        "nc", "wget", "httpd", "touch", "kill", "mkdir", "wc", "dd", "nslookup", "test", "printf", "tr", "seq",
        "mount", "grep", "readlink", "chown", "rm",
    ] {
        let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(name));
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:50:user\n").unwrap();
    std::os::unix::fs::chown(root.join("home/user"), Some(1000), Some(1000)).unwrap();
}

/// A node with its API server. Call [`World::stop`] at the end; dropping it cleans up too, as far as it can.
pub struct World {
    pub dir: tempfile::TempDir,
    pub config: NodeConfig,
    pub server: Option<ApiServer>,
    pub node: Option<Arc<Node>>,
    pub tasks: Tasks,
    pub client: Client,
}

impl World {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// No shortage of this machine, on which more runs than this test, is one to the test.
    pub fn calm() -> EvictionConfig {
        EvictionConfig {
            memory_bytes: 0,
            node_fs_percent: 0,
            image_fs_percent: 0,
            inodes_percent: 0,
            interval: Duration::from_millis(200),
            ..EvictionConfig::default()
        }
    }

    /// Puts the node's data on a file system of its own, of so many mebibytes.
    pub fn small_disk(config: &NodeConfig, mebibytes: u32) {
        fs::create_dir_all(&config.data_dir).unwrap();
        let size = format!("size={mebibytes}m");
        mount(Some("kfbox-test"), &config.data_dir, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
    }

    /// The same with a file system of this kind, in a file that is gone when it is unmounted.
    pub fn own_disk(config: &NodeConfig, kind: &str, mebibytes: u64) {
        fs::create_dir_all(&config.data_dir).unwrap();
        let image = config.data_dir.with_extension("disk");
        fs::File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
            let done = std::process::Command::new(program).args(arguments).output();
            let done = done.expect("apt-get install e2fsprogs btrfs-progs xfsprogs mount");
            assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
        };
        run(&format!("mkfs.{kind}"), &["-q".as_ref(), image.as_os_str()]);
        // The loop device lets go by itself when it is unmounted.
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), config.data_dir.as_os_str()]);
        fs::remove_file(&image).unwrap();
    }

    pub async fn start_with(change: impl FnOnce(&mut NodeConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let n = unique();
        let instance = format!("kfn{n}");
        // Beside what the box that tests share has.
        let second = 64 + n % 76;
        let network = NetworkConfig {
            instance: instance.clone(),
            bridge: format!("kfn{n}"),
            second: None,
            pod_cidr: format!("10.{second}.{}.0/24", n / 76 % 250).parse().unwrap(),
            service_cidr: format!("10.{}.{}.0/24", second + 90, n / 76 % 250).parse().unwrap(),
            dns_ip: format!("10.{}.{}.10", second + 90, n / 76 % 250).parse().unwrap(),
            mtu: 0,
            run_dir: dir.path().join("run"),
        };
        let mut config = NodeConfig::new(dir.path().join("data"), dir.path().join("run"), &instance, network);
        config.log_max_bytes = 1 << 20;
        config.eviction = Self::calm();
        change(&mut config);
        let tasks = Tasks::new();
        let server = Self::open_server(&config, &tasks).await;
        let client = server.client();
        let mut world = Self { dir, config, server: Some(server), node: None, tasks, client };
        world.start_node().await;
        world.import_busybox().await;
        world
    }

    async fn open_server(config: &NodeConfig, tasks: &Tasks) -> ApiServer {
        let mut api = kfbox_apiserver::Config::new(&config.data_dir);
        api.service_cidr = config.network.service_cidr.to_string();
        api.dns_ip = config.network.dns_ip;
        let first = config.network.service_cidr.network();
        api.api_service_ip = std::net::Ipv4Addr::from(u32::from(first) + 1);
        fs::create_dir_all(&config.data_dir).unwrap();
        ApiServer::open(api, tasks).await.unwrap()
    }

    async fn start_node(&mut self) {
        let readiness = Readiness::default();
        let node = Node::start(self.config.clone(), self.client.clone(), &self.tasks, &readiness).await.unwrap();
        self.node = Some(node);
    }

    pub fn node(&self) -> &Arc<Node> {
        self.node.as_ref().unwrap()
    }

    /// Ends the daemon's part, as a kill would: no pod is told.
    pub async fn crash(&mut self) {
        self.tasks.stop();
        let left = self.tasks.drain(PATIENCE).await;
        assert!(left.is_empty(), "{left:?}");
        self.node = None;
        self.server = None;
    }

    pub async fn restart(&mut self) {
        self.tasks = Tasks::new();
        let server = Self::open_server(&self.config, &self.tasks).await;
        self.client = server.client();
        self.server = Some(server);
        self.start_node().await;
    }

    /// Starts again, but for a pod that is deleted by force before the node looks.
    pub async fn restart_without(&mut self, pod: &str) {
        self.tasks = Tasks::new();
        let server = Self::open_server(&self.config, &self.tasks).await;
        self.client = server.client();
        self.server = Some(server);
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        self.pods().delete(pod, &now).await.unwrap();
        self.start_node().await;
    }

    async fn import_busybox(&self) {
        let root = self.dir.path().join("busybox");
        busybox(&root);
        let mut layer = Vec::new();
        {
            let mut tar = tar::Builder::new(&mut layer);
            tar.follow_symlinks(false);
            tar.append_dir_all(".", &root).unwrap();
            tar.finish().unwrap();
        }
        let config = RunConfig { cmd: vec!["/bin/sh".into()], env: vec!["PATH=/bin".into()], ..RunConfig::default() };
        self.node().images().import_layer_image("test/busybox:1", layer, config).await.unwrap();
    }

    pub async fn namespace(&self, name: &str) {
        let namespace: Namespace = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
        let _ = Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await;
        let account: ServiceAccount = serde_json::from_value(json!({ "metadata": { "name": "default" } })).unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), name);
        let _ = accounts.create(&PostParams::default(), &account).await;
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Creates a pod with one container `main` running a shell script, changed by `with`.
    pub async fn run(&self, name: &str, script: &str, with: impl FnOnce(&mut Value)) -> Pod {
        self.namespace("default").await;
        let mut pod = json!({
            "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "nodeName": self.config.node_name,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": "main",
                    "image": "test/busybox:1",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["/bin/sh", "-c", script],
                }],
            },
        });
        with(&mut pod);
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.pods().create(&PostParams::default(), &pod).await.unwrap()
    }

    pub async fn until(&self, name: &str, what: &str, condition: impl Fn(&Pod) -> bool) -> Pod {
        let test = |pod: Option<&Pod>| pod.is_some_and(&condition);
        match tokio::time::timeout(PATIENCE, await_condition(self.pods(), name, test)).await {
            Ok(Ok(Some(pod))) => pod,
            other => {
                let pod = self.pods().get_opt(name).await;
                panic!("{what}: {other:?}\n{}", serde_json::to_string_pretty(&pod.unwrap()).unwrap());
            }
        }
    }

    pub async fn until_phase(&self, name: &str, phase: &str) -> Pod {
        let reached = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase);
        self.until(name, phase, reached).await
    }

    pub async fn logs(&self, name: &str, container: &str) -> String {
        use futures::TryStreamExt;
        let stream = self.node().logs("default", name, container, Default::default()).await.unwrap();
        let pieces: Vec<bytes::Bytes> = stream.try_collect().await.unwrap();
        String::from_utf8(pieces.concat()).unwrap()
    }

    /// The first line that a container writes, which may come after it is said to run.
    pub async fn first_line(&self, name: &str, container: &str) -> String {
        use futures::TryStreamExt;
        let options = LogOptions { follow: true, ..Default::default() };
        let mut stream = self.node().logs("default", name, container, options).await.unwrap();
        let mut text = String::new();
        let read = async {
            while !text.contains('\n')
                && let Some(piece) = stream.try_next().await.unwrap()
            {
                text.push_str(&String::from_utf8_lossy(&piece));
            }
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap();
        text.lines().next().unwrap_or_default().to_owned()
    }

    pub async fn delete(&self, name: &str) {
        self.pods().delete(name, &DeleteParams::default()).await.unwrap();
        let gone = |pod: Option<&Pod>| pod.is_none();
        tokio::time::timeout(PATIENCE, await_condition(self.pods(), name, gone)).await.unwrap().unwrap();
    }

    pub async fn stop(mut self) {
        self.crash().await;
        Node::reset(&self.config).await.unwrap();
        let _ = umount2(&self.config.data_dir, MntFlags::MNT_DETACH);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = self.dir.path().to_str().unwrap();
        assert!(!mounts.contains(own), "mounts stay");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // A test failed: its containers, mounts and links must not stay.
        self.tasks.stop();
        let config = self.config.clone();
        let cleanup = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Node::reset(&config)).map_err(|error| error.to_string())
        });
        if let Ok(Err(error)) = cleanup.join() {
            eprintln!("clean-up: {error}");
        }
        let _ = umount2(&self.config.data_dir, MntFlags::MNT_DETACH);
    }
}

/// Its container `main` is waiting for this reason.
pub fn waits_for(pod: &Pod, reason: &str) -> bool {
    let all = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let mut waiting =
        all.filter(|s| s.name == "main").filter_map(|s| s.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
    waiting.any(|w| w == reason)
}

pub fn is_ready(pod: &Pod) -> bool {
    pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()).any(|s| s.name == "main" && s.ready)
}

/// Waits for what has no event, with a limit.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

/// `status.containerStatuses[main]`.
pub fn main_status(pod: &Pod) -> &k8s_openapi::api::core::v1::ContainerStatus {
    let all = pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap();
    all.iter().find(|s| s.name == "main").unwrap()
}

pub fn exit_code(pod: &Pod) -> i32 {
    main_status(pod).state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code
}
