//! Folders of local volumes, and of their snapshots in a folder beside them that no other user of the machine can enter.
//! Guarantees: only a direct child of the root is made or removed; a link in its place is removed and never followed; a
//! folder half removed or half made at a crash is not mistaken for a volume or a snapshot (it has another name, and what is
//! made is on the disk before it is renamed) and is swept at the next start.

use super::clone::{self, CloneError};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};
use tokio_util::sync::CancellationToken;

const LEAVING: &str = ".leaving-";
const MAKING: &str = ".making-";
/// Below the root: one folder a snapshot, with its files in [`CONTENT`] and what is known of it in [`TAKEN`].
const SNAPSHOTS: &str = ".snapshots";
const CONTENT: &str = "content";
const TAKEN: &str = "snapshot.json";

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error(transparent)]
    Clone(#[from] CloneError),
    #[error("{path}: {source}")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> FolderError + '_ {
    move |source| FolderError::Io { path: path.display().to_string(), source }
}

/// A snapshot on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Taken {
    /// Nanoseconds since 1970.
    pub time: i64,
    /// What the volume's claim had asked for, in bytes.
    pub size: i64,
}

/// The folder of a volume; `None` when the name is no plain name.
pub fn path(root: &Path, volume: &str) -> Option<PathBuf> {
    let plain = !volume.is_empty()
        && !volume.starts_with('.')
        && volume.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    plain.then(|| root.join(volume))
}

fn bad_name() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the volume's name cannot be a folder's")
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Makes the folder, for every user as upstream's provisioner does: pods run as anyone.
pub async fn create(root: &Path, volume: &str) -> io::Result<()> {
    let (root, path) = (root.to_owned(), path(root, volume).ok_or_else(bad_name)?);
    off_thread(move || {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(&root)?;
        match fs::create_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && fs::symlink_metadata(&path)?.is_dir() => {}
            Err(error) => return Err(error),
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))
    })
    .await
}

pub async fn remove(root: &Path, volume: &str) -> io::Result<()> {
    let path = path(root, volume).ok_or_else(bad_name)?;
    let leaving = root.join(format!("{LEAVING}{volume}"));
    off_thread(move || {
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => {
                drop_tree(&leaving)?;
                fs::rename(&path, &leaving)?;
            }
            Ok(_) => fs::remove_file(&path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        drop_tree(&leaving)
    })
    .await
}

/// What a new volume is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Volume(String),
    Snapshot(String),
}

/// Makes a volume's folder with the content of another volume or of a snapshot.
pub async fn create_from(
    root: &Path,
    volume: &str,
    origin: &Origin,
    stop: &CancellationToken,
) -> Result<(), FolderError> {
    let target = path(root, volume).ok_or_else(bad_name).map_err(at(root))?;
    let from = match origin {
        Origin::Volume(name) => path(root, name),
        Origin::Snapshot(name) => path(&root.join(SNAPSHOTS), name).map(|folder| folder.join(CONTENT)),
    };
    let (root, volume, stop) = (root.to_owned(), volume.to_owned(), stop.clone());
    let from = from.ok_or_else(bad_name).map_err(at(&root))?;
    apart(move || {
        // Made before, though nobody noted it.
        if fs::symlink_metadata(&target).is_ok_and(|meta| meta.is_dir()) {
            return Ok(());
        }
        let making = room(&root, &volume)?;
        clone::tree(&from, &making, &stop)?;
        clone::settle(&making).map_err(at(&making))?;
        fs::rename(&making, &target).map_err(at(&target))
    })
    .await
}

/// Takes a snapshot of a volume, once: the same again is the first one.
pub async fn take(
    root: &Path,
    volume: &str,
    name: &str,
    size: i64,
    stop: &CancellationToken,
) -> Result<Taken, FolderError> {
    let from = path(root, volume).ok_or_else(bad_name).map_err(at(root))?;
    let target = path(&root.join(SNAPSHOTS), name).ok_or_else(bad_name).map_err(at(root))?;
    if let Some(taken) = taken(root, name).await.map_err(at(&target))? {
        return Ok(taken);
    }
    let (root, name, stop) = (root.to_owned(), name.to_owned(), stop.clone());
    apart(move || {
        let making = room(&root, &name)?;
        fs::DirBuilder::new().mode(0o700).create(&making).map_err(at(&making))?;
        let time = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
        let taken = Taken { time, size };
        clone::tree(&from, &making.join(CONTENT), &stop)?;
        let text = serde_json::to_vec(&taken).map_err(io::Error::other);
        text.and_then(|text| fs::write(making.join(TAKEN), text)).map_err(at(&making))?;
        clone::settle(&making).map_err(at(&making))?;
        fs::rename(&making, &target).map_err(at(&target))?;
        Ok(taken)
    })
    .await
}

/// The snapshot of that name, if it is there.
pub async fn taken(root: &Path, name: &str) -> io::Result<Option<Taken>> {
    let path = path(&root.join(SNAPSHOTS), name).ok_or_else(bad_name)?.join(TAKEN);
    off_thread(move || match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    })
    .await
}

pub async fn forget(root: &Path, name: &str) -> io::Result<()> {
    remove(&root.join(SNAPSHOTS), name).await
}

/// An unused name for what is being made, where files can be cloned.
fn room(root: &Path, name: &str) -> Result<PathBuf, FolderError> {
    let folder = root.join(SNAPSHOTS);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(at(&folder))?;
    clone::check(&folder)?;
    let making = folder.join(format!("{MAKING}{name}"));
    drop_tree(&making).map_err(at(&making))?;
    Ok(making)
}

async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FolderError> + Send + 'static,
) -> Result<T, FolderError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(CloneError::Stopped.into()),
    }
}

/// `remove_dir_all` opens each folder without following links.
fn drop_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Removes what an earlier run left half removed.
pub async fn sweep(root: &Path) {
    let folders = [root.to_owned(), root.join(SNAPSHOTS)];
    let swept = off_thread(move || {
        for folder in folders {
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if name.starts_with(LEAVING) || name.starts_with(MAKING) {
                    drop_tree(&entry.path())?;
                }
            }
        }
        Ok(())
    })
    .await;
    if let Err(error) = swept {
        tracing::warn!(%error, "what an earlier run left of removed volumes could not be swept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[tokio::test]
    async fn removal_never_leaves_the_root_and_never_follows_links() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volumes");
        create(&root, "pvc-1").await.unwrap();
        create(&root, "pvc-1").await.unwrap();
        assert_eq!(fs::metadata(root.join("pvc-1")).unwrap().permissions().mode() & 0o777, 0o777);
        symlink(outside.path(), root.join("pvc-1/link")).unwrap();
        fs::create_dir_all(root.join("pvc-1/a/b")).unwrap();
        remove(&root, "pvc-1").await.unwrap();
        remove(&root, "pvc-1").await.unwrap();
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        symlink(outside.path(), root.join("pvc-2")).unwrap();
        assert!(create(&root, "pvc-2").await.is_err(), "a link is no volume");
        remove(&root, "pvc-2").await.unwrap();
        assert!(outside.path().join("precious").exists());
        for bad in ["", ".", "..", "../x", "a/b", "/etc", ".leaving-x", "a\0b"] {
            assert!(create(&root, bad).await.is_err() && remove(&root, bad).await.is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_a_crash_left_half_made_is_no_snapshot_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let half = dir.path().join(".snapshots/.making-snapcontent-1/content");
        fs::create_dir_all(&half).unwrap();
        fs::create_dir_all(dir.path().join(".snapshots/.leaving-snapcontent-2")).unwrap();
        assert_eq!(taken(dir.path(), "snapcontent-1").await.unwrap(), None);
        sweep(dir.path()).await;
        assert_eq!(fs::read_dir(dir.path().join(".snapshots")).unwrap().count(), 0);
        for bad in ["..", "../pvc-1", ".making-x", "a/b"] {
            assert!(taken(dir.path(), bad).await.is_err() && forget(dir.path(), bad).await.is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_half_removed_volume_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(".leaving-pvc-1/x")).unwrap();
        create(dir.path(), "pvc-2").await.unwrap();
        sweep(dir.path()).await;
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["pvc-2"]);
    }
}
