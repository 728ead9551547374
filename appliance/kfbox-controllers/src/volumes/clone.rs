//! A folder made again without copying: each file of the copy shares its blocks with the original until one of them is
//! written (`FICLONE`; btrfs, XFS). A file system that cannot do so is refused: a plain copy would take the time and the
//! space of the volume, while its pods write on.
//!
//! Guarantees: what a pod puts into its volume, also while it is copied, leads nowhere outside: everything is opened below
//! the two roots, through no link and into no other file system. Owners, modes, times, attributes, links and holes are
//! kept. Assumptions: nobody else knows the copy yet. Each file is as it was at one moment, not all at the same: who
//! wants that stops the writer first.
//! Upstream: <https://man7.org/linux/man-pages/man2/ioctl_ficlonerange.2.html>

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, XattrFlags, chownat, fchmod,
        fchown, fgetxattr, flistxattr, fsetxattr, fstat, fstatfs, futimens, ioctl_ficlone, linkat, mkdirat, mknodat,
        openat, openat2, readlinkat, statat, symlinkat, utimensat,
    },
    io::Errno,
    process::{Gid, Uid},
};
use std::{
    collections::HashMap,
    ffi::{CStr, OsStr},
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};
use tokio_util::sync::CancellationToken;

/// As the kernel's own limit on one attribute's value and on the list of names.
const MAX_ATTRIBUTE: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    #[error(
        "the file system of {folder} ({kind}) cannot clone files, so volumes on it can be neither snapshotted nor cloned; \
         next: put the box's data directory on btrfs, or on XFS with reflinks (`mkfs.xfs -m reflink=1`, its default)"
    )]
    Unsupported { folder: String, kind: String },
    #[error("{path} of the volume: {source}")]
    File {
        path: String,
        #[source]
        source: Errno,
    },
    #[error("{0} of the volume is another file system, which cannot be cloned with it; next: unmount it")]
    Crossing(String),
    #[error("it was removed meanwhile")]
    Gone,
    #[error("kfbox stops")]
    Stopped,
}

fn at(path: &Path) -> impl FnOnce(Errno) -> CloneError + '_ {
    move |source| match source {
        Errno::XDEV => CloneError::Crossing(path.display().to_string()),
        source => CloneError::File { path: path.display().to_string(), source },
    }
}

/// Whether files of this folder can be cloned, by trying: with two files that have no name.
pub fn check(folder: &Path) -> Result<(), CloneError> {
    let unnamed = || {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        openat(rustix::fs::CWD, folder, flags, Mode::RUSR | Mode::WUSR)
    };
    let tried = unnamed().and_then(|from| {
        rustix::io::write(&from, &[0; 4096])?;
        ioctl_ficlone(unnamed()?, from)
    });
    match tried {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::NOSYS | Errno::ISDIR) => {
            Err(CloneError::Unsupported { folder: folder.display().to_string(), kind: kind(folder) })
        }
        Err(source) => Err(CloneError::File { path: folder.display().to_string(), source }),
    }
}

/// A file system's name, for people.
fn kind(folder: &Path) -> String {
    let found = openat(rustix::fs::CWD, folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).and_then(fstatfs);
    match found.map(|found| u64::try_from(found.f_type).unwrap_or(0) & 0xffff_ffff) {
        Ok(0xef53) => "ext4".into(),
        Ok(0x5846_5342) => "XFS without reflinks".into(),
        Ok(0x0102_1994) => "tmpfs".into(),
        Ok(0x794c_7630) => "overlayfs".into(),
        Ok(0x6969) => "NFS".into(),
        Ok(other) => format!("type {other:#x}"),
        Err(_) => "unknown".into(),
    }
}

/// Makes `to`, which must not exist yet, a clone of `from`. Blocking.
pub fn tree(from: &Path, to: &Path, stop: &CancellationToken) -> Result<(), CloneError> {
    let folder = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |path: &Path| openat(rustix::fs::CWD, path, folder, Mode::empty());
    let source = open(from).map_err(|error| if error == Errno::NOENT { CloneError::Gone } else { at(from)(error) })?;
    mkdirat(rustix::fs::CWD, to, Mode::RWXU).map_err(at(to))?;
    let device = fstat(&source).map_err(at(from))?.st_dev;
    let mut walk = Walk { to: open(to).map_err(at(to))?, from: source, device, links: HashMap::new(), stop };
    let mut folders: Vec<(PathBuf, Stat)> = Vec::new();
    let mut next = vec![PathBuf::from(".")];
    while let Some(path) = next.pop() {
        if let Some(stat) = walk.folder(&path, &mut next)? {
            folders.push((path, stat));
        }
    }
    // The innermost first: what is made in a folder changes its times.
    for (path, stat) in folders.iter().rev() {
        let made = walk.open(&walk.to, path).map_err(at(path))?;
        own(made.as_fd(), stat).map_err(at(path))?;
    }
    // A volume that was removed in between was renamed before its files went.
    let (held, named) = (fstat(&walk.from).map_err(at(from))?, open(from).and_then(fstat));
    match named {
        Ok(named) if named.st_ino == held.st_ino => Ok(()),
        _ => Err(CloneError::Gone),
    }
}

struct Walk<'a> {
    from: OwnedFd,
    to: OwnedFd,
    device: u64,
    /// Files with more than one name, and where the first is in the copy.
    links: HashMap<u64, PathBuf>,
    stop: &'a CancellationToken,
}

impl Walk<'_> {
    fn open(&self, root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inside =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        openat2(root, path, flags, Mode::empty(), inside)
    }

    /// None: it went, or became something else, while the walk was elsewhere.
    fn folder(&mut self, path: &Path, next: &mut Vec<PathBuf>) -> Result<Option<Stat>, CloneError> {
        let from = match self.open(&self.from, path) {
            Ok(from) => from,
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(at(path)(error)),
        };
        let stat = fstat(&from).map_err(at(path))?;
        if path != Path::new(".") {
            mkdirat(&self.to, path, Mode::RWXU).map_err(at(path))?;
        }
        let to = self.open(&self.to, path).map_err(at(path))?;
        attributes(from.as_fd(), to.as_fd()).map_err(at(path))?;
        for entry in Dir::read_from(&from).map_err(at(path))? {
            if self.stop.is_cancelled() {
                return Err(CloneError::Stopped);
            }
            let entry = entry.map_err(at(path))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let full = path.join(OsStr::from_bytes(name.to_bytes()));
            match self.entry(&from, &to, name, &full) {
                Ok(true) => next.push(full),
                // It went in between.
                Ok(false) | Err(Errno::NOENT) => {}
                Err(error) => return Err(at(&full)(error)),
            }
        }
        Ok(Some(stat))
    }

    /// Whether it is a folder, which is left to be looked into.
    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, full: &Path) -> Result<bool, Errno> {
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_dev != self.device {
            return Err(Errno::XDEV);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            return Ok(true);
        }
        if let Some(first) = self.links.get(&stat.st_ino) {
            linkat(&self.to, first, to, name, AtFlags::empty())?;
            return Ok(false);
        }
        match kind {
            FileType::RegularFile => file(from, to, name)?,
            other => special(other, from, to, name, &stat)?,
        }
        if stat.st_nlink > 1 {
            self.links.insert(stat.st_ino, full.to_owned());
        }
        Ok(false)
    }
}

/// A link, a pipe, a socket or a device: all that it is stands in its folder.
fn special(kind: FileType, from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    if kind == FileType::Symlink {
        symlinkat(&readlinkat(from, name, Vec::new())?, to, name)?;
    } else {
        mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
    }
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(to, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        // Nobody else knows the copy, so the name is still what was just made.
        rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn file(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let from = match openat(from, name, flags, Mode::empty()) {
        // It became a link, or a socket.
        Err(Errno::LOOP | Errno::NXIO) => return Err(Errno::NOENT),
        opened => opened?,
    };
    let stat = fstat(&from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::NOENT);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    ioctl_ficlone(&to, &from)?;
    // A change of owner takes capabilities away, so they come after.
    fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    attributes(from.as_fd(), to.as_fd())?;
    fchmod(&to, Mode::from_raw_mode(stat.st_mode))?;
    futimens(&to, &times(&stat))
}

fn own(folder: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
    fchown(folder, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(folder, Mode::from_raw_mode(stat.st_mode))?;
    futimens(folder, &times(stat))
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanoseconds).unwrap_or(0) };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Access lists, capabilities and users' own. Those of security modules come from the place.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut names = vec![0; MAX_ATTRIBUTE];
    let length = match flistxattr(from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        length => length?,
    };
    if length == 0 {
        return Ok(());
    }
    let mut value = vec![0; MAX_ATTRIBUTE];
    for name in names.get(..length).unwrap_or_default().split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let text = name.to_bytes();
        let kept =
            text.starts_with(b"user.") || text.starts_with(b"system.posix_acl_") || text == b"security.capability";
        if !kept {
            continue;
        }
        match fgetxattr(from, name, &mut value[..]) {
            Ok(length) => fsetxattr(to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty())?,
            // Taken away in between.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// All that was written to the folder's file system is on its disk afterwards.
pub fn settle(folder: &Path) -> std::io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(folder)?)?)
}

#[cfg(test)]
mod tests;
