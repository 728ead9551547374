//! Real boxes for the integration tests. Guarantees: every box that a test starts is stopped and its network, mounts and
//! control groups are removed when the value is dropped, also when the test fails; boxes of parallel tests never share an
//! address, a bridge or a folder.
//!
//! `scripts/test` starts one box that tests share (`KFBOX_TEST_BOX` names its data directory); without it, a test that
//! asks for the shared box gets one of its own.

mod acme;
mod clients;
mod conversation;
pub mod slapd;
mod slot;
mod space;

pub use acme::{AcmeServer, NAME as ACME_NAME};
pub use clients::{Output, Python, cache_dir, run, run_with_input};
pub use conversation::Conversation;
pub use space::Space;

use anyhow::{Context, bail};
use serde_json::Value;
use slot::Slot;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A box and how to reach it.
pub struct TestBox {
    data_dir: PathBuf,
    owned: Option<Owned>,
    pub user: String,
    pub password: Option<String>,
}

struct Owned {
    slot: Slot,
    /// Where the gateway listens.
    gateway: String,
    _dir: tempfile::TempDir,
}

impl TestBox {
    /// The box that tests share, for those that neither stop it nor count what is on it.
    pub fn shared() -> anyhow::Result<Self> {
        match std::env::var_os("KFBOX_TEST_BOX") {
            Some(dir) => {
                let data_dir = PathBuf::from(dir);
                let password =
                    std::fs::read_to_string(data_dir.join("test-password")).ok().map(|p| p.trim().to_owned());
                Ok(Self { data_dir, owned: None, user: "user@example.com".into(), password })
            }
            None => {
                let mut own = Self::start()?;
                own.load_python_image()?;
                own.user = "user@example.com".into();
                Ok(own)
            }
        }
    }

    /// A new box of the test's own, ready.
    pub fn start() -> anyhow::Result<Self> {
        let mut prepared = Self::prepare()?;
        prepared.up(&[])?;
        Ok(prepared)
    }

    /// A box that was never started.
    pub fn prepare() -> anyhow::Result<Self> {
        let slot = Slot::take()?;
        let dir = tempfile::Builder::new().prefix("kfbox-it-").tempdir()?;
        let data_dir = dir.path().join("data");
        Ok(Self {
            data_dir,
            owned: Some(Owned { slot, gateway: "127.0.0.1:0".into(), _dir: dir }),
            user: "user@example.com".into(),
            password: None,
        })
    }

    /// `kfbox up` with this box's settings and `more`; returns what it printed.
    pub fn up(&mut self, more: &[&str]) -> anyhow::Result<Output> {
        let mut args: Vec<String> = vec!["up".into()];
        args.extend(self.settings());
        args.extend(more.iter().map(|s| (*s).to_owned()));
        let output = self.kfbox(&args)?.ok()?;
        if let Some(line) = output.stdout.lines().find_map(|l| l.trim().strip_prefix("Password")) {
            self.password = Some(line.trim().to_owned());
        }
        Ok(output)
    }

    /// The settings that keep this box apart from all others.
    pub fn settings(&self) -> Vec<String> {
        let Some(owned) = &self.owned else { return Vec::new() };
        let n = owned.slot.number();
        let flag = |name: &str, value: String| [format!("--{name}"), value];
        [
            flag("instance", format!("kfit{n}")),
            flag("address", owned.gateway.clone()),
            flag("kubernetes-address", "127.0.0.1:0".into()),
            flag("objects-address", "127.0.0.1:0".into()),
            flag("metadata-address", "127.0.0.1:0".into()),
            flag("registry-address", "127.0.0.1:0".into()),
            flag("pod-cidr", format!("10.{}.0.0/24", 150 + n)),
            flag("service-cidr", format!("10.{}.0.0/24", 200 + n)),
        ]
        .concat()
    }

    /// Where the gateway shall listen from the next start on, when any port will not do.
    pub fn listen_at(&mut self, address: &str) {
        if let Some(owned) = &mut self.owned {
            address.clone_into(&mut owned.gateway);
        }
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Runs `kfbox ARGS` against this box.
    pub fn kfbox<S: AsRef<str>>(&self, args: &[S]) -> anyhow::Result<Output> {
        let mut command = Command::new(program()?);
        command.args(args.iter().map(AsRef::as_ref)).env("KFBOX_DATA_DIR", &self.data_dir);
        run(&mut command)
    }

    /// `kfbox ARGS`, which must succeed; its standard output.
    pub fn kfbox_ok(&self, args: &[&str]) -> anyhow::Result<String> {
        Ok(self.kfbox(args)?.ok()?.stdout)
    }

    pub fn status(&self) -> anyhow::Result<Value> {
        let output = self.kfbox(&["status", "--output", "json"])?;
        serde_json::from_str(&output.stdout).with_context(|| format!("status: {output:?}"))
    }

    pub fn url(&self) -> anyhow::Result<String> {
        Ok(self.status()?["url"].as_str().context("no url in status")?.to_owned())
    }

    pub fn address(&self, name: &str) -> anyhow::Result<String> {
        let status = self.status()?;
        Ok(status["addresses"][name].as_str().with_context(|| format!("no address {name} in {status}"))?.to_owned())
    }

    pub fn pid(&self) -> anyhow::Result<i32> {
        Ok(self.status()?["pid"].as_i64().context("no pid in status")?.try_into()?)
    }

    /// `kill -9` of the daemon, and of nothing else; returns when it is gone.
    pub fn kill_daemon(&self) -> anyhow::Result<()> {
        let pid = self.pid()?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        wait_until(Duration::from_secs(10), "the daemon's end", || {
            // A zombie whose parent has not looked yet is as dead.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            Ok((stat.is_empty() || stat.contains(") Z ")).then_some(()))
        })
    }

    pub fn kubeconfig(&self) -> anyhow::Result<PathBuf> {
        let path = self.scratch()?.join("kubeconfig");
        self.kfbox_ok(&["kubeconfig", "--output", path.to_str().context("path")?])?;
        Ok(path)
    }

    /// Runs kubectl with the administrator's credentials.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<Output> {
        self.kubectl_with_input(args, "")
    }

    pub fn kubectl_with_input(&self, args: &[&str], input: &str) -> anyhow::Result<Output> {
        let mut command = Command::new(cache_dir().join("bin/kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig()?).args(args);
        run_with_input(&mut command, input)
    }

    pub fn load_python_image(&self) -> anyhow::Result<()> {
        self.load_image("python-3.11", "python")
    }

    /// An image of `scripts/build-images`, by its file's name and its folder in `images/`.
    pub fn load_image(&self, file: &str, recipe: &str) -> anyhow::Result<()> {
        let archive = cache_dir().join(format!("images/{file}.oci.tar"));
        if !archive.exists() {
            bail!("{} is missing; next: scripts/build-images {recipe}", archive.display());
        }
        self.kfbox_ok(&["image", "load", archive.to_str().context("path")?])?;
        Ok(())
    }

    /// The first user's namespace.
    pub fn namespace(&self) -> String {
        "kubeflow-user-example-com".into()
    }

    /// A folder for a test's own files, gone with the test run.
    pub fn scratch(&self) -> anyhow::Result<PathBuf> {
        let dir = std::env::temp_dir().join(format!("kfbox-it-scratch-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// `kfbox reset`, which the end of a box of one's own does anyway.
    pub fn reset(&self) -> anyhow::Result<Output> {
        let mut args: Vec<String> = vec!["reset".into(), "--yes".into()];
        args.extend(self.settings());
        self.kfbox(&args)
    }

    /// The daemon's last words, for a failing test's message.
    pub fn log(&self) -> String {
        self.kfbox(&["logs", "-n", "60"]).map(|o| o.stdout).unwrap_or_default()
    }
}

impl Drop for TestBox {
    fn drop(&mut self) {
        if self.owned.is_none() {
            return;
        }
        if std::thread::panicking() {
            eprintln!("---- the daemon's log\n{}", self.log());
        }
        match self.reset() {
            Ok(output) if output.code == Some(0) => {}
            other => eprintln!("the box was not cleaned up: {other:?}"),
        }
    }
}

/// The program under test: beside the test binary, or as `KFBOX_BIN` says.
pub fn program() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("KFBOX_BIN") {
        return Ok(path.into());
    }
    let exe = std::env::current_exe()?;
    let folder = exe.parent().and_then(Path::parent).context("the test binary lies in deps/")?;
    let program = folder.join("kfbox");
    if !program.exists() {
        bail!("{} is missing; next: cargo build -p kfbox", program.display());
    }
    Ok(program)
}

/// Asks `condition` until it gives a value; an error or the deadline fails with what was waited for.
pub fn wait_until<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("{what} did not come within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A command's process that is killed when dropped.
pub struct Running(pub std::process::Child);

impl Running {
    pub fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        Ok(Self(command.stdin(Stdio::null()).spawn()?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
