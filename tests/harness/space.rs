//! A namespace of a test's own and kubectl pointed at it. Guarantee: the namespace goes when the value is dropped, also
//! when the test fails; nobody waits for it.

use crate::{Conversation, Output, TestBox, cache_dir, run_with_input};
use anyhow::Context;
use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

pub struct Space {
    pub name: String,
    program: PathBuf,
    dir: tempfile::TempDir,
    config: PathBuf,
    /// Of the cluster, to be deleted at the end.
    made: RefCell<Vec<String>>,
}

impl Space {
    /// With kubectl 1.37.
    pub fn new(b: &TestBox, prefix: &str) -> anyhow::Result<Self> {
        Self::with_program(b, prefix, "kubectl")
    }

    /// With a kubectl of `scripts/setup clients`, by its name there.
    pub fn with_program(b: &TestBox, prefix: &str, program: &str) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new().prefix("kfbox-it-space-").tempdir()?;
        let config = dir.path().join("kubeconfig");
        b.kfbox_ok(&["kubeconfig", "--output", config.to_str().context("path")?])?;
        let space = Self {
            name: format!("{prefix}-{}-{count}", std::process::id()),
            program: cache_dir().join("bin").join(program),
            dir,
            config,
            made: RefCell::default(),
        };
        space.ok(&format!("create namespace {}", space.name))?;
        space.ok(&format!("config set-context --current --namespace {}", space.name))?;
        Ok(space)
    }

    /// Something outside the namespace, such as `crd/widgets.example.org`, that goes with it.
    pub fn goes_too(&self, what: impl Into<String>) {
        self.made.borrow_mut().push(what.into());
    }

    /// A folder of the test's own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.config
    }

    /// A file in the test's own folder; its path.
    pub fn file(&self, name: &str, content: &str) -> anyhow::Result<String> {
        let path = self.dir().join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&path, content)?;
        Ok(path.to_str().context("path")?.to_owned())
    }

    /// Any program, with the credentials, the namespace in NAMESPACE and caches and settings of its own.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .env("KUBECONFIG", &self.config)
            .env("NAMESPACE", &self.name)
            .env("KUBECACHEDIR", self.dir().join("cache"))
            .env("HOME", self.dir())
            .current_dir(self.dir());
        command
    }

    /// kubectl with arguments that hold no spaces.
    pub fn kubectl(&self, line: &str) -> Command {
        let mut command = self.command(&self.program);
        command.args(line.split_whitespace());
        command
    }

    pub fn run(&self, line: &str) -> anyhow::Result<Output> {
        run_with_input(&mut self.kubectl(line), "")
    }

    /// What kubectl prints when it succeeds, as it must.
    pub fn ok(&self, line: &str) -> anyhow::Result<String> {
        Ok(self.run(line)?.ok().with_context(|| format!("kubectl {line}"))?.stdout)
    }

    /// As `ok`, with more arguments, which may hold spaces.
    pub fn ok_with(&self, line: &str, more: &[&str]) -> anyhow::Result<String> {
        let output = run_with_input(self.kubectl(line).args(more), "")?;
        Ok(output.ok().with_context(|| format!("kubectl {line} {more:?}"))?.stdout)
    }

    /// What kubectl says on standard error when it fails, as it must.
    pub fn refused(&self, line: &str) -> anyhow::Result<String> {
        let output = self.run(line)?;
        anyhow::ensure!(output.code != Some(0), "kubectl {line} succeeded: {output:?}");
        Ok(output.stderr)
    }

    pub fn input(&self, line: &str, input: &str) -> anyhow::Result<Output> {
        run_with_input(&mut self.kubectl(line), input)
    }

    pub fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        Ok(self.input("apply -f -", manifest)?.ok().context("kubectl apply")?.stdout)
    }

    /// The value of a JSONPath.
    pub fn value(&self, what: &str, path: &str) -> anyhow::Result<String> {
        self.ok_with(&format!("get {what} -o"), &[&format!("jsonpath={path}")])
    }

    /// kubectl while it runs.
    pub fn start(&self, line: &str) -> anyhow::Result<Conversation> {
        Conversation::start(&mut self.kubectl(line))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for what in ["all", "events"] {
                if let Ok(output) = self.run(&format!("get {what} -o wide")) {
                    eprintln!("---- {what}\n{}{}", output.stdout, output.stderr);
                }
            }
        }
        let made = self.made.take().join(" ");
        match self.run(&format!("delete namespace/{} {made} --wait=false --ignore-not-found", self.name)) {
            Ok(output) if output.code == Some(0) => {}
            other => eprintln!("the namespace was not deleted: {other:?}"),
        }
    }
}
