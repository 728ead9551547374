//! The program inside every pipeline container, a static one that any image can run: it asks the daemon what to do,
//! fetches the inputs, runs the user's command, uploads the outputs and reports. It does what `kfp-launcher` does
//! upstream (`backend/src/v2/component/launcher_v2.go`).
//!
//! Guarantees: the user's command runs at most once; a daemon that restarts meanwhile is waited for; the report is
//! repeated until it is answered; the exit code is the command's. Assumption: `KFBOX_TASK_URL` and `KFBOX_TASK_TOKEN`
//! are this attempt's. Architecture Invariant: blocking code on the standard library; no asynchronous runtime, no TLS
//! (the daemon is on the other end of a local bridge).

mod child;
mod http;
mod transfer;

use child::Outcome;
use http::{Client, HttpError};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, io::Read, os::unix::fs::PermissionsExt, path::Path, process::ExitCode};

/// Exit code when the step could not be run or its outputs not be handed over; the command's own codes come first.
const PLATFORM_FAILURE: u8 = 125;
/// The attempt is over for the daemon; nobody waits for what it would make.
const OBSOLETE: u8 = 124;
/// An output parameter, or the executor's metadata: parameters are values, not data sets.
const MAX_VALUE: u64 = 8 << 20;

/// The daemon's `engine/steps.rs` names it.
const ONLY_FETCH: &str = "--only-fetch";

/// The step's own command, for somebody who looks into it; `kfbox pipelines debug` waits for it.
const SCRIPT: &str = "/tmp/kfbox-step.sh";

macro_rules! say {
    ($($what:tt)*) => { eprintln!("[kfbox] {}", format_args!($($what)*)) };
}
pub(crate) use say;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Http(#[from] HttpError),
    #[error("this attempt is not running any more")]
    Obsolete,
    #[error("{what}: {source}")]
    File {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Unfit(String),
}

impl Failure {
    pub(crate) fn file(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::File { what, source }
    }
}

/// What the daemon says to do; the daemon's `task_api` writes it.
#[derive(Debug, Deserialize)]
pub(crate) struct Task {
    pub name: String,
    pub command: Vec<String>,
    pub inputs: Vec<Input>,
    pub outputs: Outputs,
    /// Somebody looks into the step with a shell of their own: nothing is run, nothing is reported.
    #[serde(default)]
    pub debug: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Input {
    pub name: String,
    pub uri: String,
    /// Where the step expects it; none when its address has no place in a container.
    pub path: Option<String>,
    /// None when the daemon does not fetch it.
    pub files: Option<Vec<InputFile>>,
    /// Why it does not.
    #[serde(default)]
    pub problem: Option<String>,
    /// The step is not to run without it.
    #[serde(default)]
    pub fatal: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct InputFile {
    /// Below the artifact; empty when the artifact is one file.
    pub path: String,
    pub size: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Outputs {
    /// Where the SDK's executor writes its `ExecutorOutput`.
    pub file: String,
    pub root: String,
    /// Output parameters and their files.
    pub parameters: BTreeMap<String, String>,
    pub artifacts: Vec<Output>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Output {
    pub name: String,
    pub uri: String,
    pub path: String,
}

/// Reads the environment and runs; the only place that does.
#[expect(clippy::disallowed_methods, reason = "this is the program's entry")]
pub fn main() -> ExitCode {
    // The command of a step whose whole work is that its inputs are fetched.
    if std::env::args().nth(1).as_deref() == Some(ONLY_FETCH) {
        return ExitCode::SUCCESS;
    }
    // Before any thread starts, so that all inherit it: signals are taken by one thread that hands them on.
    let signals = child::hold_signals();
    let (Ok(url), Ok(token)) = (std::env::var("KFBOX_TASK_URL"), std::env::var("KFBOX_TASK_TOKEN")) else {
        say!("KFBOX_TASK_URL and KFBOX_TASK_TOKEN are not set: this program runs in the pods of kfbox's pipelines");
        return ExitCode::from(2);
    };
    match Client::new(&url, token) {
        Ok(client) => ExitCode::from(run(&client.with_credentials(|variable| std::env::var(variable).ok()), signals)),
        Err(error) => {
            say!("KFBOX_TASK_URL: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(client: &Client, signals: child::Signals) -> u8 {
    let task = match client.get_json("").map_err(Failure::from).and_then(|v| {
        serde_json::from_value::<Task>(v)
            .map_err(|e| Failure::Unfit(format!("the daemon's answer cannot be read; is it of another version? {e}")))
    }) {
        Ok(task) => task,
        Err(error) => {
            say!("the task cannot be fetched: {error}");
            return if matches!(error, Failure::Http(HttpError::Gone)) { OBSOLETE } else { PLATFORM_FAILURE };
        }
    };
    if task.debug {
        return hold(client, &task, signals);
    }
    match attempt(client, &task, signals) {
        Ok((outcome, report)) => {
            if let Err(error) = client.post_json("/result", &report) {
                say!("the result of {} cannot be reported: {error}", task.name);
                return if matches!(error, HttpError::Gone) { OBSOLETE } else { PLATFORM_FAILURE };
            }
            match outcome {
                Outcome::Exited(code) => code,
                Outcome::Signaled(signal) => 128u8.saturating_add(u8::try_from(signal).unwrap_or(0)),
            }
        }
        Err(error) => {
            say!("{error}");
            let report = json!({"succeeded": false, "message": error.to_string()});
            if let Err(error) = client.post_json("/result", &report) {
                say!("the failure cannot be reported: {error}");
            }
            PLATFORM_FAILURE
        }
    }
}

/// Puts the inputs where the step finds them and its command into [`SCRIPT`], then waits to be ended.
fn hold(client: &Client, task: &Task, signals: child::Signals) -> u8 {
    let ready = || -> Result<(), Failure> {
        for (index, input) in task.inputs.iter().enumerate() {
            transfer::fetch(client, index, input)?;
        }
        prepare(&task.outputs)?;
        let words: Vec<String> = task.command.iter().map(|w| format!("'{}'", w.replace('\'', r"'\''"))).collect();
        let failed = |what: &str| Failure::file(format!("{SCRIPT} cannot be {what}"));
        fs::create_dir_all("/tmp").map_err(failed("written"))?;
        // Renamed, so that who waits for it finds it whole.
        let partial = format!("{SCRIPT}.partial");
        fs::write(&partial, format!("#!/bin/sh\nexec {}\n", words.join(" "))).map_err(failed("written"))?;
        fs::set_permissions(&partial, PermissionsExt::from_mode(0o755)).map_err(failed("made a program"))?;
        fs::rename(&partial, SCRIPT).map_err(failed("written"))
    };
    if let Err(error) = ready() {
        say!("{error}");
        return PLATFORM_FAILURE;
    }
    say!("the step's inputs are there; its command is {SCRIPT}");
    signals.wait();
    0
}

/// From inputs to a report. An error here is the platform's or the outputs', not the command's.
fn attempt(client: &Client, task: &Task, signals: child::Signals) -> Result<(Outcome, Value), Failure> {
    let mut unfetched = Vec::new();
    for (index, input) in task.inputs.iter().enumerate() {
        unfetched.extend(transfer::fetch(client, index, input)?);
    }
    // A command that fails may have missed them.
    let unfetched = unfetched.join("; ");
    prepare(&task.outputs)?;
    let outcome = child::run(&task.command, signals).map_err(Failure::file(format!(
        "the command {} cannot be started",
        task.command.first().map_or("", String::as_str)
    )))?;
    let report = match outcome {
        Outcome::Exited(0) => collect(client, &task.outputs)?,
        Outcome::Exited(code) => json!({"succeeded": false, "exitCode": code, "message": unfetched}),
        Outcome::Signaled(signal) => {
            json!({"succeeded": false, "exitCode": 128 + signal, "signal": signal, "message": unfetched})
        }
    };
    Ok((outcome, report))
}

/// The folders that the command writes into.
fn prepare(outputs: &Outputs) -> Result<(), Failure> {
    let files = outputs.parameters.values().chain(outputs.artifacts.iter().map(|a| &a.path)).chain([&outputs.file]);
    for file in files {
        if let Some(folder) = Path::new(file).parent() {
            fs::create_dir_all(folder)
                .map_err(Failure::file(format!("the folder {} cannot be created", folder.display())))?;
        }
    }
    Ok(())
}

fn read_value(path: &str) -> Result<Option<String>, Failure> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::file(format!("{path} cannot be read"))(error)),
    };
    let mut content = Vec::new();
    file.take(MAX_VALUE + 1).read_to_end(&mut content).map_err(Failure::file(format!("{path} cannot be read")))?;
    if content.len() as u64 > MAX_VALUE {
        return Err(Failure::Unfit(format!(
            "{path} is larger than {} MiB; a parameter is a value, write data to an artifact",
            MAX_VALUE >> 20
        )));
    }
    String::from_utf8(content).map(Some).map_err(|_| Failure::Unfit(format!("{path} is not UTF-8 text")))
}

/// Reads what the command gave and uploads its artifacts; the report says the rest.
fn collect(client: &Client, outputs: &Outputs) -> Result<Value, Failure> {
    let metadata = match read_value(&outputs.file)? {
        None => Value::Null,
        Some(text) => {
            serde_json::from_str(&text).map_err(|e| Failure::Unfit(format!("{} is no JSON: {e}", outputs.file)))?
        }
    };
    let mut parameters = BTreeMap::new();
    for (name, path) in &outputs.parameters {
        if metadata.get("parameterValues").and_then(|p| p.get(name)).is_some() {
            continue;
        }
        if let Some(text) = read_value(path)? {
            parameters.insert(name, text);
        }
    }
    for output in &outputs.artifacts {
        let told = metadata
            .get("artifacts")
            .and_then(|a| a.get(&output.name))
            .and_then(|l| l.get("artifacts"))
            .and_then(|l| l.get(0));
        let text = |names: [&str; 2]| names.iter().find_map(|n| told?.get(n)?.as_str()).filter(|t| !t.is_empty());
        let uri = text(["uri", "uri"]).unwrap_or(&output.uri);
        let custom = text(["custom_path", "customPath"]);
        transfer::store(client, output, uri, custom, &outputs.root)?;
    }
    Ok(json!({"succeeded": true, "exitCode": 0, "executorOutput": metadata, "parameters": parameters}))
}
