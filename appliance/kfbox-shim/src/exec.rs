//! `shim exec`: one more process in a running container. Its standard input is a socket that speaks
//! [`super::frames`]; the process ends when the daemon hangs up.

use super::{
    ShimError,
    attach::{Client, Input},
    container::{Executable, Terminal},
    describe, fds,
    frames::{Channel, ExecRequest, Outcome},
    records::{self, SHIM_CONFIG, ShimConfig},
};
use crate::users::Users;
use libcontainer::{
    container::builder::ContainerBuilder,
    oci_spec::runtime::{LinuxNamespaceType, LinuxSeccomp, Spec},
    syscall::syscall::SyscallType,
};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, pipe2, read, write},
};
use std::{
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
    path::Path,
};

pub fn run() -> Result<(), ShimError> {
    fds::default_sigpipe();
    fds::drop_groups();
    let control = std::io::stdin().as_fd().try_clone_to_owned().map_err(|source| ShimError::File {
        what: "cannot duplicate",
        path: "/dev/stdin".into(),
        source,
    })?;
    let mut client = Client::new(UnixStream::from(control)).map_err(|_| ShimError::NoRequest)?;
    let (request, early) = await_request(&mut client)?;
    let outcome = match start(&request) {
        Ok(process) => Outcome::Exited(serve(process, &mut client, early)),
        Err(error) => Outcome::Failed(error.to_string()),
    };
    let text = serde_json::to_vec(&outcome).unwrap_or_default();
    client.send(Channel::Outcome, &text);
    client.finish();
    Ok(())
}

fn await_request(client: &mut Client) -> Result<(ExecRequest, Vec<Input>), ShimError> {
    loop {
        let mut waiting = [PollFd::new(client.fd(), PollFlags::POLLIN)];
        poll(&mut waiting, PollTimeout::NONE).map_err(ShimError::system("poll"))?;
        let mut inputs = client.receive().into_iter();
        while let Some(input) = inputs.next() {
            if let Input::Request(bytes) = input {
                let request = serde_json::from_slice(&bytes)
                    .map_err(|source| ShimError::Json { path: "the request".into(), source })?;
                return Ok((request, inputs.collect()));
            }
        }
        if client.is_gone() {
            return Err(ShimError::NoRequest);
        }
    }
}

struct Process {
    pid: Pid,
    stdin: Option<OwnedFd>,
    /// Standard output and error, or the terminal alone.
    outputs: Vec<(OwnedFd, Channel)>,
    terminal: bool,
}

fn start(request: &ExecRequest) -> Result<Process, ShimError> {
    let state_dir = request.runtime_root.join(&request.id);
    let bundle = libcontainer::container::Container::load(state_dir)
        .map_err(|error| ShimError::Container(describe(&error)))?
        .bundle()
        .clone();
    let spec = Spec::load(bundle.join("config.json")).map_err(|error| ShimError::Container(describe(&error)))?;
    let users = users(&spec, &bundle)?;
    let mut process =
        spec.process().clone().ok_or_else(|| ShimError::Container("the container has no process".into()))?;
    process.set_args(Some(request.args.clone())).set_terminal(Some(request.tty)).set_rlimits(None);
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
    if seccomp.is_some() {
        // libcontainer leaves the filter out for a second process; ours is loaded by the executor, after the
        // capabilities are gone, which the kernel allows only with this bit.
        process.set_no_new_privileges(Some(true));
    }
    let unique = std::process::id();
    let process_file = request.runtime_root.join(format!("{}.exec-{unique}.json", request.id));
    let file_error = |what| move |source| ShimError::File { what, path: "the process file".into(), source };
    let text = serde_json::to_vec(&process).map_err(|source| ShimError::Json { path: "process".into(), source })?;
    std::fs::write(&process_file, text).map_err(file_error("cannot write"))?;
    let result = build(request, &process_file, seccomp, process.user().uid(), users.as_ref());
    let _ = std::fs::remove_file(&process_file);
    result
}

/// The users of the pod's own, where the container has such. Never left out: without them the process would be the host's.
fn users(spec: &Spec, bundle: &Path) -> Result<Option<Users>, ShimError> {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    if !namespaces.into_iter().flatten().any(|n| n.typ() == LinuxNamespaceType::User) {
        return Ok(None);
    }
    let path = bundle.join(SHIM_CONFIG);
    let config: ShimConfig =
        records::read(&path).map_err(|source| ShimError::File { what: "cannot read", path: path.clone(), source })?;
    let missing = || ShimError::Container(format!("{} does not say which users the container has", path.display()));
    config.users.ok_or_else(missing).map(Some)
}

/// Enters the pod's user namespace, which libcontainer leaves out for a second process. This process keeps its user of the
/// host, and with it its own files; all that it may do beyond, it may do in that namespace alone.
fn enter(users: Option<&Users>) -> Result<(), ShimError> {
    let Some(users) = users else { return Ok(()) };
    let path = &users.namespace;
    let namespace = std::fs::File::open(path).map_err(|source| ShimError::File {
        what: "cannot open",
        path: path.clone(),
        source,
    })?;
    setns(namespace, CloneFlags::CLONE_NEWUSER).map_err(ShimError::system("cannot enter the pod's user namespace"))
}

fn build(
    request: &ExecRequest,
    process_file: &Path,
    seccomp: Option<LinuxSeccomp>,
    uid: u32,
    users: Option<&Users>,
) -> Result<Process, ShimError> {
    let failed = |error: libcontainer::error::LibcontainerError| ShimError::Container(describe(&error));
    let builder = ContainerBuilder::new(request.id.clone(), SyscallType::default())
        .with_root_path(&request.runtime_root)
        .map_err(failed)?
        .with_executor(Executable { seccomp });
    let cloexec = || pipe2(OFlag::O_CLOEXEC).map_err(ShimError::system("pipe"));
    let uid = users.map_or(0, |users| users.first) + uid;
    if request.tty {
        let socket = request.runtime_root.join(format!("{}.tty-{}", request.id, std::process::id()));
        let terminal = Terminal::listen(&socket)?;
        enter(users)?;
        let pid = builder
            .with_console_socket(Some(&socket))
            .as_tenant()
            .with_process(Some(process_file))
            .with_detach(true)
            .build()
            .map_err(failed)?;
        let master = terminal.receive()?;
        let stdin = master.try_clone().ok();
        return Ok(Process {
            pid: Pid::from_raw(pid.as_raw()),
            stdin: if request.stdin { stdin } else { None },
            outputs: vec![(master, Channel::Stdout)],
            terminal: true,
        });
    }
    let (stdin_read, stdin_write) = cloexec()?;
    let (stdout_read, stdout_write) = cloexec()?;
    let (stderr_read, stderr_write) = cloexec()?;
    for end in [&stdin_read, &stdout_write, &stderr_write] {
        let _ = nix::unistd::fchown(end, Some(nix::unistd::Uid::from_raw(uid)), None);
    }
    enter(users)?;
    let pid = builder
        .with_stdin(stdin_read)
        .with_stdout(stdout_write)
        .with_stderr(stderr_write)
        .as_tenant()
        .with_process(Some(process_file))
        .with_detach(true)
        .build()
        .map_err(failed)?;
    Ok(Process {
        pid: Pid::from_raw(pid.as_raw()),
        stdin: request.stdin.then_some(stdin_write),
        outputs: vec![(stdout_read, Channel::Stdout), (stderr_read, Channel::Stderr)],
        terminal: false,
    })
}

/// Copies until the process has ended; returns its exit code.
fn serve(mut process: Process, client: &mut Client, early: Vec<Input>) -> i32 {
    fds::ignore_sigpipe();
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None);
    let Ok(signals) = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC) else { return 255 };
    let mut pending: Vec<u8> = Vec::new();
    let mut stdin_ended = false;
    for fd in process.outputs.iter().map(|(fd, _)| fd).chain(process.stdin.iter()) {
        set_nonblocking(fd);
    }
    let mut inputs = early;
    let mut killed = false;
    loop {
        for input in inputs.drain(..) {
            match input {
                Input::Stdin(bytes) => pending.extend_from_slice(&bytes),
                Input::StdinEnd => stdin_ended = true,
                Input::Resize { columns, rows } if process.terminal => {
                    if let Some((terminal, _)) = process.outputs.first() {
                        fds::set_window_size(terminal.as_fd(), columns, rows);
                    }
                }
                Input::Resize { .. } | Input::Request(_) => {}
            }
        }
        if let Some(stdin) = &process.stdin {
            if process.terminal && stdin_ended {
                pending.push(0x04);
                stdin_ended = false;
            }
            match write_some(stdin, &mut pending) {
                Ok(()) if pending.is_empty() && stdin_ended => process.stdin = None,
                Ok(()) => {}
                Err(_) => process.stdin = None,
            }
        } else {
            pending.clear();
        }
        if client.is_gone() && !killed {
            killed = true;
            process.stdin = None;
            let _ = kill(process.pid, Signal::SIGKILL);
        }
        match waitpid(process.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, code)) => return last_words(&process, client, code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return last_words(&process, client, 128 + signal as i32),
            Ok(_) => {}
            Err(_) => return last_words(&process, client, 255),
        }
        // While the daemon reads slowly the process waits: an exec's output must not be dropped.
        let read_outputs = !client.is_full();
        let mut waiting = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if !client.is_gone() {
            let interest = if pending.len() > super::frames::MAX_PAYLOAD * 4 {
                client.interest() - PollFlags::POLLIN
            } else {
                client.interest()
            };
            waiting.push(PollFd::new(client.fd(), interest));
        }
        if let (Some(stdin), false) = (&process.stdin, pending.is_empty()) {
            waiting.push(PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
        }
        if read_outputs {
            waiting.extend(process.outputs.iter().map(|(fd, _)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        }
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return 255,
        }
        drop(waiting);
        while let Ok(Some(_)) = signals.read_signal() {}
        if !client.is_gone() {
            client.flush();
            if pending.len() <= super::frames::MAX_PAYLOAD * 4 {
                inputs = client.receive();
            }
        }
        if read_outputs {
            let mut open = Vec::new();
            for (fd, channel) in std::mem::take(&mut process.outputs) {
                if copy_some(&fd, channel, client) {
                    open.push((fd, channel));
                }
            }
            process.outputs = open;
        }
    }
}

/// The process is gone; what it wrote may still be in the pipes.
fn last_words(process: &Process, client: &mut Client, code: i32) -> i32 {
    for (fd, channel) in &process.outputs {
        // At most one full pipe: a background child that holds it open is not waited for.
        for _ in 0..64 {
            let mut waiting = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
            if !matches!(poll(&mut waiting, PollTimeout::ZERO), Ok(n) if n > 0) || !copy_some(fd, *channel, client) {
                break;
            }
        }
    }
    code
}

/// One read. False when the stream has ended.
fn copy_some(fd: &OwnedFd, channel: Channel, client: &mut Client) -> bool {
    let mut buffer = [0; 16 * 1024];
    match read(fd, &mut buffer) {
        Ok(0) => false,
        Ok(n) => {
            client.send(channel, &buffer[..n]);
            true
        }
        Err(Errno::EAGAIN | Errno::EINTR) => true,
        // A terminal whose other side is closed answers EIO.
        Err(_) => false,
    }
}

pub(super) fn write_some(fd: &OwnedFd, pending: &mut Vec<u8>) -> Result<(), Errno> {
    while !pending.is_empty() {
        match write(fd, pending) {
            Ok(n) => {
                pending.drain(..n);
            }
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) fn set_nonblocking(fd: &OwnedFd) {
    use nix::fcntl::{FcntlArg, fcntl};
    if let Ok(flags) = fcntl(fd, FcntlArg::F_GETFL) {
        let _ = fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK));
    }
}
