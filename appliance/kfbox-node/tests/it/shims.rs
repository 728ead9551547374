//! The shim by itself: create, log, exit code, failure, kill, exec; and how long it takes beside crun.

use crate::world::{busybox, eventually, unique};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use kfbox_base::Tasks;
use kfbox_node::{
    Outcome,
    cgroup::Hierarchies,
    oci::{self, ImageDefaults, Input, PodNamespaces, capabilities::Available, identity::Identity},
    runtime::{Found, Runtime, Stage},
    shim::records::{self, Overlay, SHIM_CONFIG, ShimConfig},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Bench {
    dir: tempfile::TempDir,
    runtime: Runtime,
    cgroup: String,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        busybox(&dir.path().join("lower"));
        let runtime = Runtime {
            shim_executable: kfbox_node::program::install(&dir.path().join("shim")).unwrap(),
            runtime_root: dir.path().join("run"),
            hierarchies: Arc::new(Hierarchies::detect()),
            tasks: Tasks::new(),
        };
        Self { dir, runtime, cgroup: format!("/kfshim{}", unique()) }
    }

    fn prepare(&self, name: &str, args: &[&str], tty: bool) -> PathBuf {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        let cgroup = format!("{}/{name}", self.cgroup);
        let container = Container { tty: Some(tty), ..Container::default() };
        let image = ImageDefaults::default();
        let spec = oci::spec(&Input {
            pod: &PodSpec::default(),
            container: &container,
            image: &image,
            identity: &Identity::default(),
            env: &[("PATH".into(), "/bin".into())],
            command: args.iter().map(|s| (*s).to_owned()).collect(),
            binds: &[],
            namespaces: &PodNamespaces::default(),
            rootfs: &dir.join("rootfs"),
            shm: None,
            cgroup: &cgroup,
            unified_cgroups: self.runtime.hierarchies.unified(),
            pids_limit: None,
            available: Available::of_this_process(),
            host_devices: &[],
        })
        .unwrap();
        let config = ShimConfig {
            id: format!("{name:0<64}"),
            runtime_root: self.runtime.runtime_root.clone(),
            overlay: Some(Overlay {
                lower: vec![self.dir.path().join("lower")],
                upper: dir.join("upper"),
                work: dir.join("work"),
                target: dir.join("rootfs"),
            }),
            users: None,
            log_path: dir.join("log"),
            log_max_bytes: 1 << 20,
            log_max_files: 2,
            cgroup,
            oom_score_adj: 100,
            stdin: true,
            stdin_once: true,
            tty,
            uid: 0,
            stop_signal: 15,
            termination_log: dir.join("termination-log"),
        };
        records::write(&dir.join("config.json"), &spec).unwrap();
        records::write(&dir.join(SHIM_CONFIG), &config).unwrap();
        dir
    }

    fn log(&self, dir: &Path) -> Vec<String> {
        let text = fs::read_to_string(dir.join("log")).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for child in self.runtime.hierarchies.children(&self.cgroup) {
            for pid in self.runtime.hierarchies.processes(&format!("{}/{child}", self.cgroup)) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        let _ = self.runtime.hierarchies.remove(&self.cgroup);
    }
}

#[tokio::test]
async fn a_container_whose_daemon_was_killed_meanwhile_is_not_lost() {
    let bench = Bench::new();
    // Nobody listens any more when the shim would say that the container runs.
    let dir = bench.prepare("c", &["sh", "-c", "echo out; sleep 0.2; exit 7"], false);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut shim = tokio::process::Command::new(&bench.runtime.shim_executable);
    shim.args(["--state-dir".as_ref(), dir.as_os_str()]).current_dir(&dir).stdout(writer);
    let mut shim = shim.spawn().unwrap();
    let come = |dir: &Path| fs::read(dir.join("lock")).is_ok_and(|who| !who.is_empty());
    eventually("the shim has come", || come(&dir)).await;
    let Found::Container(mut handle) = bench.runtime.adopt(&dir).await.unwrap() else { panic!("lost") };
    assert_eq!(handle.ended().await.code, 7);
    assert!(shim.wait().await.unwrap().success());
    assert_eq!(bench.log(&dir), ["stdout F out"]);

    // One that cannot be created is found with its reason.
    let dir = bench.prepare("d", &["/no/such/program"], false);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut shim = tokio::process::Command::new(&bench.runtime.shim_executable);
    shim.args(["--state-dir".as_ref(), dir.as_os_str()]).current_dir(&dir).stdout(writer);
    let mut shim = shim.spawn().unwrap();
    eventually("the shim has come", || come(&dir)).await;
    let Found::Container(mut handle) = bench.runtime.adopt(&dir).await.unwrap() else { panic!("lost") };
    let exit = handle.ended().await;
    assert!(exit.code == 127 || exit.failure.is_some(), "{exit:?}");
    shim.wait().await.unwrap();
    eventually("no cgroup stays", || bench.runtime.hierarchies.children(&bench.cgroup).is_empty()).await;
}

#[tokio::test]
async fn a_shim_that_comes_too_late_runs_nothing() {
    let bench = Bench::new();
    let dir = bench.prepare("c", &["sh", "-c", "exit 7"], false);
    let begin = |dir: &Path| {
        // Launched, but not yet there: a loaded machine.
        let mut command = tokio::process::Command::new("/bin/sh");
        let script =
            format!("read word; exec {} --state-dir {}", bench.runtime.shim_executable.display(), dir.display());
        command.args(["-c", &script]).current_dir(dir).stdin(std::process::Stdio::piped());
        command.stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let (mut first, mut second) = (begin(&dir), begin(&dir));
    assert!(matches!(bench.runtime.adopt(&dir).await.unwrap(), Found::NeverRan));
    assert!(!dir.exists());
    async fn go(shim: &mut tokio::process::Child) {
        shim.stdin.take().unwrap().write_all(b"go\n").await.unwrap();
    }
    go(&mut first).await;
    assert!(!first.wait().await.unwrap().success(), "its folder is gone");
    // The attempt is made again under the same name.
    bench.prepare("c", &["sh", "-c", "exit 8"], false);
    go(&mut second).await;
    assert!(!second.wait().await.unwrap().success(), "that is not its folder");
    assert!(!dir.join("started.json").exists() && !dir.join("lock").exists());
    let mut handle = bench.runtime.launch(&dir).unwrap();
    assert_eq!(handle.ended().await.code, 8);
}

#[tokio::test]
async fn log_and_exit_code_are_kept() {
    let bench = Bench::new();
    let dir = bench.prepare("c", &["sh", "-c", "echo out; echo err >&2; yes | head -1; printf end; exit 3"], false);
    let mut handle = bench.runtime.launch(&dir).unwrap();
    let exit = handle.ended().await;
    assert_eq!((exit.code, exit.signal, exit.failure.as_deref()), (3, None, None));
    let mut log = bench.log(&dir);
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F end", "stdout F out", "stdout F y"]);
    eventually("its cgroup is gone", || bench.runtime.hierarchies.children(&bench.cgroup).is_empty()).await;
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(dir.to_str().unwrap()), "no mount is left");
    let Found::Container(found) = bench.runtime.adopt(&dir).await.unwrap() else { panic!() };
    assert_eq!(found.stage(), Stage::Ended(exit));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_reported_by_name() {
    let bench = Bench::new();
    let dir = bench.prepare("c", &["no-such-program"], false);
    let exit = bench.runtime.launch(&dir).unwrap().ended().await;
    assert_eq!(exit.code, 128);
    assert!(exit.failure.as_deref().unwrap().contains("no-such-program"), "{exit:?}");
}

#[tokio::test]
async fn a_second_daemon_takes_over_and_a_killed_shim_takes_its_container_along() {
    let bench = Bench::new();
    let dir = bench.prepare("c", &["sleep", "1000"], false);
    let mut handle = bench.runtime.launch(&dir).unwrap();
    let Stage::Running(started) = handle.launched().await else { panic!("{:?}", handle.stage()) };
    let status = fs::read_to_string(format!("/proc/{}/smaps_rollup", started.shim.pid)).unwrap();
    let private: u64 = status
        .lines()
        .filter(|line| line.starts_with("Private_Dirty"))
        .filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    println!("a shim keeps {private} KiB of private dirty memory");
    // The first daemon is forgotten.
    bench.runtime.tasks.stop();
    let second = Runtime { tasks: Tasks::new(), ..bench.runtime.clone() };
    let Found::Container(mut found) = second.adopt(&dir).await.unwrap() else { panic!() };
    assert_eq!(found.stage(), Stage::Running(started.clone()));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(started.shim.pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let exit = found.ended().await;
    assert_eq!(exit.code, 137);
    assert!(!started.init.exists() || zombie(started.init.pid), "the container must not outlive its shim unseen");
}

fn zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z "))
}

#[tokio::test]
async fn what_was_prepared_but_never_launched_never_ran() {
    let bench = Bench::new();
    let dir = bench.prepare("c", &["true"], false);
    assert!(matches!(bench.runtime.adopt(&dir).await.unwrap(), Found::NeverRan));
}

#[tokio::test]
async fn signals_end_a_container() {
    let bench = Bench::new();
    let dir = bench.prepare("c", &["sh", "-c", "trap 'exit 7' TERM; echo up; while true; do sleep 0.05; done"], false);
    let mut handle = bench.runtime.launch(&dir).unwrap();
    handle.launched().await;
    // The trap is set once the line is there.
    while bench.log(&dir).is_empty() {
        tokio::task::yield_now().await;
    }
    handle.signal(libc::SIGTERM).unwrap();
    assert_eq!(handle.ended().await.code, 7);
    let dir = bench.prepare("d", &["sleep", "1000"], false);
    let mut handle = bench.runtime.launch(&dir).unwrap();
    handle.launched().await;
    handle.signal(libc::SIGKILL).unwrap();
    let exit = handle.ended().await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
}

#[tokio::test]
async fn another_process_joins_with_streams_and_exit_code() {
    let bench = Bench::new();
    let dir = bench.prepare("c", &["sleep", "1000"], false);
    let mut handle = bench.runtime.launch(&dir).unwrap();
    handle.launched().await;
    let args = ["sh", "-c", "cat; echo err >&2; exit 5"].map(str::to_owned).to_vec();
    let mut session = bench.runtime.exec(&handle.id, args, false, true).unwrap();
    session.stdin.write_all(b"through").await.unwrap();
    drop(session.stdin);
    let (mut out, mut err) = (String::new(), String::new());
    let (a, b) = tokio::join!(session.stdout.read_to_string(&mut out), session.stderr.read_to_string(&mut err));
    a.unwrap();
    b.unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("through", "err\n"));
    assert_eq!(session.exit.await.unwrap(), Outcome::Exited(5));

    let mut session = bench.runtime.exec(&handle.id, vec!["nothing".into()], false, false).unwrap();
    let mut rest = Vec::new();
    session.stdout.read_to_end(&mut rest).await.unwrap();
    assert!(matches!(session.exit.await.unwrap(), Outcome::Failed(why) if why.contains("nothing")));

    // A large output arrives whole, whatever the buffers between.
    let args = ["sh", "-c", "dd if=/dev/zero bs=1024 count=8192 2>/dev/null"].map(str::to_owned).to_vec();
    let mut session = bench.runtime.exec(&handle.id, args, false, false).unwrap();
    let mut all = Vec::new();
    session.stdout.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), 8 << 20);
    handle.signal(libc::SIGKILL).unwrap();
    handle.ended().await;
}

#[tokio::test]
async fn terminals_have_a_size_and_hanging_up_kills() {
    let bench = Bench::new();
    let dir = bench.prepare("c", &["sleep", "1000"], false);
    let mut handle = bench.runtime.launch(&dir).unwrap();
    handle.launched().await;
    let args = ["sh", "-c", "read x; stty size; exit 4"].map(str::to_owned).to_vec();
    let mut session = bench.runtime.exec(&handle.id, args, true, true).unwrap();
    session.resize.send(kfbox_node::TerminalSize { columns: 101, rows: 33 }).await.unwrap();
    session.stdin.write_all(b"go\n").await.unwrap();
    let mut out = Vec::new();
    session.stdout.read_to_end(&mut out).await.unwrap();
    assert!(String::from_utf8_lossy(&out).contains("33 101"), "{}", String::from_utf8_lossy(&out));
    assert_eq!(session.exit.await.unwrap(), Outcome::Exited(4));

    let mut session = bench.runtime.exec(&handle.id, vec!["sleep".into(), "999".into()], false, false).unwrap();
    let cgroup = format!("{}/c", bench.cgroup);
    let deadline = Instant::now() + Duration::from_secs(20);
    // A process that only prepares the command is in the group for a moment: the command itself, and it alone beside the
    // container's own, is what is waited for.
    let settled = || {
        let processes = bench.runtime.hierarchies.processes(&cgroup);
        let command = |pid: &_| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        processes.len() == 2 && processes.iter().any(|pid| command(pid) == b"sleep\x00999\x00")
    };
    while !settled() && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    assert!(settled(), "{:?}", bench.runtime.hierarchies.processes(&cgroup));
    let mut nothing = [0; 1];
    drop(session.exit);
    let _ = session.stdout.read(&mut nothing).await;
    while bench.runtime.hierarchies.processes(&cgroup).len() > 1 && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.runtime.hierarchies.processes(&cgroup).len(), 1, "the process ends with its session");
    handle.signal(libc::SIGKILL).unwrap();
    handle.ended().await;
}

#[tokio::test]
async fn attaching_shows_what_is_written_and_passes_input() {
    let bench = Bench::new();
    let dir = bench.prepare("c", &["sh", "-c", "while read line; do echo got $line; done"], false);
    let mut handle = bench.runtime.launch(&dir).unwrap();
    handle.launched().await;
    let mut session = bench.runtime.attach(&dir).await.unwrap();
    session.stdin.write_all(b"one\n").await.unwrap();
    let mut buffer = [0; 8];
    session.stdout.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"got one\n");
    drop(session);
    // Once only: leaving ends the input, and so the loop.
    assert_eq!(handle.ended().await.code, 0);
    assert_eq!(bench.log(&dir), ["stdout F got one"]);
}

/// Prints figures; asserts nothing about time.
#[tokio::test]
async fn figures_beside_crun() {
    let bench = Bench::new();
    let mut ours = Vec::new();
    for n in 0..20 {
        let dir = bench.prepare(&format!("c{n}"), &["true"], false);
        let began = Instant::now();
        let exit = bench.runtime.launch(&dir).unwrap().ended().await;
        ours.push(began.elapsed());
        assert_eq!(exit.code, 0, "{exit:?}");
    }
    let mut theirs = Vec::new();
    let bundle = bench.prepare("crun", &["true"], false);
    let mut spec: serde_json::Value = records::read(&bundle.join("config.json")).unwrap();
    spec["root"]["path"] = serde_json::json!(bench.dir.path().join("lower"));
    records::write(&bundle.join("config.json"), &spec).unwrap();
    // crun refuses hybrid hierarchies; in a mount namespace without the unified one it runs. The loop is inside, so that
    // only crun itself is measured.
    let script = format!(
        "umount /sys/fs/cgroup/unified 2>/dev/null; for n in $(seq 20); do s=$(date +%s%N); \
         crun run --bundle {} kf-crun-{}-$n || exit 1; echo $(($(date +%s%N) - s)); done",
        bundle.display(),
        unique()
    );
    let output = tokio::process::Command::new("unshare").args(["-m", "sh", "-c", &script]).output().await.unwrap();
    if !output.status.success() {
        println!("crun is not usable here; ours: {:?}", ours[10]);
        return;
    }
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        theirs.push(Duration::from_nanos(line.parse().unwrap()));
    }
    ours.sort();
    theirs.sort();
    println!("create+start+exit of true, median: shim {:?} (with overlay mount), crun {:?}", ours[10], theirs[10]);
}
