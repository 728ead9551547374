//! Containers as the daemon sees them: starting a shim, finding those of an earlier daemon, signals, and processes
//! that join a container.
//!
//! Guarantee: [`Runtime::adopt`] tells for every state directory whether its container never ran, runs or has ended.

use crate::{
    cgroup::Hierarchies,
    process::{PidFd, readable},
    shim::{
        frames::{self, Channel, Decoder, ExecRequest, Outcome},
        records::{
            self, ATTACH_SOCKET, EXIT, Exit, LOCK, Notice, PAUSE, PAUSE_NAMESPACE, ProcessRef, SHIM_CONFIG, STARTED,
            ShimConfig, Started,
        },
        timestamp,
    },
};
use kfbox_base::Tasks;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex},
    net::UnixStream,
    process::Command,
    sync::{mpsc, oneshot, watch},
};

/// What a stream of an exec session may hold for a reader that is slower: one frame.
const STREAM_BUFFER: usize = frames::MAX_PAYLOAD;
/// Terminal sizes that may wait; only the last matters.
const RESIZE_QUEUE: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("cannot start {program}: {source}", program = program.display())]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path}: {source}", path = path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the container is not running")]
    NotRunning,
    #[error("cannot share a process namespace: {0}")]
    Pause(String),
    #[error("cannot give the pod users of its own: {0}")]
    Users(String),
}

impl RuntimeError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::File { path: path.into(), source }
    }
}

/// How far a container is.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    Creating,
    Running(Started),
    Ended(Exit),
}

/// A container that was launched or found. Cloning shares it.
#[derive(Clone)]
pub struct Handle {
    pub id: String,
    pub dir: PathBuf,
    pub cgroup: String,
    stage: watch::Receiver<Stage>,
    init: Arc<std::sync::OnceLock<PidFd>>,
}

impl Handle {
    pub fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    /// The next stage that is not `Creating`.
    pub async fn launched(&mut self) -> Stage {
        self.until(|stage| *stage != Stage::Creating).await
    }

    pub async fn ended(&mut self) -> Exit {
        match self.until(|stage| matches!(stage, Stage::Ended(_))).await {
            Stage::Ended(exit) => exit,
            Stage::Creating | Stage::Running(_) => lost(None),
        }
    }

    async fn until(&mut self, wanted: impl FnMut(&Stage) -> bool) -> Stage {
        let found = self.stage.wait_for(wanted).await.map(|stage| stage.clone()).ok();
        match found {
            Some(stage) => stage,
            // The watcher ended with the daemon: the container goes on, its end is read by the next one.
            None => std::future::pending().await,
        }
    }

    /// Sends a signal to the container's first process. Gone already is success.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match self.init.get().map(|init| init.signal(signal)) {
            Some(Err(error)) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
            _ => Ok(()),
        }
    }
}

/// An exit that nobody saw.
fn lost(started: Option<&Started>) -> Exit {
    Exit {
        code: 137,
        signal: None,
        oom_killed: false,
        started_at: started.map(|s| s.started_at.clone()),
        finished_at: timestamp::now_string(),
        failure: None,
    }
}

/// What was found in a state directory.
pub enum Found {
    /// Nothing of it ever ran.
    NeverRan,
    Container(Handle),
    /// It ran, and nobody knows how it ended.
    Lost {
        started: Started,
    },
}

#[derive(Clone)]
pub struct Runtime {
    /// See [`kfbox_shim`].
    pub shim_executable: PathBuf,
    pub runtime_root: PathBuf,
    pub hierarchies: Arc<Hierarchies>,
    pub tasks: Tasks,
}

impl Runtime {
    /// Starts the shim of a prepared state directory. The handle's stage tells what became of it.
    pub fn launch(&self, dir: &Path) -> Result<Handle, RuntimeError> {
        let config: ShimConfig = records::read(&dir.join(SHIM_CONFIG)).map_err(RuntimeError::at(dir))?;
        let errors = File::create(dir.join("shim.log")).map_err(RuntimeError::at(dir))?;
        let mut child = Command::new(&self.shim_executable)
            .arg("--state-dir")
            .arg(dir)
            .env_clear()
            // By which it knows that the folder is still the one that it was started for.
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(|source| RuntimeError::Spawn { program: self.shim_executable.clone(), source })?;
        let (sender, stage) = watch::channel(Stage::Creating);
        let handle = Handle {
            id: config.id.clone(),
            dir: dir.into(),
            cgroup: config.cgroup.clone(),
            stage,
            init: Arc::default(),
        };
        let (runtime, init, dir) = (self.clone(), handle.init.clone(), dir.to_path_buf());
        self.tasks.spawn(format!("container/{:.12}", config.id), async move {
            let shutdown = runtime.tasks.shutdown();
            if let Some(stdout) = child.stdout.take() {
                let mut lines = BufReader::new(stdout).lines();
                loop {
                    let line = tokio::select! {
                        line = lines.next_line() => line,
                        () = shutdown.cancelled() => return,
                    };
                    let Ok(Some(line)) = line else { break };
                    match serde_json::from_str(&line) {
                        Ok(Notice::Started(started)) => {
                            if let Some(process) = PidFd::open(started.init) {
                                let _ = init.set(process);
                            }
                            sender.send_replace(Stage::Running(started));
                        }
                        Ok(Notice::Exited(exit)) => {
                            sender.send_replace(Stage::Ended(exit));
                        }
                        Err(error) => tracing::warn!(%error, "a shim said something else than expected"),
                    }
                }
            }
            tokio::select! {
                _ = child.wait() => {}
                () = shutdown.cancelled() => return,
            }
            if !matches!(*sender.borrow(), Stage::Ended(_)) {
                let exit = runtime.after_shim(&dir, &config).await;
                sender.send_replace(Stage::Ended(exit));
            }
        });
        Ok(handle)
    }

    /// The process namespace that a pod's containers share, kept alive by a process of its own in this cgroup; made where
    /// it is missing. Blocking.
    pub fn shared_processes(&self, folder: &Path, cgroup: &str) -> Result<PathBuf, RuntimeError> {
        let kept = folder.join(PAUSE_NAMESPACE);
        if records::read(&folder.join(PAUSE)).is_ok_and(|process: ProcessRef| process.runs()) {
            return Ok(kept);
        }
        // A namespace whose first process is gone takes nobody any more.
        crate::shim::kept::forget(&kept);
        self.finish(&["pause".as_ref(), folder.as_os_str(), cgroup.as_ref()], RuntimeError::Pause)?;
        Ok(kept)
    }

    /// The namespaces of a pod with users of its own, kept in this folder; made where they are missing. `first` is the
    /// host's id of the pod's root. Returns the network's. Blocking.
    pub fn own_users(&self, folder: &Path, first: u32, hostname: &str) -> Result<PathBuf, RuntimeError> {
        if !crate::shim::kept::is_namespace(&folder.join("user")) {
            fs::create_dir_all(folder).map_err(RuntimeError::at(folder))?;
            let first = first.to_string();
            self.finish(
                &["users".as_ref(), folder.as_os_str(), first.as_ref(), hostname.as_ref()],
                RuntimeError::Users,
            )?;
        }
        Ok(folder.join("net"))
    }

    /// Runs a subcommand of the shim that ends by itself; what it says on standard error is why it failed. Blocking.
    fn finish(&self, arguments: &[&OsStr], failure: fn(String) -> RuntimeError) -> Result<(), RuntimeError> {
        let output = std::process::Command::new(&self.shim_executable)
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .map_err(|source| RuntimeError::Spawn { program: self.shim_executable.clone(), source })?;
        if output.status.success() {
            return Ok(());
        }
        Err(failure(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// What became of a container that an earlier daemon prepared or launched.
    pub async fn adopt(&self, dir: &Path) -> Result<Found, RuntimeError> {
        let config: ShimConfig = match records::read(&dir.join(SHIM_CONFIG)) {
            Ok(config) => config,
            // Written last before the launch: without it nothing was launched.
            Err(_) => return Ok(Found::NeverRan),
        };
        let (sender, stage) = watch::channel(Stage::Creating);
        let handle = Handle {
            id: config.id.clone(),
            dir: dir.into(),
            cgroup: config.cgroup.clone(),
            stage,
            init: Arc::default(),
        };
        if let Ok(exit) = records::read::<Exit>(&dir.join(EXIT)) {
            sender.send_replace(Stage::Ended(exit));
            return Ok(Found::Container(handle));
        }
        let shim = match self.holder(dir, &config).await.map_err(RuntimeError::at(dir))? {
            Holder::Shim(shim) => shim,
            Holder::Me(_claim) => {
                self.clear(&config).await;
                return Ok(match (records::read::<Exit>(&dir.join(EXIT)), records::read(&dir.join(STARTED))) {
                    (Ok(exit), _) => {
                        sender.send_replace(Stage::Ended(exit));
                        Found::Container(handle)
                    }
                    (Err(_), Ok(started)) => Found::Lost { started },
                    (Err(_), Err(_)) => {
                        // While it is claimed: a shim that was launched, and comes only now, must find nothing.
                        fs::remove_dir_all(dir).map_err(RuntimeError::at(dir))?;
                        Found::NeverRan
                    }
                });
            }
        };
        let Some(started) = await_record(dir, &shim).await.map_err(RuntimeError::at(dir))? else {
            sender.send_replace(Stage::Ended(self.after_shim(dir, &config).await));
            return Ok(Found::Container(handle));
        };
        if let Some(process) = PidFd::open(started.init) {
            let _ = handle.init.set(process);
        }
        sender.send_replace(Stage::Running(started));
        let (runtime, dir) = (self.clone(), dir.to_path_buf());
        self.tasks.spawn(format!("container/{:.12}", config.id), async move {
            let shutdown = runtime.tasks.shutdown();
            tokio::select! {
                _ = shim.ended() => {}
                () = shutdown.cancelled() => return,
            }
            let exit = runtime.after_shim(&dir, &config).await;
            sender.send_replace(Stage::Ended(exit));
        });
        Ok(Found::Container(handle))
    }

    /// Who has a state directory.
    async fn holder(&self, dir: &Path, config: &ShimConfig) -> io::Result<Holder> {
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(dir.join(LOCK))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(claim) => return Ok(Holder::Me(claim)),
                Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => {}
                Err((_, error)) => return Err(error.into()),
            }
            match records::read(&dir.join(LOCK)).ok().map(PidFd::open) {
                Some(Some(shim)) => return Ok(Holder::Shim(shim)),
                // It was killed, and what it began to create holds what it held.
                Some(None) => self.clear(config).await,
                // It has just come, and has not said who it is.
                None => {}
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The shim is gone: its record tells, or it was killed and the container must go too.
    async fn after_shim(&self, dir: &Path, config: &ShimConfig) -> Exit {
        if let Ok(exit) = records::read(&dir.join(EXIT)) {
            return exit;
        }
        self.clear(config).await;
        let started: Option<Started> = records::read(&dir.join(STARTED)).ok();
        let mut exit = lost(started.as_ref());
        if started.is_none() {
            let words = fs::read_to_string(dir.join("shim.log")).unwrap_or_default();
            let words = words.trim();
            exit.code = 128;
            exit.failure = Some(if words.is_empty() { "the container's shim was killed".into() } else { words.into() });
        }
        let _ = records::write(&dir.join(EXIT), &exit);
        exit
    }

    /// Kills every process of a cgroup and waits for their end.
    pub async fn kill(&self, cgroup: &str) {
        // Held before they are told to end, so that their end can be awaited.
        let left: Vec<PidFd> = self
            .hierarchies
            .processes(cgroup)
            .into_iter()
            .filter_map(|pid| PidFd::open(ProcessRef::of(pid).ok()?))
            .collect();
        for process in &left {
            let _ = process.signal(libc::SIGKILL);
        }
        for process in &left {
            let _ = process.ended().await;
        }
    }

    /// Ends whatever is left of a container and removes its traces from the kernel.
    pub async fn clear(&self, config: &ShimConfig) {
        self.kill(&config.cgroup).await;
        let (hierarchies, root, config) = (self.hierarchies.clone(), self.runtime_root.clone(), config.clone());
        let removed = tokio::task::spawn_blocking(move || {
            let _ = hierarchies.remove(&config.cgroup);
            let _ = fs::remove_dir_all(root.join(&config.id));
        });
        let _ = removed.await;
    }

    /// Runs one more process in a running container.
    pub fn exec(&self, id: &str, args: Vec<String>, tty: bool, stdin: bool) -> Result<ExecSession, RuntimeError> {
        let spawn = |source| RuntimeError::Spawn { program: self.shim_executable.clone(), source };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(spawn)?;
        ours.set_nonblocking(true).map_err(spawn)?;
        let ours = UnixStream::from_std(ours).map_err(spawn)?;
        let mut child = Command::new(&self.shim_executable)
            .arg("exec")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(spawn)?;
        self.tasks.spawn(format!("exec-process/{id:.12}"), async move {
            let _ = child.wait().await;
        });
        let request = ExecRequest { id: id.into(), runtime_root: self.runtime_root.clone(), args, tty, stdin };
        let request = serde_json::to_vec(&request).unwrap_or_default();
        Ok(self.session(format!("exec/{id:.12}"), ours, Some(request)))
    }

    /// Joins the streams of a running container's first process.
    pub async fn attach(&self, dir: &Path) -> Result<ExecSession, RuntimeError> {
        // By way of a descriptor, because a socket's path may be no longer than 107 bytes.
        let folder = File::open(dir).map_err(RuntimeError::at(dir))?;
        let path = format!("/proc/self/fd/{}/{ATTACH_SOCKET}", folder.as_raw_fd());
        let stream = UnixStream::connect(path).await.map_err(|_| RuntimeError::NotRunning)?;
        Ok(self.session("attach".into(), stream, None))
    }

    fn session(&self, name: String, stream: UnixStream, request: Option<Vec<u8>>) -> ExecSession {
        let (stdin, stdin_source) = duplex(STREAM_BUFFER);
        let (stdout, stdout_sink) = duplex(STREAM_BUFFER);
        let (stderr, stderr_sink) = duplex(STREAM_BUFFER);
        let (resize, sizes) = mpsc::channel(RESIZE_QUEUE);
        let (outcome, exit) = oneshot::channel();
        let shutdown = self.tasks.shutdown();
        self.tasks.spawn(name, async move {
            tokio::select! {
                () = pump(stream, request, stdin_source, stdout_sink, stderr_sink, sizes, outcome) => {}
                () = shutdown.cancelled() => {}
            }
        });
        ExecSession { stdin, stdout, stderr, resize, exit }
    }
}

/// A process's streams. Both outputs must be read, or neither advances; dropping the session ends the process (of an
/// exec) or just leaves (of an attach).
pub struct ExecSession {
    pub stdin: DuplexStream,
    pub stdout: DuplexStream,
    pub stderr: DuplexStream,
    pub resize: mpsc::Sender<TerminalSize>,
    /// Closed without a value when an attached container ended.
    pub exit: oneshot::Receiver<Outcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

async fn pump(
    stream: UnixStream,
    request: Option<Vec<u8>>,
    mut stdin: DuplexStream,
    mut stdout: DuplexStream,
    mut stderr: DuplexStream,
    mut sizes: mpsc::Receiver<TerminalSize>,
    mut outcome: oneshot::Sender<Outcome>,
) {
    let (mut from, mut to) = stream.into_split();
    let mut answer = None;
    {
        let incoming = async {
            let mut decoder = Decoder::default();
            let mut buffer = vec![0; frames::MAX_PAYLOAD];
            loop {
                let n = match from.read(&mut buffer).await {
                    Ok(0) | Err(_) => return None,
                    Ok(n) => n,
                };
                decoder.push(&buffer[..n]);
                while let Ok(Some((channel, payload))) = decoder.take() {
                    match channel {
                        // A reader that went away only loses what it would have read.
                        Channel::Stdout => drop(stdout.write_all(&payload).await),
                        Channel::Stderr => drop(stderr.write_all(&payload).await),
                        Channel::Outcome => return serde_json::from_slice::<Outcome>(&payload).ok(),
                        _ => {}
                    }
                }
            }
        };
        let outgoing = async {
            if let Some(request) = request {
                send(&mut to, Channel::Request, &request).await?;
            }
            let mut buffer = vec![0; 16 * 1024];
            let (mut open, mut resizable) = (true, true);
            while open || resizable {
                tokio::select! {
                    read = stdin.read(&mut buffer), if open => match read {
                        Ok(0) | Err(_) => {
                            open = false;
                            send(&mut to, Channel::StdinEnd, &[]).await?;
                        }
                        Ok(n) => send(&mut to, Channel::Stdin, &buffer[..n]).await?,
                    },
                    size = sizes.recv(), if resizable => match size {
                        Some(TerminalSize { columns, rows }) => {
                            send(&mut to, Channel::Resize, &frames::resize_payload(columns, rows)).await?;
                        }
                        None => resizable = false,
                    },
                }
            }
            Ok::<(), io::Error>(())
        };
        // A process that is gone takes nothing any more; what it said is still to be read.
        let outgoing = async {
            if let Err(error) = outgoing.await {
                tracing::debug!(%error, "a process that ended takes no input");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            found = incoming => answer = found,
            () = outgoing => {}
            // Nobody waits for the end any more.
            () = outcome.closed() => {}
        }
    }
    if let Some(answer) = answer {
        let _ = outcome.send(answer);
    }
}

async fn send(to: &mut tokio::net::unix::OwnedWriteHalf, channel: Channel, payload: &[u8]) -> io::Result<()> {
    to.write_all(&frames::header(channel, payload.len())).await?;
    to.write_all(payload).await
}

enum Holder {
    Shim(PidFd),
    /// No shim has the state directory, and none can have it while this is held.
    Me(Flock<File>),
}

/// Waits until the shim has recorded the start, or is gone.
async fn await_record(dir: &Path, shim: &PidFd) -> io::Result<Option<Started>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(dir, AddWatchFlags::IN_MOVED_TO)?;
    loop {
        if let Ok(started) = records::read(&dir.join(STARTED)) {
            return Ok(Some(started));
        }
        tokio::select! {
            ready = readable(inotify.as_fd()) => {
                ready?;
                let _ = inotify.read_events();
            }
            ended = shim.ended() => {
                ended?;
                return Ok(records::read(&dir.join(STARTED)).ok());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[tokio::test]
    async fn what_a_process_said_is_read_though_it_takes_no_input_any_more() {
        // Which of the two is looked at first is chance.
        for _ in 0..64 {
            let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            let outcome = serde_json::to_vec(&Outcome::Exited(3)).unwrap();
            for (channel, payload) in [(Channel::Stdout, &b"last words"[..]), (Channel::Outcome, &outcome)] {
                theirs.write_all(&frames::header(channel, payload.len())).unwrap();
                theirs.write_all(payload).unwrap();
            }
            drop(theirs);
            ours.set_nonblocking(true).unwrap();
            let runtime = Runtime {
                shim_executable: PathBuf::new(),
                runtime_root: PathBuf::new(),
                hierarchies: Arc::new(Hierarchies::detect()),
                tasks: Tasks::new(),
            };
            let mut session = runtime.session("test".into(), UnixStream::from_std(ours).unwrap(), None);
            let _ = session.resize.send(TerminalSize { columns: 80, rows: 24 }).await;
            let mut said = String::new();
            session.stdout.read_to_string(&mut said).await.unwrap();
            assert_eq!(said, "last words");
            assert_eq!(session.exit.await.unwrap(), Outcome::Exited(3));
        }
    }
}
