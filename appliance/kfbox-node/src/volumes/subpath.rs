//! `subPath`: a part of a volume. A container can put symbolic links into its volumes, so the part is looked up by the
//! kernel below the volume's root and held by descriptor until it is mounted: a link that leads out is an error, and
//! nothing can change between the check and the mount.
//! Upstream: CVE-2017-1002101, CVE-2021-25741.

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MsFlags, mount},
    sys::stat::{Mode, SFlag, fstat, mkdirat},
};
use std::{
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Component, Path},
};

#[derive(Debug, thiserror::Error)]
pub enum SubPathError {
    #[error("subPath {0:?} must be a relative path without '..'")]
    Form(String),
    #[error("subPath {path:?} leads out of its volume")]
    Escape { path: String },
    #[error("subPath {path:?}: {source}")]
    System {
        path: String,
        #[source]
        source: Errno,
    },
    #[error("cannot make the place for subPath {path:?}: {source}")]
    Place {
        path: String,
        #[source]
        source: std::io::Error,
    },
}

/// Opens what `sub` names below `root`, making folders that are missing.
pub fn open(root: &Path, sub: &str) -> Result<OwnedFd, SubPathError> {
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(sub).components().all(plain) {
        return Err(SubPathError::Form(sub.into()));
    }
    let failed = |source| match source {
        Errno::EXDEV | Errno::ELOOP => SubPathError::Escape { path: sub.into() },
        source => SubPathError::System { path: sub.into(), source },
    };
    let path_only = || OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC);
    let inside = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let mut at = openat2(AT_FDCWD, root, path_only()).map_err(failed)?;
    // Folders above the volume's root stay out of reach for the whole look-up, so it restarts from the root each time.
    let root_fd = openat2(AT_FDCWD, root, path_only()).map_err(failed)?;
    let mode = Mode::from_bits_truncate(fstat(&root_fd).map_err(failed)?.st_mode & 0o7777);
    let mut walked = std::path::PathBuf::new();
    for part in Path::new(sub).components() {
        let Component::Normal(name) = part else { continue };
        walked.push(name);
        at = match openat2(&root_fd, &walked, path_only().resolve(inside)) {
            Err(Errno::ENOENT) => {
                let made = mkdirat(&at, name, mode);
                if !matches!(made, Ok(()) | Err(Errno::EEXIST)) {
                    made.map_err(failed)?;
                }
                let new = openat2(&root_fd, &walked, path_only().resolve(inside)).map_err(failed)?;
                if made.is_ok() {
                    // This process's umask has no say: who may write into the volume may write here.
                    let path = format!("/proc/self/fd/{}", new.as_raw_fd());
                    let permissions = fs::Permissions::from_mode(mode.bits());
                    fs::set_permissions(path, permissions)
                        .map_err(|source| SubPathError::Place { path: sub.into(), source })?;
                }
                new
            }
            found => found.map_err(failed)?,
        };
    }
    Ok(at)
}

/// Mounts an opened part at `target`, which is made to fit.
pub fn bind(part: &OwnedFd, sub: &str, target: &Path) -> Result<(), SubPathError> {
    let system = |source| SubPathError::System { path: sub.into(), source };
    let place = |source| SubPathError::Place { path: sub.into(), source };
    let kind = SFlag::from_bits_truncate(fstat(part).map_err(system)?.st_mode & SFlag::S_IFMT.bits());
    if kind == SFlag::S_IFDIR {
        fs::create_dir_all(target).map_err(place)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(place)?;
        }
        fs::File::create(target).map_err(place)?;
    }
    let source = format!("/proc/self/fd/{}", part.as_raw_fd());
    mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>).map_err(system)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn real(fd: &OwnedFd) -> std::path::PathBuf {
        fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn missing_folders_are_made_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o2777)).unwrap();
        assert_eq!(real(&open(&root, "a/b").unwrap()), root.join("a/b"));
        let mode = fs::metadata(root.join("a/b")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o2777, "as the volume's, whatever the umask");
        fs::write(root.join("a/f"), "x").unwrap();
        assert_eq!(real(&open(&root, "a/f").unwrap()), root.join("a/f"));
    }

    #[test]
    fn links_may_stay_inside_but_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("v/real")).unwrap();
        symlink("real", root.join("v/inside")).unwrap();
        symlink("/etc", root.join("v/absolute")).unwrap();
        symlink("..", root.join("v/up")).unwrap();
        let volume = root.join("v");
        assert_eq!(real(&open(&volume, "inside").unwrap()), volume.join("real"));
        for bad in ["absolute", "absolute/new", "up", "up/x"] {
            assert!(matches!(open(&volume, bad), Err(SubPathError::Escape { .. })), "{bad}");
        }
        for bad in ["..", "/etc", "a/../../x"] {
            assert!(matches!(open(&volume, bad), Err(SubPathError::Form(_))), "{bad}");
        }
        assert!(!root.join("x").exists() && !Path::new("/etc/new").exists());
    }
}
