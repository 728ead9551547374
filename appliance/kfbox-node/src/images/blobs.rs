//! Content-addressed files. Invariant: a file under `blobs/ALGORITHM/HEX` has exactly that digest; it appears there by
//! rename, complete and on disk, or not at all.

use sha2::{Digest as _, Sha256, Sha512};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("content does not match its digest: expected {expected}, found {found}")]
    Mismatch { expected: String, found: String },
    #[error("{0:?} is not a digest")]
    NotADigest(String),
    #[error("content is longer than the {limit} bytes declared")]
    TooLong { limit: u64 },
    #[error("{path}: {source}{}", super::advice(source))]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl BlobError {
    pub fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// A running digest of one of the registered algorithms.
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// The algorithm that `digest` names.
    pub fn like(digest: &str) -> Result<Self, BlobError> {
        if !super::name::is_digest(digest) {
            return Err(BlobError::NotADigest(digest.chars().take(160).collect()));
        }
        Ok(if digest.starts_with("sha512:") { Self::Sha512(Sha512::new()) } else { Self::sha256() })
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(h) => h.update(bytes),
            Self::Sha512(h) => h.update(bytes),
        }
    }

    pub fn finish(self) -> String {
        match self {
            Self::Sha256(h) => format!("sha256:{}", hex::encode(h.finalize())),
            Self::Sha512(h) => format!("sha512:{}", hex::encode(h.finalize())),
        }
    }
}

pub fn digest_of(bytes: &[u8]) -> String {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}

/// Passes bytes through while hashing them.
pub struct HashingReader<R> {
    inner: R,
    pub hasher: Hasher,
    pub bytes: u64,
}

impl<R> HashingReader<R> {
    pub fn new(inner: R, hasher: Hasher) -> Self {
        Self { inner, hasher, bytes: 0 }
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

/// The blobs of one store.
#[derive(Debug, Clone)]
pub struct Blobs {
    root: PathBuf,
    temporary: PathBuf,
}

/// A blob on its way: written under a temporary name, removed when dropped before [`Incoming::keep`].
pub struct Incoming {
    pub file: File,
    pub path: PathBuf,
    kept: bool,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.kept {
            drop(fs::remove_file(&self.path));
        }
    }
}

impl Blobs {
    pub fn open(root: PathBuf, temporary: PathBuf) -> Result<Self, BlobError> {
        for folder in [root.join("sha256"), root.join("sha512"), temporary.clone()] {
            fs::create_dir_all(&folder).map_err(BlobError::at(&folder))?;
        }
        Ok(Self { root, temporary })
    }

    /// Where `digest` is or would be.
    pub fn path(&self, digest: &str) -> Result<PathBuf, BlobError> {
        if !super::name::is_digest(digest) {
            return Err(BlobError::NotADigest(digest.chars().take(160).collect()));
        }
        Ok(self.root.join(digest.replacen(':', "/", 1)))
    }

    pub fn has(&self, digest: &str) -> bool {
        self.path(digest).is_ok_and(|path| path.is_file())
    }

    /// A blob small enough for memory: manifests and configurations.
    pub fn read_small(&self, digest: &str) -> Result<Vec<u8>, BlobError> {
        let path = self.path(digest)?;
        let file = File::open(&path).map_err(BlobError::at(&path))?;
        let mut bytes = Vec::new();
        file.take(super::MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(BlobError::at(&path))?;
        if bytes.len() as u64 > super::MAX_DOCUMENT {
            return Err(BlobError::TooLong { limit: super::MAX_DOCUMENT });
        }
        let found = {
            let mut hasher = Hasher::like(digest)?;
            hasher.update(&bytes);
            hasher.finish()
        };
        if found != digest {
            return Err(BlobError::Mismatch { expected: digest.into(), found });
        }
        Ok(bytes)
    }

    pub fn incoming(&self) -> Result<Incoming, BlobError> {
        let path = self.temporary.join(uuid::Uuid::new_v4().to_string());
        let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(BlobError::at(&path))?;
        Ok(Incoming { file, path, kept: false })
    }

    /// Makes an incoming blob, whose digest the caller computed, part of the store.
    pub fn keep(&self, mut incoming: Incoming, digest: &str) -> Result<(), BlobError> {
        let path = self.path(digest)?;
        if path.is_file() {
            return Ok(());
        }
        incoming.file.sync_data().map_err(BlobError::at(&incoming.path))?;
        fs::rename(&incoming.path, &path).map_err(BlobError::at(&path))?;
        incoming.kept = true;
        if let Some(folder) = path.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(BlobError::at(folder))?;
        }
        Ok(())
    }

    /// Stores what `from` yields, at most `limit` bytes, and returns its SHA-256 digest and size. With `expected`, content
    /// of any other digest is refused and leaves nothing behind.
    pub fn write(&self, from: impl Read, expected: Option<&str>, limit: u64) -> Result<(String, u64), BlobError> {
        let mut incoming = self.incoming()?;
        let hasher = expected.map_or_else(|| Ok(Hasher::sha256()), Hasher::like)?;
        let mut from = HashingReader::new(from.take(limit.saturating_add(1)), hasher);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(BlobError::at(&incoming.path)(error)),
            };
            incoming.file.write_all(&buffer[..n]).map_err(BlobError::at(&incoming.path))?;
        }
        let size = from.bytes;
        if size > limit {
            return Err(BlobError::TooLong { limit });
        }
        let found = from.hasher.finish();
        if let Some(expected) = expected
            && expected != found
        {
            return Err(BlobError::Mismatch { expected: expected.into(), found });
        }
        self.keep(incoming, &found)?;
        Ok((found, size))
    }

    /// Every blob stored, as digests.
    pub fn list(&self) -> Result<Vec<String>, BlobError> {
        let mut all = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            let folder = self.root.join(algorithm);
            for entry in fs::read_dir(&folder).map_err(BlobError::at(&folder))? {
                let entry = entry.map_err(BlobError::at(&folder))?;
                let digest = format!("{algorithm}:{}", entry.file_name().to_string_lossy());
                if super::name::is_digest(&digest) {
                    all.push(digest);
                }
            }
        }
        Ok(all)
    }

    /// Removes a blob and returns the bytes freed.
    pub fn remove(&self, digest: &str) -> Result<u64, BlobError> {
        let path = self.path(digest)?;
        let size = fs::metadata(&path).map_or(0, |m| m.len());
        match fs::remove_file(&path) {
            Ok(()) => Ok(size),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(BlobError::at(&path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_of_another_digest_is_refused_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path().join("blobs"), folder.path().join("tmp")).unwrap();
        let right = digest_of(b"hello");
        assert!(matches!(blobs.write(&b"hullo"[..], Some(&right), 100), Err(BlobError::Mismatch { .. })));
        assert!(!blobs.has(&right));
        assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
        assert!(matches!(blobs.write(&b"hello"[..], Some(&right), 4), Err(BlobError::TooLong { limit: 4 })));
        assert_eq!(blobs.write(&b"hello"[..], Some(&right), 5).unwrap(), (right.clone(), 5));
        assert_eq!(blobs.read_small(&right).unwrap(), b"hello");
        // Damage on disk is found, not served.
        fs::write(blobs.path(&right).unwrap(), b"hullo").unwrap();
        assert!(matches!(blobs.read_small(&right), Err(BlobError::Mismatch { .. })));
    }

    #[test]
    fn a_digest_is_no_path() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path().join("blobs"), folder.path().join("tmp")).unwrap();
        for bad in ["sha256:../../x", "../x", "sha256:", "sha256:ABC", ""] {
            assert!(blobs.path(bad).is_err(), "{bad}");
            assert!(blobs.write(&b""[..], Some(bad), 1).is_err(), "{bad}");
        }
    }
}
