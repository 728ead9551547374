//! Folders whose files change all at once: a reader sees the old files or the new ones, never a mixture.
//!
//! The files are in a folder named by time; `..data` links to it; every visible name links through `..data`. One rename
//! of that link switches.
//! Upstream: `AtomicWriter` in Kubernetes' `pkg/volume/util`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Component, Path},
};

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    pub bytes: Vec<u8>,
    pub mode: u32,
}

/// Relative paths and what they hold.
pub type Payload = BTreeMap<String, FileContent>;

/// Makes `dir` hold exactly the payload. Returns whether anything changed.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        check(path)?;
    }
    fs::create_dir_all(dir)?;
    let current = fs::read_link(dir.join(DATA)).ok();
    if current.is_some() && same(&dir.join(DATA), payload) {
        return Ok(false);
    }
    let stamp = format!("..{}", crate::shim::timestamp::now_string().replace([':', '-', '.', 'T', 'Z'], "_"));
    let fresh = dir.join(&stamp);
    fs::create_dir(&fresh)?;
    for (path, content) in payload {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &content.bytes)?;
        let mode = if group.is_some() { content.mode | 0o440 } else { content.mode };
        fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
        if group.is_some() {
            chown(&target, None, group)?;
        }
    }
    own_folders(&fresh, group)?;
    let _ = fs::remove_file(dir.join(DATA_NEXT));
    symlink(&stamp, dir.join(DATA_NEXT))?;
    fs::rename(dir.join(DATA_NEXT), dir.join(DATA))?;

    let visible: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &visible {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == DATA || name == stamp || visible.contains(name.as_ref()) {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    if group.is_some() {
        chown(dir, None, group)?;
    }
    Ok(true)
}

fn own_folders(dir: &Path, group: Option<u32>) -> io::Result<()> {
    // Folders are open to every user of the pod: the files' own modes decide.
    let mode = if group.is_some() { 0o2755 } else { 0o755 };
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))?;
    if group.is_some() {
        chown(dir, None, group)?;
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            own_folders(&entry.path(), group)?;
        }
    }
    Ok(())
}

fn same(dir: &Path, payload: &Payload) -> bool {
    fn count(dir: &Path) -> usize {
        let Ok(entries) = fs::read_dir(dir) else { return usize::MAX };
        entries
            .flatten()
            .map(|e| if e.file_type().is_ok_and(|t| t.is_dir()) { count(&e.path()) } else { 1 })
            .fold(0, usize::saturating_add)
    }
    count(dir) == payload.len()
        && payload.iter().all(|(path, content)| fs::read(dir.join(path)).is_ok_and(|bytes| bytes == content.bytes))
}

/// A path from an object may name only something below the folder, and not the folder's own `..` names.
fn check(path: &str) -> io::Result<()> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("the path {path:?} is not below the volume"));
    if path.is_empty() || path.starts_with("..") {
        return Err(bad());
    }
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if plain { Ok(()) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, text)| ((*path).to_owned(), FileContent { bytes: text.as_bytes().to_vec(), mode: 0o644 }))
            .collect()
    }

    #[test]
    fn files_switch_together_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert!(!write(dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap(), "unchanged");
        let before = fs::read_link(dir.join(DATA)).unwrap();
        assert!(write(dir, &payload(&[("a", "9"), ("c", "3")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "9");
        assert_eq!(fs::read_to_string(dir.join("c")).unwrap(), "3");
        assert!(!dir.join("sub").exists() && !dir.join(before).exists());
        assert!(write(dir, &payload(&[]), None).unwrap());
        assert!(!dir.join("a").exists());
    }

    #[test]
    fn nothing_is_written_outside() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("v");
        for path in ["../x", "/etc/x", "a/../../x", "..data", "", "./a/../b"] {
            assert!(write(&inner, &payload(&[(path, "1")]), None).is_err(), "{path}");
        }
        assert!(!dir.path().join("x").exists());
    }
}
