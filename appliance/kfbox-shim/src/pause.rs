//! `kfbox-shim pause`: the first process of a pod's shared process namespace. It does nothing but reap, so that the namespace
//! lives as long as the pod, and ends with a kill.
//!
//! Guarantees: it has no capability, no user of the machine's, an empty root of its own and a program that cannot be
//! read, so a container that sees it through `/proc/1` finds nothing of the host there.
//! Upstream: <https://kubernetes.io/docs/tasks/configure-pod-container/share-process-namespace/>
#![expect(unsafe_code, reason = "fork and signal dispositions; the process has a single thread")]

use super::{ShimError, fds, records};
use crate::{
    cgroup::Hierarchies,
    records::{PAUSE as RECORD, PAUSE_NAMESPACE as NAMESPACE, ProcessRef},
};
use nix::{
    fcntl::OFlag,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask},
        stat::Mode,
        wait::waitpid,
    },
    unistd::{
        ForkResult, Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, fork, pipe2, pivot_root, read,
        setgroups, setresgid, setresuid, setsid, write,
    },
};
use std::{
    ffi::CString,
    fs::{self, File},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// The user that upstream's pause image has.
const USER: u32 = 65_535;
const ROOT: &str = "pause-root";

/// Starts the process, keeps its namespace at `DIR/pid` and its number in `DIR/pause.json`.
pub fn run(dir: &Path, cgroup: &str) -> Result<(), ShimError> {
    let file = |what, path: &Path| {
        let path = path.to_path_buf();
        move |source| ShimError::File { what, path, source }
    };
    let _ = setsid();
    let hierarchies = Hierarchies::detect();
    hierarchies.enter(cgroup).map_err(file("cannot enter", Path::new(cgroup)))?;
    let (root, kept) = (dir.join(ROOT), dir.join(NAMESPACE));
    fs::create_dir_all(&root).map_err(file("cannot create", &root))?;
    File::create(&kept).map_err(file("cannot create", &kept))?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(ShimError::system("cannot make a process namespace"))?;
    let (told, tell) = pipe2(OFlag::O_CLOEXEC).map_err(ShimError::system("pipe"))?;
    // SAFETY: this process has a single thread, so the child may do anything.
    let child = match unsafe { fork() }.map_err(ShimError::system("fork"))? {
        ForkResult::Child => {
            drop(told);
            let why = match become_pause(&root) {
                Ok(never) => match never {},
                Err(error) => error.to_string(),
            };
            let _ = write(&tell, why.as_bytes());
            fds::exit_now(1)
        }
        ForkResult::Parent { child } => child,
    };
    drop(tell);
    // Closed without a word once the program runs.
    let mut why = [0; 512];
    let length = read(&told, &mut why).unwrap_or(0);
    if length > 0 {
        let _ = waitpid(child, None);
        return Err(ShimError::Container(String::from_utf8_lossy(&why[..length]).into_owned()));
    }
    let source = format!("/proc/{child}/ns/pid");
    mount(Some(source.as_str()), &kept, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(ShimError::system("cannot keep the process namespace"))?;
    let process = ProcessRef::of(child.as_raw()).map_err(file("cannot read", Path::new("/proc")))?;
    let record = dir.join(RECORD);
    records::write(&record, &process).map_err(file("cannot write", &record))?;
    Ok(())
}

fn become_pause(root: &Path) -> Result<std::convert::Infallible, ShimError> {
    let step = ShimError::system;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(|source| ShimError::File {
        what: "cannot open",
        path: "/dev/null".into(),
        source,
    })?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(step("cannot make a mount namespace"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)
        .map_err(step("cannot make mounts private"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("pause"), root, Some("tmpfs"), flags, Some("mode=0555,size=64k"))
        .map_err(step("cannot mount an empty root"))?;
    let program = root.join("pause");
    // Not readable for its own user: the kernel then hides the process's memory and files from other processes.
    let mode = 0o511;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&program)
        .map_err(|source| ShimError::File { what: "cannot create", path: program.clone(), source })?;
    std::io::Write::write_all(&mut file, &program_bytes()).map_err(|source| ShimError::File {
        what: "cannot write",
        path: program.clone(),
        source,
    })?;
    // A program that is open for writing cannot be run.
    drop(file);
    nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        &program,
        Mode::from_bits_truncate(mode),
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )
    .map_err(step("cannot protect the program"))?;
    mount(None::<&str>, root, None::<&str>, flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>)
        .map_err(step("cannot protect the root"))?;
    chdir(root).map_err(step("cannot enter the root"))?;
    pivot_root(".", ".").map_err(step("cannot change the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("cannot leave the host's root"))?;
    chdir("/").map_err(step("cannot enter the root"))?;
    for result in [dup2_stdin(&null), dup2_stdout(&null), dup2_stderr(&null)] {
        result.map_err(step("cannot close the streams"))?;
    }
    // Ignored, the signal makes the kernel reap every orphan; this outlives the start of a program.
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.map_err(step("signal"))?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(step("sigprocmask"))?;
    nix::sys::prctl::set_no_new_privs().map_err(step("cannot give up privileges"))?;
    setgroups(&[]).map_err(step("setgroups"))?;
    let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(USER));
    setresgid(gid, gid, gid).map_err(step("setresgid"))?;
    setresuid(uid, uid, uid).map_err(step("setresuid"))?;
    let name = CString::new("/pause").unwrap_or_default();
    execve(&name, std::slice::from_ref(&name), &[] as &[CString]).map_err(step("cannot run the pause program"))
}

/// Where the program is in memory; page sizes up to 64 KiB divide it.
const BASE: u64 = 0x40_0000;
const HEADERS: usize = 64 + 56;

/// For ever waiting for a signal.
#[cfg(target_arch = "x86_64")]
const CODE: &[u8] = &[
    0xb8, 0x22, 0x00, 0x00, 0x00, // mov eax, 34: pause
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp to the start
];
#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;

#[cfg(target_arch = "aarch64")]
const CODE: &[u8] = &[
    0x00, 0x00, 0x80, 0xd2, // mov x0, 0: no descriptors
    0x01, 0x00, 0x80, 0xd2, // mov x1, 0
    0x02, 0x00, 0x80, 0xd2, // mov x2, 0: no limit
    0x03, 0x00, 0x80, 0xd2, // mov x3, 0
    0x04, 0x00, 0x80, 0xd2, // mov x4, 0
    0x28, 0x09, 0x80, 0xd2, // mov x8, 73: ppoll
    0x01, 0x00, 0x00, 0xd4, // svc 0
    0xf9, 0xff, 0xff, 0x17, // b to the start
];
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// A whole program in 130 bytes: an ELF header, one segment, and the code. One page of memory a pod.
fn program_bytes() -> Vec<u8> {
    let length = (HEADERS + CODE.len()) as u64;
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |bytes: &mut Vec<u8>, value: u16| bytes.extend_from_slice(&value.to_le_bytes());
    let word = |bytes: &mut Vec<u8>, value: u32| bytes.extend_from_slice(&value.to_le_bytes());
    let long = |bytes: &mut Vec<u8>, value: u64| bytes.extend_from_slice(&value.to_le_bytes());
    half(&mut bytes, 2); // an executable
    half(&mut bytes, MACHINE);
    word(&mut bytes, 1);
    long(&mut bytes, BASE + HEADERS as u64); // entry
    long(&mut bytes, 64); // segments
    long(&mut bytes, 0); // no sections
    word(&mut bytes, 0);
    for value in [64, 56, 1, 0, 0, 0] {
        half(&mut bytes, value);
    }
    word(&mut bytes, 1); // loaded
    word(&mut bytes, 5); // readable, executable
    for value in [0, BASE, BASE, length, length, 0x1_0000] {
        long(&mut bytes, value);
    }
    bytes.extend_from_slice(CODE);
    bytes
}
