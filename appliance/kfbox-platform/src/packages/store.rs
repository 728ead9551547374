//! The cache folder: `files/AB/SHA256` by content, `partial/` for downloads under way, `index/PROJECT.json` for pages.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

pub struct Store {
    files: PathBuf,
    partial: PathBuf,
    limit: u64,
    used: AtomicU64,
    evicting: parking_lot::Mutex<()>,
}

impl Store {
    pub fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        let (files, partial) = (folder.join("files"), folder.join("partial"));
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir_all(&files)?;
        fs::create_dir_all(&partial)?;
        let used = list(&files)?.iter().map(|(_, size, _)| size).sum();
        Ok(Self { files, partial, limit, used: AtomicU64::new(used), evicting: parking_lot::Mutex::new(()) })
    }

    /// `sha256` must have been checked with [`super::page::is_sha256`].
    pub fn path(&self, sha256: &str) -> PathBuf {
        self.files.join(&sha256[..2]).join(sha256)
    }

    pub fn partial(&self) -> PathBuf {
        self.partial.join(uuid::Uuid::new_v4().to_string())
    }

    /// Opens a kept file and marks it as used now.
    pub fn get(&self, sha256: &str) -> io::Result<Option<(fs::File, u64)>> {
        match fs::File::open(self.path(sha256)) {
            Ok(file) => {
                let length = file.metadata()?.len();
                // Only the order of eviction depends on it.
                let _ = file.set_modified(SystemTime::now());
                Ok(Some((file, length)))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Takes a verified file into the cache, and lets the longest unused go when there are too many bytes.
    pub fn keep(&self, partial: &Path, sha256: &str) -> io::Result<()> {
        let (size, target) = (fs::metadata(partial)?.len(), self.path(sha256));
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        let known = target.exists();
        fs::rename(partial, &target)?;
        if !known {
            self.used.fetch_add(size, Ordering::Relaxed);
        }
        if self.used.load(Ordering::Relaxed) > self.limit {
            self.evict(&target)?;
        }
        Ok(())
    }

    fn evict(&self, newest: &Path) -> io::Result<()> {
        let _one = self.evicting.lock();
        let mut all = list(&self.files)?;
        let mut used: u64 = all.iter().map(|(_, size, _)| size).sum();
        all.sort_by_key(|(_, _, when)| *when);
        for (path, size, _) in all {
            // Down to nine tenths, so that not every file to come has to scan again.
            if used <= self.limit / 10 * 9 {
                break;
            }
            if path != newest {
                // Readers that have it open keep reading.
                fs::remove_file(&path)?;
                used -= size;
            }
        }
        self.used.store(used, Ordering::Relaxed);
        Ok(())
    }
}

fn list(files: &Path) -> io::Result<Vec<(PathBuf, u64, SystemTime)>> {
    let mut all = Vec::new();
    for folder in fs::read_dir(files)? {
        let folder = folder?;
        if folder.file_type()?.is_dir() {
            for file in fs::read_dir(folder.path())? {
                let file = file?;
                let metadata = file.metadata()?;
                all.push((file.path(), metadata.len(), metadata.modified()?));
            }
        }
    }
    Ok(all)
}

/// Writes a small file whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4()));
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_go_when_the_cache_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 250).unwrap();
        let name = |n: u8| format!("{n:02x}").repeat(32);
        for n in 0..3 {
            let partial = store.partial();
            fs::write(&partial, [n; 100]).unwrap();
            let old = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(n));
            fs::File::options().append(true).open(&partial).unwrap().set_modified(old).unwrap();
            if n == 2 {
                // The first was used again meanwhile.
                assert!(store.get(&name(0)).unwrap().is_some());
            }
            store.keep(&partial, &name(n)).unwrap();
        }
        assert!(store.get(&name(0)).unwrap().is_some());
        assert!(store.get(&name(1)).unwrap().is_none());
        assert!(store.get(&name(2)).unwrap().is_some());
        drop(store);
        assert_eq!(Store::open(dir.path(), 250).unwrap().used.load(Ordering::Relaxed), 200);
    }
}
