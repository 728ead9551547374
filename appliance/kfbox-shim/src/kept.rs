//! Namespaces kept at a path, so that they outlive the process that made them.

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::statfs,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {source}", path = path.display())]
pub struct KeepError {
    pub what: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// Keeps a namespace at a path, in place of one that was there.
pub fn keep(namespace: &Path, path: &Path) -> Result<(), KeepError> {
    let failed = |what, source| KeepError { what, path: path.into(), source };
    forget(path);
    fs::File::create(path).map_err(|source| failed("cannot create", source))?;
    mount(Some(namespace), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| failed("cannot keep the namespace", errno.into()))
}

pub fn forget(path: &Path) {
    while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
}

pub fn is_namespace(path: &Path) -> bool {
    const NSFS_MAGIC: u32 = 0x6e73_6673;
    statfs(path).is_ok_and(|s| u32::try_from(s.filesystem_type().0).is_ok_and(|t| t == NSFS_MAGIC))
}
