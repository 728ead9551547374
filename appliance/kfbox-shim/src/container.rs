//! The life of one container, from its state directory to its exit record.

use super::{
    ShimError,
    attach::{Clients, Input},
    describe,
    exec::{set_nonblocking, write_some},
    fds,
    frames::Channel,
    log::{Log, Stream},
    records::{
        self, ATTACH_SOCKET, EXIT, Exit, LOCK, Notice, Overlay, ProcessRef, SHIM_CONFIG, STARTED, ShimConfig, Started,
    },
    stage, timestamp,
};
use crate::{cgroup::Hierarchies, users::Users};
use libcontainer::{
    container::{Container, builder::ContainerBuilder},
    oci_spec::runtime::{LinuxSeccomp, Spec},
    syscall::syscall::SyscallType,
    workload::{Executor, ExecutorError, ExecutorValidationError, default::DefaultExecutor},
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag},
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, Uid, fchown, pipe2, read, setsid},
};
use std::{
    fs::{self, File},
    io::Write,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    os::unix::fs::MetadataExt,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
};

/// What is read at once from a container's stream.
const CHUNK: usize = 16 * 1024;
/// What may wait for a container that does not read its input.
const MAX_STDIN: usize = 256 * 1024;

pub fn run(dir: &Path) -> Result<(), ShimError> {
    fds::default_sigpipe();
    fds::drop_groups();
    // Fails only for a process-group leader, which is then out of the daemon's group already.
    let _ = setsid();
    enter(dir)?;
    let _lock = lock(dir)?;
    nix::sys::prctl::set_child_subreaper(true).map_err(ShimError::system("cannot become a subreaper"))?;
    let config: ShimConfig = load(&dir.join(SHIM_CONFIG))?;

    let mut log = Log::open(&config.log_path, config.log_max_bytes, config.log_max_files);
    let running = match create(dir, &config) {
        Ok(running) => running,
        Err(error) => {
            fds::ignore_sigpipe();
            return finish(dir, &config, failure(&error));
        }
    };
    fds::trim_memory();
    let mut exit = watch(&config, running, &mut log)?;
    log.finish();
    let hierarchies = Hierarchies::detect();
    exit.oom_killed = exit.code != 0 && hierarchies.oom_kills(&config.cgroup) > 0;
    finish(dir, &config, exit)
}

fn failure(error: &ShimError) -> Exit {
    // 128 is what containerd reports for a container that could not be started.
    Exit {
        code: 128,
        signal: None,
        oom_killed: false,
        started_at: None,
        finished_at: timestamp::now_string(),
        failure: Some(error.to_string()),
    }
}

/// Records the exit and tells the daemon at once; what the container leaves in the kernel goes afterwards. The daemon's own
/// write is the durable truth: the record is synced only where nobody listens.
fn finish(dir: &Path, config: &ShimConfig, exit: Exit) -> Result<(), ShimError> {
    let hierarchies = Hierarchies::detect();
    // What is left once the container's first process is gone can only be in the host's process namespace.
    for pid in hierarchies.processes(&config.cgroup) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let path = dir.join(EXIT);
    let file = records::write(&path, &exit).map_err(|source| ShimError::File { what: "cannot write", path, source })?;
    let heard = tell(&Notice::Exited(exit));
    let _ = hierarchies.remove(&config.cgroup);
    let _ = fs::remove_dir_all(config.runtime_root.join(&config.id));
    if !heard {
        let _ = file.sync_data();
    }
    Ok(())
}

/// Goes to the state directory. A daemon starts its shims there; where that folder has been removed meanwhile, a later daemon
/// took the container for one that never ran, and the folder that now has the name is not this shim's.
fn enter(dir: &Path) -> Result<(), ShimError> {
    let failed = |source| ShimError::File { what: "cannot enter", path: dir.into(), source };
    let here = fs::metadata(".").map_err(failed)?;
    if here.nlink() == 0 {
        return Err(ShimError::Taken);
    }
    let there = fs::metadata(dir).map_err(failed)?;
    if (here.dev(), here.ino()) == (there.dev(), there.ino()) {
        Ok(())
    } else {
        std::env::set_current_dir(dir).map_err(failed)
    }
}

/// By a path relative to where this process is: in a folder that was removed nothing can be made.
fn lock(dir: &Path) -> Result<Flock<File>, ShimError> {
    let failed = |source| ShimError::File { what: "cannot lock", path: dir.join(LOCK), source };
    let file = File::options().create(true).truncate(false).write(true).open(LOCK).map_err(failed)?;
    let mut held = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| ShimError::Taken)?;
    // Who holds it, for a daemon that comes later.
    let me = ProcessRef::of(i32::try_from(std::process::id()).unwrap_or(0)).map_err(failed)?;
    held.set_len(0).map_err(failed)?;
    held.write_all(&serde_json::to_vec(&me).unwrap_or_default()).map_err(failed)?;
    Ok(held)
}

fn load<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ShimError> {
    records::read(path).map_err(|source| ShimError::File { what: "cannot read", path: path.into(), source })
}

/// The daemon may be gone; it reads the records when it is back. False when it is.
fn tell(notice: &Notice) -> bool {
    let Ok(mut line) = serde_json::to_vec(notice) else { return false };
    line.push(b'\n');
    let mut out = std::io::stdout();
    out.write_all(&line).and_then(|()| out.flush()).is_ok()
}

struct Running {
    init: Pid,
    started_at: String,
    stdin: Option<OwnedFd>,
    outputs: Vec<(OwnedFd, Stream)>,
    terminal: bool,
    clients: Clients,
}

fn create(dir: &Path, config: &ShimConfig) -> Result<Running, ShimError> {
    if config.overlay.is_some() || config.users.is_some() {
        unshare(CloneFlags::CLONE_NEWNS).map_err(ShimError::system("cannot make a mount namespace"))?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
            .map_err(ShimError::system("cannot make mounts private"))?;
    }
    if let Some(users) = &config.users {
        stage::lay_out(users)?;
    }
    if let Some(overlay) = &config.overlay {
        mount_overlay(dir, overlay, config.users.as_ref())?;
    }
    fs::create_dir_all(&config.runtime_root).map_err(|source| ShimError::File {
        what: "cannot create",
        path: config.runtime_root.clone(),
        source,
    })?;
    let failed = |error: libcontainer::error::LibcontainerError| ShimError::Container(describe(&error));
    let builder = ContainerBuilder::new(config.id.clone(), SyscallType::default())
        .with_root_path(&config.runtime_root)
        .map_err(failed)?
        .with_executor(Executable { seccomp: None })
        .validate_id()
        .map_err(failed)?;
    let cloexec = || pipe2(OFlag::O_CLOEXEC).map_err(ShimError::system("pipe"));

    let (mut container, stdin, outputs);
    if config.tty {
        let socket = config.runtime_root.join(format!("{}.tty", config.id));
        let terminal = Terminal::listen(&socket)?;
        container = builder
            .with_console_socket(Some(&socket))
            .as_init(dir)
            .with_systemd(false)
            .with_detach(true)
            .build()
            .map_err(failed)?;
        let master = terminal.receive()?;
        stdin = if config.stdin { master.try_clone().ok() } else { None };
        outputs = vec![(master, Stream::Stdout)];
    } else {
        let (out_read, out_write) = cloexec()?;
        let (err_read, err_write) = cloexec()?;
        let (in_read, in_write) = if config.stdin {
            let (read, write) = cloexec()?;
            (read, Some(write))
        } else {
            let null = File::open("/dev/null").map_err(|source| ShimError::File {
                what: "cannot open",
                path: "/dev/null".into(),
                source,
            })?;
            (null.into(), None)
        };
        for end in [&out_write, &err_write] {
            let _ = fchown(end, Some(Uid::from_raw(config.uid)), None);
        }
        if config.stdin {
            let _ = fchown(&in_read, Some(Uid::from_raw(config.uid)), None);
        }
        container = builder
            .with_stdin(in_read)
            .with_stdout(out_write)
            .with_stderr(err_write)
            .as_init(dir)
            .with_systemd(false)
            .with_detach(true)
            .build()
            .map_err(failed)?;
        stdin = in_write;
        outputs = vec![(out_read, Stream::Stdout), (err_read, Stream::Stderr)];
    }
    let started = start(dir, config, &mut container);
    if started.is_err() {
        let _ = container.delete(true);
    }
    let (init, started_at, clients) = started?;
    for fd in outputs.iter().map(|(fd, _)| fd).chain(stdin.iter()) {
        set_nonblocking(fd);
    }
    Ok(Running { init, started_at, stdin, outputs, terminal: config.tty, clients })
}

/// The record is on disk before the first instruction of the container runs, so that a container is never run twice.
fn start(dir: &Path, config: &ShimConfig, container: &mut Container) -> Result<(Pid, String, Clients), ShimError> {
    // The container's process is there and keeps the default. From here on, nobody may be left to be told anything, and that
    // must not end this process.
    fds::ignore_sigpipe();
    let pid = container.pid().ok_or_else(|| ShimError::Container("the container has no process".into()))?.as_raw();
    // Lowering needs a capability that not every machine grants; the container runs all the same.
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), config.oom_score_adj.to_string());
    let process = |pid| {
        ProcessRef::of(pid).map_err(|source| ShimError::File { what: "cannot read", path: "/proc".into(), source })
    };
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    let started_at = timestamp::now_string();
    let started = Started { shim: process(me)?, init: process(pid)?, started_at: started_at.clone() };
    let path = dir.join(STARTED);
    records::write(&path, &started).map_err(|source| ShimError::File { what: "cannot write", path, source })?;
    // Relative, because a socket's path may be no longer than 107 bytes.
    std::env::set_current_dir(dir).map_err(|source| ShimError::File {
        what: "cannot enter",
        path: dir.into(),
        source,
    })?;
    let _ = fs::remove_file(ATTACH_SOCKET);
    let clients = Clients::listen(Path::new(ATTACH_SOCKET)).map_err(|source| ShimError::File {
        what: "cannot listen on",
        path: dir.join(ATTACH_SOCKET),
        source,
    })?;
    container.start().map_err(|error| ShimError::Container(describe(&error)))?;
    tell(&Notice::Started(started));
    Ok((Pid::from_raw(pid), started_at, clients))
}

fn watch(config: &ShimConfig, mut running: Running, log: &mut Log) -> Result<Exit, ShimError> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None).map_err(ShimError::system("sigprocmask"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(ShimError::system("signalfd"))?;
    let mut pending: Vec<u8> = Vec::new();
    let mut stdin_ended = false;
    loop {
        if let Some((code, signal)) = reap(running.init) {
            drain(&mut running, log);
            return Ok(Exit {
                code,
                signal,
                oom_killed: false,
                started_at: Some(running.started_at),
                finished_at: timestamp::now_string(),
                failure: None,
            });
        }
        let ready = wait(&signals, &running, !pending.is_empty(), pending.len() < MAX_STDIN)?;
        while let Ok(Some(_)) = signals.read_signal() {}
        for index in ready.outputs.into_iter().rev() {
            if !copy(&mut running, index, log) {
                running.outputs.remove(index);
            }
        }
        if ready.listener {
            running.clients.accept();
        }
        let mut left = false;
        for index in ready.clients {
            let Some(client) = running.clients.clients.get_mut(index) else { continue };
            client.flush();
            for input in client.receive() {
                match input {
                    Input::Stdin(bytes) if running.stdin.is_some() => pending.extend_from_slice(&bytes),
                    Input::StdinEnd => stdin_ended = true,
                    Input::Resize { columns, rows } if running.terminal => {
                        if let Some((terminal, _)) = running.outputs.first() {
                            fds::set_window_size(terminal.as_fd(), columns, rows);
                        }
                    }
                    Input::Stdin(_) | Input::Resize { .. } | Input::Request(_) => {}
                }
            }
            left |= client.is_gone();
        }
        if left {
            running.clients.drop_gone();
            stdin_ended |= config.stdin_once;
        }
        if let Some(stdin) = &running.stdin {
            match write_some(stdin, &mut pending) {
                // Upstream: standard input stays open for the next who attaches, unless it is for one only.
                Ok(()) if pending.is_empty() && stdin_ended && config.stdin_once => running.stdin = None,
                Ok(()) => {}
                Err(_) => running.stdin = None,
            }
        } else {
            pending.clear();
        }
    }
}

struct Ready {
    outputs: Vec<usize>,
    listener: bool,
    clients: Vec<usize>,
}

fn wait(signals: &SignalFd, running: &Running, input: bool, room: bool) -> Result<Ready, ShimError> {
    let mut polled =
        vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(running.clients.fd(), PollFlags::POLLIN)];
    polled.extend(running.outputs.iter().map(|(fd, _)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
    let first_client = polled.len();
    for client in &running.clients.clients {
        let interest = if room { client.interest() } else { client.interest() - PollFlags::POLLIN };
        polled.push(PollFd::new(client.fd(), interest));
    }
    let last_client = polled.len();
    if let (Some(stdin), true) = (&running.stdin, input) {
        polled.push(PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
    }
    match poll(&mut polled, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(ShimError::system("poll")(error)),
    }
    let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
    Ok(Ready {
        listener: is_ready(&polled[1]),
        outputs: (2..first_client).filter(|i| is_ready(&polled[*i])).map(|i| i - 2).collect(),
        clients: (first_client..last_client).filter(|i| is_ready(&polled[*i])).map(|i| i - first_client).collect(),
    })
}

/// One read from a stream into the log and to whoever watches. False when the stream has ended.
fn copy(running: &mut Running, index: usize, log: &mut Log) -> bool {
    let mut buffer = [0; CHUNK];
    let (fd, stream) = &running.outputs[index];
    let stream = *stream;
    match read(fd, &mut buffer) {
        Ok(0) => false,
        Ok(n) => {
            log.push(stream, &buffer[..n]);
            let channel = if stream == Stream::Stdout { Channel::Stdout } else { Channel::Stderr };
            running.clients.broadcast(channel, &buffer[..n]);
            true
        }
        Err(Errno::EAGAIN | Errno::EINTR) => true,
        Err(_) => false,
    }
}

/// The container's processes are all gone, so what the pipes hold is all there will be.
fn drain(running: &mut Running, log: &mut Log) {
    for index in 0..running.outputs.len() {
        // A pipe holds at most 1 MiB; a stray writer in the host's process namespace is not followed for ever.
        for _ in 0..128 {
            let ready = {
                let fd: BorrowedFd<'_> = running.outputs[index].0.as_fd();
                matches!(poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO), Ok(n) if n > 0)
            };
            if !ready || !copy(running, index, log) {
                break;
            }
        }
    }
    for client in &mut running.clients.clients {
        client.finish();
    }
}

/// Reaps every child; says how the container's first process ended, once it has.
fn reap(init: Pid) -> Option<(i32, Option<i32>)> {
    let mut ended = None;
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == init => ended = Some((code, None)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == init => {
                ended = Some((128 + signal as i32, Some(signal as i32)));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Mounts the image's layers below a writable one. It is a mount namespace of the shim's own: nothing has to be unmounted
/// when it ends, however it ends.
fn mount_overlay(dir: &Path, overlay: &Overlay, users: Option<&Users>) -> Result<(), ShimError> {
    let file = |what, path: &Path| {
        let path = path.to_path_buf();
        move |source| ShimError::File { what, path, source }
    };
    // Short names, because mount options share one page, and colons separate layers.
    let links = dir.join("l");
    fs::create_dir_all(&links).map_err(file("cannot create", &links))?;
    let mut lower = String::new();
    for (number, layer) in overlay.lower.iter().enumerate() {
        let link = links.join(number.to_string());
        let _ = fs::remove_file(&link);
        match users {
            Some(users) => {
                fs::create_dir_all(&link).map_err(file("cannot create", &link))?;
                stage::layer(users, layer, &link)?;
            }
            None => std::os::unix::fs::symlink(layer, &link).map_err(file("cannot link", &link))?,
        }
        if number > 0 {
            lower.push(':');
        }
        lower.push_str(&format!("l/{number}"));
    }
    std::env::set_current_dir(dir).map_err(file("cannot enter", dir))?;
    for path in [&overlay.upper, &overlay.work, &overlay.target] {
        fs::create_dir_all(path).map_err(file("cannot create", path))?;
    }
    if let Some(users) = users {
        // The root of the container's file system shows this folder's owner; what is written below is its writer's.
        let own = Some(users.first);
        std::os::unix::fs::chown(&overlay.upper, own, own).map_err(file("cannot give", &overlay.upper))?;
    }
    let base = format!("lowerdir={lower},upperdir={},workdir={}", overlay.upper.display(), overlay.work.display());
    // Volatile: no flush of the container's writable layer, which nobody mounts again.
    let volatile = format!("{base},volatile");
    for options in [volatile, base] {
        match mount(Some("overlay"), &overlay.target, Some("overlay"), MsFlags::empty(), Some(options.as_str())) {
            Ok(()) => return Ok(()),
            Err(Errno::EINVAL) => {}
            Err(source) => return Err(ShimError::System { what: "cannot mount the image's layers", source }),
        }
    }
    Err(ShimError::System { what: "cannot mount the image's layers", source: Errno::EINVAL })
}

/// Runs the container's program. A second process gets its seccomp filter here, which libcontainer leaves out.
#[derive(Clone)]
pub(super) struct Executable {
    pub seccomp: Option<LinuxSeccomp>,
}

impl Executor for Executable {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        if let Some(seccomp) = &self.seccomp
            && let Err(error) = libcontainer::seccomp::initialize_seccomp(seccomp)
        {
            eprintln!("cannot load the seccomp filter: {error}");
            fds::exit_now(126);
        }
        if let Err(error) = (DefaultExecutor {}).exec(spec) {
            // The container's own standard error by now, so it shows in its log.
            eprintln!("{}", describe(&error));
            fds::exit_now(127);
        }
        Ok(())
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        DefaultExecutor {}.validate(spec)
    }
}

/// Receives the controlling side of a container's terminal.
pub(super) struct Terminal {
    listener: UnixListener,
    path: PathBuf,
}

impl Terminal {
    pub fn listen(path: &Path) -> Result<Self, ShimError> {
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path).map_err(|source| ShimError::File {
            what: "cannot listen on",
            path: path.into(),
            source,
        })?;
        Ok(Self { listener, path: path.into() })
    }

    pub fn receive(&self) -> Result<OwnedFd, ShimError> {
        use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
        let missing = || ShimError::Container("the container sent no terminal".into());
        let (stream, _): (UnixStream, _) = self.listener.accept().map_err(|source| ShimError::File {
            what: "cannot accept on",
            path: self.path.clone(),
            source,
        })?;
        let mut bytes = [0; 64];
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        let mut control = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)
            .map_err(ShimError::system("cannot receive the terminal"))?;
        for control in message.cmsgs().map_err(ShimError::system("cannot receive the terminal"))? {
            if let ControlMessageOwned::ScmRights(received) = control
                && let Some(raw) = received.first()
            {
                return Ok(fds::own(*raw));
            }
        }
        Err(missing())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
