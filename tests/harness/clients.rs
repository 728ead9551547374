//! Client programs, run to their end.

use anyhow::{Context, bail};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What a program printed and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// None when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Fails with everything the program said unless it exited 0.
    pub fn ok(self) -> anyhow::Result<Self> {
        if self.code != Some(0) {
            bail!("exit {:?}\n{}\n{}", self.code, self.stdout, self.stderr);
        }
        Ok(self)
    }
}

pub fn run(command: &mut Command) -> anyhow::Result<Output> {
    run_with_input(command, "")
}

pub fn run_with_input(command: &mut Command, input: &str) -> anyhow::Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input closes the pipe; that is its right.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    Ok(Output {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Where `scripts/setup` keeps clients and images.
pub fn cache_dir() -> PathBuf {
    std::env::var_os("KFBOX_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/kfbox"),
        PathBuf::from,
    )
}

/// A Python environment that `scripts/setup clients` made.
pub enum Python {
    /// kfp, boto3, kubernetes, minio
    Clients,
    /// kfp 1.8's API client
    KfpV1,
    /// ml-metadata
    Mlmd,
}

impl Python {
    /// A script of `tests/clients/` or `scripts/`, by its path from the project's root.
    pub fn script(&self, script: &str) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut command = Command::new(self.program());
        command.arg(root.join(script));
        command
    }

    pub fn program(&self) -> PathBuf {
        let name = match self {
            Self::Clients => "venv-clients",
            Self::KfpV1 => "venv-kfp-v1",
            Self::Mlmd => "venv-mlmd",
        };
        cache_dir().join(name).join("bin/python")
    }
}
