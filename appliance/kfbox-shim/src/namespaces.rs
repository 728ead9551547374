//! `kfbox-shim users DIR FIRST HOSTNAME`: a user namespace of a pod's own, and with it the namespaces that must belong to it:
//! network, IPC and host name. Kept at `DIR/user`, `DIR/net`, `DIR/ipc` and `DIR/uts`.
//!
//! Guarantee: `DIR/user` appears last, so where it is kept the others are. Assumption: the process has a single thread,
//! for only such a one can make a user namespace.
//! Upstream: <https://man7.org/linux/man-pages/man7/user_namespaces.7.html>
#![expect(unsafe_code, reason = "fork; the process has a single thread")]

use super::{ShimError, fds};
use crate::{kept, users::IDS};
use nix::{
    fcntl::OFlag,
    sched::{CloneFlags, unshare},
    sys::wait::waitpid,
    unistd::{ForkResult, Pid, fork, pipe2, read, sethostname, write},
};
use std::{fs, os::fd::OwnedFd, path::Path};

/// The first is made; the second waits for the first's mappings. Anything else is why it failed.
const USER_MADE: &[u8] = b"1";
const ALL_MADE: &[u8] = b"2";

pub fn run(dir: &Path, first: u32, hostname: &str) -> Result<(), ShimError> {
    let (told, tell) = pipe2(OFlag::O_CLOEXEC).map_err(ShimError::system("pipe"))?;
    let (go, start) = pipe2(OFlag::O_CLOEXEC).map_err(ShimError::system("pipe"))?;
    // SAFETY: this process has a single thread, so the child may do anything.
    let child = match unsafe { fork() }.map_err(ShimError::system("fork"))? {
        ForkResult::Child => {
            drop((told, start));
            if let Err(error) = make(hostname, &tell, &go) {
                let _ = write(&tell, error.to_string().as_bytes());
            }
            // Until everything is kept.
            let _ = read(&go, &mut [0; 1]);
            fds::exit_now(0)
        }
        ForkResult::Parent { child } => child,
    };
    drop((tell, go));
    let made = keep(dir, first, child, &told, &start);
    drop(start);
    let _ = waitpid(child, None);
    made
}

fn make(hostname: &str, tell: &OwnedFd, go: &OwnedFd) -> Result<(), ShimError> {
    unshare(CloneFlags::CLONE_NEWUSER)
        .map_err(ShimError::system("cannot make a user namespace (see /proc/sys/user/max_user_namespaces)"))?;
    let _ = write(tell, USER_MADE);
    let _ = read(go, &mut [0; 1]);
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .map_err(ShimError::system("cannot make the namespaces of a user namespace"))?;
    sethostname(hostname).map_err(ShimError::system("cannot set the host name"))?;
    let _ = write(tell, ALL_MADE);
    Ok(())
}

fn keep(dir: &Path, first: u32, child: Pid, told: &OwnedFd, start: &OwnedFd) -> Result<(), ShimError> {
    expect(told, USER_MADE)?;
    for map in ["uid_map", "gid_map"] {
        let path = format!("/proc/{child}/{map}");
        fs::write(&path, format!("0 {first} {IDS}\n")).map_err(|source| ShimError::File {
            what: "cannot write",
            path: path.into(),
            source,
        })?;
    }
    let _ = write(start, b"g");
    expect(told, ALL_MADE)?;
    for kind in ["net", "ipc", "uts", "user"] {
        kept::keep(Path::new(&format!("/proc/{child}/ns/{kind}")), &dir.join(kind))
            .map_err(|error| ShimError::Container(error.to_string()))?;
    }
    Ok(())
}

fn expect(told: &OwnedFd, word: &[u8]) -> Result<(), ShimError> {
    let mut text = [0; 512];
    let length = read(told, &mut text).map_err(ShimError::system("read"))?;
    match &text[..length] {
        heard if heard == word => Ok(()),
        [] => Err(ShimError::Container("the process that makes a pod's namespaces was killed".into())),
        heard => Err(ShimError::Container(String::from_utf8_lossy(heard).into_owned())),
    }
}
