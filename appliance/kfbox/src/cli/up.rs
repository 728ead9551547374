//! `kfbox up` and `kfbox down`.

use super::{UpArgs, progress::Components};
use crate::{
    config::{BoxOptions, Config},
    control::{Client, Status, StopRequest},
    daemon,
    failure::{Code, Failure, Told},
};
use anyhow::Context;
use http::Method;
use serde::{Deserialize, Serialize};
use std::{
    fs::{DirBuilder, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// How often the command looks whether the daemon answers yet, before there is anything to wait on.
const LOOK: Duration = Duration::from_millis(10);
/// A log larger than this is moved aside at a start.
const LOG_LIMIT: u64 = 16 << 20;

/// Why a daemon could not start, left for the command that started it.
#[derive(Serialize, Deserialize)]
struct StartError {
    code: u8,
    text: String,
}

pub fn run(common: &BoxOptions, args: &UpArgs) -> anyhow::Result<ExitCode> {
    let config = Config::resolve(common, &args.options)?;
    make_data_dir(&config.data_dir)?;
    if args.foreground {
        return foreground(&config, args.error_file.as_deref());
    }
    super::client(detached(config, Duration::from_secs(args.timeout)))
}

fn make_data_dir(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
        let next = "run kfbox as root (sudo), or choose another --data-dir";
        Failure::new(Code::Requirement, format!("cannot create the data directory {}: {error}", path.display()), next)
            .into()
    })
}

/// The daemon itself. With `error_file` it is the background child of a `kfbox up`.
fn foreground(config: &Config, error_file: Option<&Path>) -> anyhow::Result<ExitCode> {
    if error_file.is_some() {
        // Leaves the terminal of whoever typed `up`.
        nix::unistd::setsid().context("cannot leave the terminal")?;
        // And the folder, which it would keep busy; the configuration's paths are complete by now.
        std::env::set_current_dir("/").context("cannot leave the folder")?;
    }
    let outcome = daemon::run(config, error_file.is_none());
    if let (Err(error), Some(path)) = (&outcome, error_file) {
        let left = StartError { code: Failure::exit_code(error), text: Failure::render(error) };
        std::fs::write(path, serde_json::to_vec(&left)?).context("cannot leave the reason of the failure")?;
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn detached(config: Config, timeout: Duration) -> anyhow::Result<ExitCode> {
    let client = Client::new(&config.data_dir);
    let since = Instant::now();
    if client.is_running().await {
        let status = follow(&client, None, timeout).await?;
        report(&status, "is already running");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("Starting kfbox in {}", config.data_dir.display());
    let error_file = config.data_dir.join(format!(".start-{}.json", std::process::id()));
    let mut child = spawn(&config, &error_file)?;
    let status = follow(&client, Some((&mut child, &error_file)), timeout).await?;
    report(&status, &format!("is ready after {:.2} s", since.elapsed().as_secs_f64()));
    Ok(ExitCode::SUCCESS)
}

fn spawn(config: &Config, error_file: &Path) -> anyhow::Result<Child> {
    let log = config.data_dir.join("kfbox.log");
    if std::fs::metadata(&log).is_ok_and(|m| m.len() > LOG_LIMIT) {
        std::fs::rename(&log, log.with_extension("log.1"))?;
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log)?;
    Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg("--foreground")
        .arg("--error-file")
        .arg(error_file)
        // Few heaps where malloc is the C library's: idle memory counts for more here than allocation under contention.
        .env("MALLOC_ARENA_MAX", "2")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start the daemon")
}

/// Draws the start until everything is ready.
async fn follow(client: &Client, mut child: Option<(&mut Child, &Path)>, timeout: Duration) -> anyhow::Result<Status> {
    let deadline = Instant::now() + timeout;
    let mut drawn = Components::new();
    loop {
        if let Some((process, error_file)) = &mut child
            && let Some(exit) = process.try_wait()?
        {
            let left = std::fs::read(&**error_file).ok().and_then(|b| serde_json::from_slice::<StartError>(&b).ok());
            let _ = std::fs::remove_file(&**error_file);
            match left {
                // Another `up` was faster: its box is as good.
                Some(left) if left.code == Code::Locked as u8 && wait_for(client, deadline).await => {
                    child = None;
                    continue;
                }
                Some(left) => {
                    return Err(Told { code: left.code, text: left.text }.into());
                }
                None => {
                    return Err(Failure::new(
                        Code::General,
                        format!("the daemon ended while starting ({exit})"),
                        "`kfbox logs` shows its last words",
                    )
                    .into());
                }
            }
        }
        if let Ok(mut lines) = client.lines::<Status>(Method::GET, "/v1/status/watch", None::<&()>).await {
            loop {
                let line = match tokio::time::timeout_at(deadline.into(), lines.next()).await {
                    Err(_) => return Err(late(timeout)),
                    Ok(Ok(Some(line))) => line,
                    Ok(_) => break,
                };
                drawn.show(&line);
                if line.ready {
                    return client.get("/v1/status?claim=true").await;
                }
            }
        }
        if Instant::now() > deadline {
            return Err(late(timeout));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn wait_for(client: &Client, deadline: Instant) -> bool {
    while Instant::now() < deadline {
        if client.is_running().await {
            return true;
        }
        tokio::time::sleep(LOOK).await;
    }
    false
}

fn late(timeout: Duration) -> anyhow::Error {
    Failure::new(
        Code::General,
        format!("kfbox was not ready within {} s; it goes on starting", timeout.as_secs()),
        "`kfbox status` shows what it waits for, `kfbox logs` why",
    )
    .into()
}

/// What a person needs to know once the box is ready.
pub fn report(status: &Status, what: &str) {
    println!("\nkfbox {what}\n");
    println!("  Open      {}", status.url);
    println!("  User      {}", status.user);
    if let Some(password) = &status.password {
        println!("  Password  {password}");
        println!("            (shown only this once; `kfbox user passwd {}` sets another)", status.user);
    }
    println!("\n  kubectl   kfbox kubeconfig --merge");
    println!("  kfp SDK   kfp.Client(host=\"{}/pipeline\", existing_token=\"$(kfbox token)\")", status.url);
    println!("  S3        eval \"$(kfbox credentials)\"");
}

pub async fn down(data_dir: PathBuf, keep_pods: bool) -> anyhow::Result<ExitCode> {
    let client = Client::new(&data_dir);
    let status: Status = match client.get("/v1/status").await {
        Ok(status) => status,
        Err(error) if Failure::exit_code(&error) == Code::NotRunning as u8 => {
            println!("kfbox is not running");
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(error),
    };
    let _: serde_json::Value = client.post("/v1/stop", &StopRequest { keep_pods }).await?;
    // The lock is free exactly when the process is gone.
    let deadline = Instant::now() + Duration::from_secs(60);
    while Path::new(&format!("/proc/{}", status.pid)).exists() {
        if Instant::now() > deadline {
            return Err(Failure::new(
                Code::General,
                format!("process {} has not ended within 60 s", status.pid),
                format!("look at `kfbox logs`; `kill -9 {}` ends it and loses nothing", status.pid),
            )
            .into());
        }
        tokio::time::sleep(LOOK).await;
    }
    println!("kfbox is stopped");
    Ok(ExitCode::SUCCESS)
}
