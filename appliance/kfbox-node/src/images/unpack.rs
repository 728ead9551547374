//! A layer's tar made into a directory that overlayfs can use as a lower layer. Source: image-spec `layer.md` (whiteouts)
//! and the kernel's `overlayfs.rst` (what whiteouts and opaque directories look like on disk).
//!
//! Guarantees: nothing outside the target directory is created, changed or read, whatever the archive says: every path is
//! opened by `openat2` with the target as root, so that `..`, absolute paths and links of the archive end inside it. The
//! archive cannot set overlayfs' own attributes, nor create device nodes, nor expand without bound.
//! Assumptions: the target is fresh, and nobody else writes to it meanwhile.

use super::{
    blobs::{BlobError, Hasher, HashingReader},
    bounded::{Bounded, parse_records},
};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, mkdirat,
            mknodat, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, mkfifoat, symlinkat, unlinkat},
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, BufReader, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

/// The largest layer when unpacked. The largest layers in use (CUDA with its deep-learning libraries) are below 16 GiB; a
/// compressed bomb stops here rather than at the end of the disk.
pub const MAX_EXPANDED: u64 = 32 << 30;
/// The most entries of a layer: inodes run out like bytes do. The largest images in use have some 400 000.
pub const MAX_ENTRIES: u64 = 2_000_000;
/// The longest path inside a layer, the kernel's own limit.
const MAX_PATH: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("entry {path:?} would leave the layer: {why}")]
    Escape { path: PathBuf, why: &'static str },
    #[error("the layer expands beyond {} GiB", MAX_EXPANDED >> 30)]
    TooLarge,
    #[error("the layer has more than {MAX_ENTRIES} entries")]
    TooMany,
    #[error("the unpacked layer does not match its digest: expected {expected}, found {found}")]
    Mismatch { expected: String, found: String },
    #[error("entry {path:?}: {source}{}", super::advice(source))]
    Entry {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the layer's archive is damaged: {0}")]
    Archive(#[source] io::Error),
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// Yields the bytes of a tar that may be compressed with gzip or zstd, told by its first bytes.
pub fn decompress<'a>(from: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut from = BufReader::with_capacity(256 * 1024, from);
    let start = io::BufRead::fill_buf(&mut from)?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(from))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        // The decoder's own bound on its window (128 MiB) stays: it bounds memory.
        Box::new(zstd::stream::read::Decoder::with_buffer(from)?)
    } else {
        Box::new(from)
    })
}

/// Unpacks the layer in `blob` (a tar, gzip or zstd) into the existing directory `target`, and checks the digest of the
/// uncompressed tar. `progress` is told the compressed bytes read so far. Returns that digest and the size unpacked.
pub fn unpack(
    blob: impl Read + Send,
    target: &Path,
    diff_id: Option<&str>,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<(String, u64), UnpackError> {
    let hasher = diff_id.map_or_else(|| Ok(Hasher::sha256()), Hasher::like)?;
    let plain = decompress(Told { inner: blob, bytes: 0, progress }).map_err(UnpackError::Archive)?;
    let mut plain = HashingReader::new(plain.take(MAX_EXPANDED + 1), hasher);
    let mut layer = Layer::open(target)?;
    let bounded = Bounded::new(&mut plain);
    let records = bounded.records();
    let mut archive = tar::Archive::new(bounded);
    let mut count = 0;
    for entry in archive.entries().map_err(UnpackError::Archive)? {
        count += 1;
        if count > MAX_ENTRIES {
            return Err(UnpackError::TooMany);
        }
        let entry = entry.map_err(UnpackError::Archive)?;
        let records = std::mem::take(&mut *records.lock());
        layer.add(entry, &records)?;
    }
    // The digest covers what follows the end-of-archive marker too.
    let mut rest = vec![0; 64 * 1024];
    while plain.read(&mut rest).map_err(UnpackError::Archive)? > 0 {}
    if plain.bytes > MAX_EXPANDED {
        return Err(UnpackError::TooLarge);
    }
    let found = plain.hasher.finish();
    if let Some(expected) = diff_id
        && expected != found
    {
        return Err(UnpackError::Mismatch { expected: expected.into(), found });
    }
    layer.finish()?;
    Ok((found, layer.written))
}

struct Told<'a, R> {
    inner: R,
    bytes: u64,
    progress: &'a mut (dyn FnMut(u64) + Send),
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.bytes += n as u64;
        (self.progress)(self.bytes);
        Ok(n)
    }
}

struct Layer {
    root: OwnedFd,
    path: PathBuf,
    written: u64,
    /// A directory's time is set last: adding to it changes it.
    directory_times: Vec<(PathBuf, TimeSpec)>,
}

struct Attributes {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    mtime: TimeSpec,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Layer {
    fn open(target: &Path) -> Result<Self, UnpackError> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let root = openat(AT_FDCWD, target, flags, Mode::empty()).map_err(at(target))?;
        Ok(Self { root, path: target.to_owned(), written: 0, directory_times: Vec::new() })
    }

    fn add<R: Read>(&mut self, mut entry: tar::Entry<'_, R>, records: &[u8]) -> Result<(), UnpackError> {
        let raw = entry.path_bytes().into_owned();
        let path = clean(&raw)?;
        let kind = entry.header().entry_type();
        let attributes =
            attributes(entry.header(), records).map_err(|source| UnpackError::Entry { path: path.clone(), source })?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The root itself.
            if kind.is_dir() {
                fchown(&self.root, Some(attributes.uid), Some(attributes.gid)).map_err(at(&path))?;
                fchmod(&self.root, attributes.mode).map_err(at(&path))?;
                set_xattrs(self.root.as_fd(), &attributes.xattrs)
                    .map_err(|source| UnpackError::Entry { path: path.clone(), source })?;
                self.directory_times.push((PathBuf::new(), attributes.mtime));
            }
            return Ok(());
        };
        let parent = self.parent(path.parent().unwrap_or(Path::new("")))?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return whiteout(parent.as_fd(), hidden, &path);
        }
        let existing = lstat(parent.as_fd(), &name).map_err(at(&path))?;
        // Below a whiteout of the same layer nothing of the layers beneath may show.
        let was_whiteout = existing.as_ref().is_some_and(is_whiteout);
        match existing {
            Some(stat) if kind.is_dir() && file_kind(&stat) == SFlag::S_IFDIR => {}
            Some(stat) => self.remove(parent.as_fd(), &name, &stat, &path)?,
            None => {}
        }
        match kind {
            tar::EntryType::Directory => {
                match mkdirat(&parent, name.as_os_str(), Mode::from_bits_truncate(0o700)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(at(&path)(error)),
                }
                let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
                let folder = openat(&parent, name.as_os_str(), flags, Mode::empty()).map_err(at(&path))?;
                fchown(&folder, Some(attributes.uid), Some(attributes.gid)).map_err(at(&path))?;
                fchmod(&folder, attributes.mode).map_err(at(&path))?;
                set_xattrs(folder.as_fd(), &attributes.xattrs)
                    .map_err(|source| UnpackError::Entry { path: path.clone(), source })?;
                if was_whiteout {
                    set_opaque(folder.as_fd()).map_err(|source| UnpackError::Entry { path: path.clone(), source })?;
                }
                self.directory_times.push((path, attributes.mtime));
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name_bytes().map(|t| t.into_owned()).unwrap_or_default();
                symlinkat(OsStr::from_bytes(&target), &parent, name.as_os_str()).map_err(at(&path))?;
                fchownat(
                    &parent,
                    name.as_os_str(),
                    Some(attributes.uid),
                    Some(attributes.gid),
                    AtFlags::AT_SYMLINK_NOFOLLOW,
                )
                .map_err(at(&path))?;
                let mtime = &attributes.mtime;
                utimensat(&parent, name.as_os_str(), mtime, mtime, UtimensatFlags::NoFollowSymlink)
                    .map_err(at(&path))?;
            }
            tar::EntryType::Link => {
                let target = clean(&entry.link_name_bytes().map(|t| t.into_owned()).unwrap_or_default())?;
                let Some(target_name) = target.file_name() else {
                    return Err(UnpackError::Escape { path, why: "a hard link to the root" });
                };
                let target_parent = self.open_directory(target.parent().unwrap_or(Path::new(""))).map_err(at(&path))?;
                linkat(&target_parent, target_name, &parent, name.as_os_str(), AtFlags::empty()).map_err(at(&path))?;
            }
            tar::EntryType::Fifo => {
                mkfifoat(&parent, name.as_os_str(), Mode::from_bits_truncate(0o600)).map_err(at(&path))?;
                fchownat(
                    &parent,
                    name.as_os_str(),
                    Some(attributes.uid),
                    Some(attributes.gid),
                    AtFlags::AT_SYMLINK_NOFOLLOW,
                )
                .map_err(at(&path))?;
                fchmodat(&parent, name.as_os_str(), attributes.mode, FchmodatFlags::FollowSymlink)
                    .map_err(at(&path))?;
            }
            // A container gets its devices from its runtime; a node in an image would reach the machine's own.
            tar::EntryType::Char | tar::EntryType::Block => {
                tracing::debug!(?path, "a device node of a layer was left out")
            }
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file =
                    openat(&parent, name.as_os_str(), flags, Mode::from_bits_truncate(0o600)).map_err(at(&path))?;
                let mut file = File::from(file);
                self.copy(&mut entry, &mut file).map_err(|error| match error {
                    None => UnpackError::TooLarge,
                    Some(source) => UnpackError::Entry { path: path.clone(), source },
                })?;
                // A change of owner clears the set-id bits and the capabilities, so it comes first.
                fchown(&file, Some(attributes.uid), Some(attributes.gid)).map_err(at(&path))?;
                fchmod(&file, attributes.mode).map_err(at(&path))?;
                set_xattrs(file.as_fd(), &attributes.xattrs)
                    .map_err(|source| UnpackError::Entry { path: path.clone(), source })?;
                futimens(&file, &attributes.mtime, &attributes.mtime).map_err(at(&path))?;
            }
            other => tracing::debug!(?path, kind = ?other, "an entry of unknown kind was left out"),
        }
        Ok(())
    }

    /// Copies a file's content; `None` when it would pass the limit of the layer. Sparse files count in full.
    fn copy(&mut self, from: &mut impl Read, to: &mut File) -> Result<(), Option<io::Error>> {
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Some(error)),
            };
            self.written += n as u64;
            if self.written > MAX_EXPANDED {
                return Err(None);
            }
            to.write_all(&buffer[..n]).map_err(Some)?;
        }
    }

    /// Opens a directory of the layer; links are followed, and end inside.
    fn open_directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new()
            .flags(OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.root, path, how)
    }

    /// Opens a parent, made on the way when the archive does not list it.
    fn parent(&self, path: &Path) -> Result<OwnedFd, UnpackError> {
        match self.open_directory(path) {
            Ok(folder) => return Ok(folder),
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(at(path)(error)),
        }
        let mut so_far = PathBuf::new();
        let mut folder = self.open_directory(Path::new("")).map_err(at(path))?;
        for part in path.components() {
            so_far.push(part);
            folder = match self.open_directory(&so_far) {
                Ok(next) => next,
                Err(Errno::ENOENT) => {
                    mkdirat(&folder, part.as_os_str(), Mode::from_bits_truncate(0o755)).map_err(
                        |error| match error {
                            Errno::EEXIST => {
                                UnpackError::Escape { path: path.to_owned(), why: "its parent is a dangling link" }
                            }
                            error => at(path)(error),
                        },
                    )?;
                    self.open_directory(&so_far).map_err(at(path))?
                }
                Err(error) => return Err(at(path)(error)),
            };
        }
        Ok(folder)
    }

    /// Makes way for an entry that replaces an earlier one of the same layer.
    fn remove(&self, parent: BorrowedFd<'_>, name: &OsStr, stat: &FileStat, path: &Path) -> Result<(), UnpackError> {
        if file_kind(stat) != SFlag::S_IFDIR {
            return unlinkat(parent, name, UnlinkatFlags::NoRemoveDir).map_err(at(path));
        }
        // Through the open parent, so that no link of the archive is followed; the removal itself follows none.
        let through = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
        std::fs::remove_dir_all(through).map_err(|source| UnpackError::Entry { path: path.to_owned(), source })
    }

    fn finish(&mut self) -> Result<(), UnpackError> {
        for (path, mtime) in std::mem::take(&mut self.directory_times).into_iter().rev() {
            match self.open_directory(&path) {
                Ok(folder) => futimens(&folder, &mtime, &mtime).map_err(at(&path))?,
                // Replaced later in the same layer.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(error) => return Err(at(&path)(error)),
            }
        }
        // One flush for the whole layer, before it gets its name.
        nix::unistd::syncfs(&self.root).map_err(at(&self.path))
    }
}

fn at(path: &Path) -> impl FnOnce(Errno) -> UnpackError + '_ {
    move |error| UnpackError::Entry { path: path.to_owned(), source: error.into() }
}

/// The path inside the layer: a leading `/` and `.` mean nothing, `..` is refused.
fn clean(raw: &[u8]) -> Result<PathBuf, UnpackError> {
    let given = || PathBuf::from(OsStr::from_bytes(&raw[..raw.len().min(256)]));
    if raw.len() > MAX_PATH || raw.contains(&0) {
        return Err(UnpackError::Escape { path: given(), why: "not a path" });
    }
    let mut path = PathBuf::new();
    for part in raw.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(UnpackError::Escape { path: given(), why: "it contains '..'" }),
            part => path.push(OsStr::from_bytes(part)),
        }
    }
    Ok(path)
}

fn attributes(header: &tar::Header, records: &[u8]) -> io::Result<Attributes> {
    let mut uid = header.uid()?;
    let mut gid = header.gid()?;
    let mut mtime = TimeSpec::new(i64::try_from(header.mtime()?).unwrap_or(0), 0);
    let mode = Mode::from_bits_truncate(header.mode()? & 0o7777);
    let mut xattrs = Vec::new();
    for (key, value) in parse_records(records)? {
        let text = || std::str::from_utf8(value).ok();
        match key {
            b"uid" => uid = text().and_then(|t| t.parse().ok()).unwrap_or(uid),
            b"gid" => gid = text().and_then(|t| t.parse().ok()).unwrap_or(gid),
            b"mtime" => mtime = text().and_then(timestamp).unwrap_or(mtime),
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                    && may_set(name)
                {
                    xattrs.push((OsStr::from_bytes(name).to_owned(), value.to_vec()));
                }
            }
        }
    }
    let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("an owner's number is out of range"));
    Ok(Attributes { mode, uid: Uid::from_raw(id(uid)?), gid: Gid::from_raw(id(gid)?), mtime, xattrs })
}

/// `seconds.fraction`, as pax writes it.
fn timestamp(text: &str) -> Option<TimeSpec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(TimeSpec::new(seconds.parse().ok()?, nanoseconds.parse().ok()?))
}

/// File capabilities, access lists and the users' own attributes; never those by which overlayfs itself is steered.
fn may_set(name: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        name => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

fn set_xattrs(file: BorrowedFd<'_>, xattrs: &[(OsString, Vec<u8>)]) -> io::Result<()> {
    for (name, value) in xattrs {
        match set_xattr(file, name, value) {
            // A file system without attributes of that kind still holds the files.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                tracing::debug!(?name, "the file system does not take this attribute");
            }
            other => other?,
        }
    }
    Ok(())
}

fn set_opaque(folder: BorrowedFd<'_>) -> io::Result<()> {
    set_xattr(folder, OsStr::new("trusted.overlay.opaque"), b"y")
}

fn set_xattr(file: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
    // By the descriptor's own path: it is open, so nothing is looked up again.
    xattr::set_deref(format!("/proc/self/fd/{}", file.as_raw_fd()), name, value)
}

fn whiteout(parent: BorrowedFd<'_>, hidden: &[u8], path: &Path) -> Result<(), UnpackError> {
    match hidden {
        b".wh..opq" => {
            return set_opaque(parent).map_err(|source| UnpackError::Entry { path: path.to_owned(), source });
        }
        b"" | b"." | b".." => {
            return Err(UnpackError::Escape { path: path.to_owned(), why: "a whiteout of the directory itself" });
        }
        // Book-keeping of aufs, which older images carry.
        other if other.starts_with(b".wh.") => return Ok(()),
        _ => {}
    }
    let name = OsStr::from_bytes(hidden);
    match lstat(parent, name).map_err(at(path))? {
        None => mknodat(parent, name, SFlag::S_IFCHR, Mode::empty(), 0).map_err(at(path)),
        // A whiteout hides what lies beneath; what the same layer adds stays.
        Some(stat) if file_kind(&stat) == SFlag::S_IFDIR => {
            let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
            let folder = openat(parent, name, flags, Mode::empty()).map_err(at(path))?;
            set_opaque(folder.as_fd()).map_err(|source| UnpackError::Entry { path: path.to_owned(), source })
        }
        Some(_) => Ok(()),
    }
}

fn lstat(parent: BorrowedFd<'_>, name: &OsStr) -> Result<Option<FileStat>, Errno> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn file_kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn is_whiteout(stat: &FileStat) -> bool {
    file_kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}
