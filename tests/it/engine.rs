//! The pipeline engine in real containers: upstream's samples, all that a task can ask of Kubernetes, what it refuses, and
//! that it goes on after `kill -9` as if nothing had been.

mod compilers;
mod debug;
mod executor_input;
mod hostile;
mod inside;
mod killed;
mod lost;
mod modelcar;
mod platform;
mod refused;
mod samples;

use kfbox_tests::{Python, TestBox, run_with_input};
use serde_json::Value;

/// Runs a script of `tests/clients` that speaks with the pipelines' API; its last line.
fn client(b: &TestBox, script: &str, arguments: &[&str], input: &str) -> anyhow::Result<Value> {
    let token = b.kfbox_ok(&["token", "--name", "tests", "--expires", "2h"])?;
    let mut command = Python::Clients.script(&format!("tests/clients/{script}"));
    command
        .args(["--host", &format!("{}/pipeline", b.url()?), "--token", token.trim(), "--namespace", &b.namespace()])
        .args(arguments);
    let output = run_with_input(&mut command, input)?.ok()?;
    let last = output.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|e| anyhow::anyhow!("{e}: {output:?}"))
}

/// Objects in the first user's namespace, deleted when dropped.
struct Made<'b> {
    b: &'b TestBox,
    names: Vec<String>,
}

impl<'b> Made<'b> {
    fn new(b: &'b TestBox) -> Self {
        Self { b, names: Vec::new() }
    }

    /// `kubectl create KIND NAME ...`
    fn create(&mut self, kind: &str, name: &str, content: &[&str]) -> anyhow::Result<()> {
        let namespace = self.b.namespace();
        let mut arguments = vec!["create", "-n", &namespace];
        arguments.extend(kind.split(' '));
        arguments.push(name);
        arguments.extend(content);
        self.b.kubectl(&arguments)?.ok()?;
        self.names.push(format!("{}/{name}", kind.split(' ').next().unwrap_or_default()));
        Ok(())
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        let namespace = self.b.namespace();
        let mut arguments = vec!["delete", "-n", &namespace, "--wait=false", "--ignore-not-found"];
        arguments.extend(self.names.iter().map(String::as_str));
        match self.b.kubectl(&arguments) {
            Ok(output) if output.code == Some(0) => {}
            other => eprintln!("{:?} were not deleted: {other:?}", self.names),
        }
    }
}
