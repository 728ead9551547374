//! What a container in a user namespace of its pod's own is made from, laid out where its runtime can reach it: mounts
//! whose owners are mapped, in a file system that only this shim's mount namespace has.
//!
//! Nothing on disk changes its owner: a file that the pod's root writes into a volume is root's there, and a layer of an
//! image is shared with pods that have other ids. The kernel translates on the way.
//! Upstream: <https://docs.kernel.org/filesystems/idmappings.html>

use super::ShimError;
use crate::users::{STAGE, Staged, Users, rootfs};
use libcontainer::syscall::{
    Syscall, SyscallError,
    linux::{AT_EMPTY_PATH, AT_RECURSIVE, LinuxSyscall, MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH, MountAttr},
};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::statfs,
};
use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::Path,
};

/// Owners of a mount are translated by a user namespace (`linux/mount.h`).
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Lays out everything but the root. To be called in a mount namespace of the shim's own.
pub fn lay_out(users: &Users) -> Result<(), ShimError> {
    let map = namespace(users)?;
    // All sources are opened first: a volume may lie where the stage will be.
    let mut open = Vec::new();
    for staged in &users.staged {
        let tree = tree(&staged.source)?;
        if staged.mapped {
            map_owners(&tree, &map, &staged.source)?;
        }
        open.push((staged, tree));
    }
    let stage = Path::new(STAGE);
    // The root's place is on the host too: libcontainer looks whether it exists when a second process joins.
    let root = rootfs();
    fs::DirBuilder::new().recursive(true).mode(0o755).create(&root).map_err(file("cannot create", &root))?;
    mount(Some("kfbox"), stage, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755,size=1m"))
        .map_err(ShimError::system("cannot mount the stage"))?;
    for (Staged { source, target, .. }, tree) in open {
        if fs::metadata(source).map_err(file("cannot look at", source))?.is_dir() {
            fs::create_dir(target).map_err(file("cannot create", target))?;
        } else {
            File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(target)
                .map_err(file("cannot create", target))?;
        }
        attach(&tree, target)?;
    }
    Ok(())
}

/// Mounts an image's layer at a folder, its owners being the pod's.
pub fn layer(users: &Users, source: &Path, target: &Path) -> Result<(), ShimError> {
    let tree = tree(source)?;
    map_owners(&tree, &namespace(users)?, source)?;
    attach(&tree, target)
}

fn namespace(users: &Users) -> Result<File, ShimError> {
    File::open(&users.namespace).map_err(file("cannot open", &users.namespace))
}

fn tree(source: &Path) -> Result<OwnedFd, ShimError> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    LinuxSyscall.open_tree(libc::AT_FDCWD, source.to_str(), flags | AT_RECURSIVE).map_err(|error| ShimError::File {
        what: "cannot open",
        path: source.into(),
        source: plain(&error),
    })
}

fn map_owners(tree: &OwnedFd, map: &File, source: &Path) -> Result<(), ShimError> {
    let namespace = u64::try_from(map.as_raw_fd()).unwrap_or(0);
    let attr = MountAttr { attr_set: MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd: namespace };
    let flags = AT_EMPTY_PATH | AT_RECURSIVE;
    LinuxSyscall.mount_setattr(tree.as_fd(), Path::new(""), flags, &attr, size_of::<MountAttr>()).map_err(|error| {
        let kind = statfs(source).map_or_else(|_| "unknown".into(), |s| format!("{:#x}", s.filesystem_type().0));
        ShimError::Container(format!(
            "cannot map the owners of {}: {}. Its file system (type {kind}), or one mounted below it, must have idmapped \
             mounts: ext4, xfs and btrfs since Linux 5.15, tmpfs since 6.3. Without them the pod runs with hostUsers: true",
            source.display(),
            plain(&error)
        ))
    })
}

fn attach(tree: &OwnedFd, target: &Path) -> Result<(), ShimError> {
    let place = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(target)
        .map_err(file("cannot open", target))?;
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    LinuxSyscall.move_mount(tree.as_fd(), None, place.as_fd(), None, flags).map_err(|error| ShimError::File {
        what: "cannot mount at",
        path: target.into(),
        source: plain(&error),
    })
}

fn plain(error: &SyscallError) -> io::Error {
    io::Error::other(error.to_string())
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ShimError {
    let path = path.to_path_buf();
    move |source| ShimError::File { what, path, source }
}
