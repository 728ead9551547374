//! Folders of local volumes. Guarantees: only a direct child of the root is made or removed; a link in its place is
//! removed and never followed; a folder half removed at a crash is not mistaken for a volume (it was renamed first) and is
//! swept at the next start.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

const LEAVING: &str = ".leaving-";

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

/// `remove_dir_all` opens each folder without following links.
fn drop_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Removes what an earlier run left half removed.
pub async fn sweep(root: &Path) {
    let root = root.to_owned();
    let swept = off_thread(move || {
        let entries = match fs::read_dir(&root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(LEAVING) {
                drop_tree(&entry.path())?;
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
    async fn a_half_removed_volume_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(".leaving-pvc-1/x")).unwrap();
        create(dir.path(), "pvc-2").await.unwrap();
        sweep(dir.path()).await;
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["pvc-2"]);
    }
}
