//! `kfbox pipelines debug RUN STEP`: the step's container once more, and a shell in it. The pod goes when the shell ends,
//! also when this command is ended by a signal; after a `kill -9` its deadline ends it.

use super::{DebugArgs, run::web::Web};
use crate::{
    control::{Client, Status, TokenRequest, TokenResponse},
    failure::{Code, Failure},
};
use anyhow::Context as _;
use futures::{SinkExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{AttachParams, AttachedProcess, DeleteParams, LogParams, TerminalSize, WatchEvent, WatchParams},
};
use nix::sys::termios::{self, SetArg, Termios};
use serde_json::{Value, json};
use std::{
    io::{IsTerminal as _, Read as _},
    path::PathBuf,
    process::ExitCode,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    signal::unix::{Signal, SignalKind, signal},
};

/// Waits for the launcher to have put the inputs in place, which it says with the step's command in a file.
const OPEN: &str = "until [ -e /tmp/kfbox-step.sh ]; do sleep 0.1; done; exec \"$0\"";
const TOKEN_SECONDS: u64 = 3600;

pub async fn debug(data_dir: PathBuf, user: Option<String>, args: DebugArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&data_dir);
    let status: Status = client.get("/v1/status").await?;
    let request = TokenRequest {
        user,
        name: "kfbox pipelines debug".into(),
        expires_in_seconds: TOKEN_SECONDS,
        scopes: vec!["platform".into()],
    };
    let token: TokenResponse = client.post("/v1/tokens", &request).await?;
    let web = Web::new(&status, token.token)?;
    // Before there is a pod that a signal would leave behind.
    let signals = Signals::new()?;
    let made = make(&web, &args).await;
    let revoked = client.delete::<Value>(&format!("/v1/tokens?id={}", token.id)).await;
    let (namespace, name) = made?;
    let kubeconfig: Value = client.get("/v1/kubeconfig").await?;
    let pods = Api::<Pod>::namespaced(cluster(kubeconfig).await?, &namespace);
    let ended = tokio::select! {
        ended = shell(&pods, &name, &args.shell) => ended,
        signal = signals.wait() => Ok(ExitCode::from(signal)),
    };
    match pods.delete(&name, &DeleteParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => eprintln!("the pod {name} could not be deleted and ends at its deadline: {error}"),
    }
    let code = ended?;
    revoked.map(|_| code)
}

/// The pod's namespace and name.
async fn make(web: &Web, args: &DebugArgs) -> anyhow::Result<(String, String)> {
    let run: Value = web.get(&format!("/apis/v2beta1/runs/{}", super::encode(&args.run))).await?;
    let tasks = run.pointer("/run_details/task_details").and_then(Value::as_array).cloned().unwrap_or_default();
    let task = choose(&tasks, &args.step)?;
    let path = format!("/apis/v2beta1/runs/{}/tasks/{task}/debug", super::encode(&args.run));
    let pod: Value = web.post(&path, &json!({"deadline_seconds": args.deadline.as_secs()})).await?;
    let text = |name: &str| pod[name].as_str().map(str::to_owned).with_context(|| format!("the answer has no {name}"));
    Ok((text("namespace")?, text("pod_name")?))
}

/// The task's id.
fn choose(tasks: &[Value], step: &str) -> anyhow::Result<String> {
    let text = |task: &Value, name: &str| task[name].as_str().unwrap_or_default().to_owned();
    if let Some(task) = tasks.iter().find(|t| text(t, "task_id") == step) {
        return Ok(text(task, "task_id"));
    }
    // The run itself is the task without a parent.
    let steps = || tasks.iter().filter(|t| !text(t, "parent_task_id").is_empty());
    let named: Vec<&Value> = steps().filter(|t| text(t, "display_name") == step).collect();
    let failed: Vec<&Value> = named.iter().copied().filter(|t| text(t, "state") == "FAILED").collect();
    match (named.as_slice(), failed.as_slice()) {
        ([one], _) | (_, [one]) => Ok(text(one, "task_id")),
        ([], _) => {
            let mut known: Vec<String> = steps().map(|t| text(t, "display_name")).collect();
            known.sort();
            known.dedup();
            let next = format!("its steps are: {}", known.join(", "));
            Err(Failure::new(Code::General, format!("the run has no step {step}"), next).into())
        }
        (several, _) => {
            let ids: Vec<String> =
                several.iter().map(|t| format!("{} ({})", text(t, "task_id"), text(t, "state"))).collect();
            let message = format!("the run has {} steps called {step}", ids.len());
            Err(Failure::new(Code::General, message, format!("name one by its id: {}", ids.join(", "))).into())
        }
    }
}

async fn cluster(kubeconfig: Value) -> anyhow::Result<kube::Client> {
    let kubeconfig = serde_json::from_value(kubeconfig).context("the box's kubeconfig")?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

/// The signals that end a program, from now on.
struct Signals {
    terminate: Signal,
    hang_up: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The exit code of the first that came.
    async fn wait(mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => 143,
            _ = self.hang_up.recv() => 129,
            _ = self.interrupt.recv() => 130,
        }
    }
}

async fn shell(pods: &Api<Pod>, name: &str, shell: &str) -> anyhow::Result<ExitCode> {
    started(pods, name).await?;
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    eprintln!("In {name}. The step's command is in /tmp/kfbox-step.sh; what you write here goes with the shell.");
    let params = AttachParams::default().container("main").stdin(true).stdout(true).stderr(!terminal).tty(terminal);
    let process = pods.exec(name, ["sh", "-c", OPEN, shell], &params).await?;
    let _raw = terminal.then(RawTerminal::enter).transpose()?;
    converse(process).await
}

/// Waits until the container runs. One that cannot is explained by its own words.
async fn started(pods: &Api<Pod>, name: &str) -> anyhow::Result<()> {
    let mut told = String::new();
    loop {
        let pod = pods.get(name).await?;
        let status = pod.status.clone().unwrap_or_default();
        let container = status.container_statuses.unwrap_or_default().into_iter().find(|c| c.name == "main");
        let state = container.and_then(|c| c.state).unwrap_or_default();
        if state.running.is_some() {
            return Ok(());
        }
        if state.terminated.is_some() || matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
            let params = LogParams { container: Some("main".into()), ..LogParams::default() };
            let log = pods.logs(name, &params).await.unwrap_or_default();
            let why = format!("the container ended before a shell could be opened\n{}", log.trim_end());
            return Err(Failure::new(Code::General, why, "").into());
        }
        if let Some(waiting) = state.waiting {
            let why = format!("{} {}", waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default());
            if why.contains("Err") && why != told {
                eprintln!("the container cannot start yet: {}", why.trim());
                told = why;
            }
        }
        let since = pod.metadata.resource_version.unwrap_or_default();
        let watch = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(20);
        let mut events = pods.watch(&watch, &since).await?.boxed();
        while let Some(event) = events.next().await {
            match event? {
                WatchEvent::Modified(_) | WatchEvent::Added(_) => break,
                WatchEvent::Deleted(_) => anyhow::bail!("the pod {name} was deleted"),
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
            }
        }
    }
}

/// Carries what is typed in and what is said out, until the shell ends; its exit code.
async fn converse(mut process: AttachedProcess) -> anyhow::Result<ExitCode> {
    let status = process.take_status().context("the connection has no status")?;
    let mut input = process.stdin().context("the connection has no input")?;
    let (mut said, mut complained) = (process.stdout(), process.stderr());
    let mut sizes = process.terminal_size();
    let mut typed = typing();
    let mut resized = signal(SignalKind::window_change())?;
    if let (Some(sizes), Some(size)) = (&mut sizes, window()) {
        let _ = sizes.send(size).await;
    }
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    let (mut from_out, mut from_err) = ([0; 8192], [0; 8192]);
    let mut input_ended = false;
    while said.is_some() || complained.is_some() {
        tokio::select! {
            bytes = typed.recv(), if !input_ended => match bytes {
                Some(bytes) => {
                    input.write_all(&bytes).await?;
                    input.flush().await?;
                }
                None => {
                    input_ended = true;
                    input.shutdown().await?;
                }
            },
            count = read(&mut said, &mut from_out), if said.is_some() => match count? {
                0 => said = None,
                n => {
                    out.write_all(&from_out[..n]).await?;
                    out.flush().await?;
                }
            },
            count = read(&mut complained, &mut from_err), if complained.is_some() => match count? {
                0 => complained = None,
                n => err.write_all(&from_err[..n]).await?,
            },
            _ = resized.recv() => {
                if let (Some(sizes), Some(size)) = (&mut sizes, window()) {
                    let _ = sizes.send(size).await;
                }
            }
        }
    }
    let Some(status) = status.await else { return Ok(ExitCode::SUCCESS) };
    let causes = status.details.and_then(|d| d.causes).unwrap_or_default();
    let code = causes.iter().find(|c| c.reason.as_deref() == Some("ExitCode"));
    let code = code.and_then(|c| c.message.as_deref()?.parse::<u8>().ok());
    match (status.status.as_deref(), code) {
        (Some("Success"), _) => Ok(ExitCode::SUCCESS),
        (_, Some(code)) => Ok(ExitCode::from(code)),
        _ => anyhow::bail!("the shell could not be opened: {}", status.message.unwrap_or_default()),
    }
}

async fn read(from: &mut Option<impl tokio::io::AsyncRead + Unpin>, into: &mut [u8]) -> std::io::Result<usize> {
    match from {
        Some(from) => from.read(into).await,
        None => std::future::pending().await,
    }
}

/// Standard input by a thread of its own: a read of a terminal cannot be given up, and must not keep the program.
fn typing() -> tokio::sync::mpsc::Receiver<Vec<u8>> {
    let (send, receive) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = std::io::stdin().lock().read(&mut buffer) {
            if send.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receive
}

fn window() -> Option<TerminalSize> {
    terminal_size::terminal_size().map(|(width, height)| TerminalSize { height: height.0, width: width.0 })
}

/// The terminal hands every key on while this lives, and is as it was afterwards.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> anyhow::Result<Self> {
        let before = termios::tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_found_by_its_id_its_name_or_its_failure() {
        let task = |id: &str, name: &str, state: &str, parent: &str| json!({"task_id": id, "display_name": name, "state": state, "parent_task_id": parent});
        let tasks = [
            task("0", "root", "FAILED", ""),
            task("1", "once", "SUCCEEDED", "0"),
            task("2", "often", "SUCCEEDED", "0"),
            task("3", "often", "FAILED", "0"),
            task("4", "twice", "SUCCEEDED", "0"),
            task("5", "twice", "SUCCEEDED", "0"),
        ];
        assert_eq!(choose(&tasks, "once").unwrap(), "1");
        assert_eq!(choose(&tasks, "often").unwrap(), "3");
        assert_eq!(choose(&tasks, "5").unwrap(), "5");
        let said = |step| Failure::render(&choose(&tasks, step).unwrap_err());
        assert!(said("twice").contains("4 (SUCCEEDED), 5 (SUCCEEDED)"), "{}", said("twice"));
        assert!(said("gone").contains("often, once, twice"), "{}", said("gone"));
    }
}
