//! Content files. A file's name is a random id, never anything a client sent, so that no key can name a path.
//!
//! Guarantees: a file under `blobs/` is whole and on disk before a row names it; a file that is being read or about to
//! be named is not unlinked. A crash leaves at most files that no row names; [`ContentStore::open`] clears those still
//! being written, and the store's sweep those that were finished.

use crate::{
    Error,
    digest::{Algorithm, Checksums, Hashers},
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use kfbox_base::BoxError;
use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes gathered from the network before they are hashed and written in one step off the asynchronous threads: large
/// enough that the hand-over costs nothing beside the hashing, small enough that hundreds of slow uploads stay cheap.
const BATCH: usize = 256 * 1024;
/// Room reserved on disk at once, so that a full disk is found before the body is sent.
const RESERVE_FROM: u64 = 1024 * 1024;

pub(crate) struct ContentStore {
    blobs: PathBuf,
    incoming: PathBuf,
    pins: Mutex<Pins>,
}

#[derive(Default)]
struct Pins {
    held: HashMap<String, usize>,
    doomed: HashSet<String>,
}

/// Keeps content files from being unlinked while they are read or about to be named by a row.
pub(crate) struct Pin {
    store: Arc<ContentStore>,
    ids: Vec<String>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let unlink: Vec<String> = {
            let mut pins = self.store.pins.lock().unwrap_or_else(PoisonError::into_inner);
            self.ids.drain(..).filter(|id| pins.release(id)).collect()
        };
        for id in unlink {
            self.store.unlink(&id);
        }
    }
}

impl Pins {
    /// True when nobody holds the file any more and it should go.
    fn release(&mut self, id: &str) -> bool {
        match self.held.get_mut(id) {
            Some(1) => {
                self.held.remove(id);
                self.doomed.remove(id)
            }
            Some(n) => {
                *n -= 1;
                false
            }
            None => false,
        }
    }
}

/// What a body is expected to be.
#[derive(Debug, Default, Clone)]
pub(crate) struct Expected {
    pub length: Option<u64>,
    pub most: u64,
    pub algorithms: Vec<Algorithm>,
}

/// A finished content file that no row names yet. Dropping it unlinks the file unless [`Stored::named`] was called.
pub(crate) struct Stored {
    pub id: String,
    pub size: u64,
    pub md5: [u8; 16],
    pub checksums: Checksums,
    pin: Option<Pin>,
}

impl Stored {
    /// To be called inside the transaction that names the file. The pin returned must live until after the commit; if
    /// the commit fails, the file is left to the sweep.
    pub fn named(mut self) -> Option<Pin> {
        self.pin.take()
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        if let Some(pin) = self.pin.take() {
            pin.store.unlink(&self.id);
        }
    }
}

impl ContentStore {
    /// Creates the folders and clears what an interrupted upload left.
    pub fn open(root: &Path) -> io::Result<Arc<Self>> {
        let store = Self { blobs: root.join("blobs"), incoming: root.join("incoming"), pins: Mutex::default() };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&store.incoming)?;
        builder.create(&store.blobs)?;
        for entry in fs::read_dir(&store.incoming)? {
            fs::remove_file(entry?.path())?;
        }
        for shard in 0..=255_u8 {
            builder.create(store.blobs.join(hex::encode([shard])))?;
        }
        for folder in [root, &store.incoming, &store.blobs] {
            File::open(folder)?.sync_all()?;
        }
        Ok(Arc::new(store))
    }

    pub fn path(&self, id: &str) -> PathBuf {
        self.blobs.join(&id[..2]).join(id)
    }

    pub fn pin(self: &Arc<Self>, ids: impl IntoIterator<Item = String>) -> Pin {
        let ids: Vec<String> = ids.into_iter().collect();
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        for id in &ids {
            *pins.held.entry(id.clone()).or_default() += 1;
        }
        Pin { store: self.clone(), ids }
    }

    /// Unlinks files that no row names any more, now or when their last reader is done.
    pub async fn remove(self: &Arc<Self>, ids: Vec<String>) {
        if ids.is_empty() {
            return;
        }
        let store = self.clone();
        let removed = spawn_blocking(move || {
            for id in ids {
                let held = {
                    let mut pins = store.pins.lock().unwrap_or_else(PoisonError::into_inner);
                    let held = pins.held.contains_key(&id);
                    if held {
                        pins.doomed.insert(id.clone());
                    }
                    held
                };
                if !held {
                    store.unlink(&id);
                }
            }
        });
        if removed.await.is_err() {
            tracing::warn!("content files were not unlinked; the next start sweeps them");
        }
    }

    fn unlink(&self, id: &str) {
        if let Err(error) = fs::remove_file(self.path(id))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, id, "cannot unlink a content file; the next start tries again");
        }
    }

    /// The finished files of one shard (0 to 255) that nobody holds. The caller then asks the database which of them
    /// are named: a file named after this listing was held during it, or was listed and is named.
    pub fn shard(&self, shard: u8) -> io::Result<Vec<String>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.blobs.join(hex::encode([shard])))? {
            if let Ok(name) = entry?.file_name().into_string() {
                ids.push(name);
            }
        }
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        ids.retain(|id| !pins.held.contains_key(id));
        Ok(ids)
    }

    /// Receives a body into a finished content file.
    pub async fn receive<S>(self: &Arc<Self>, mut body: S, expected: Expected) -> Result<Stored, Error>
    where
        S: Stream<Item = Result<Bytes, BoxError>> + Unpin,
    {
        if expected.length.is_some_and(|n| n > expected.most) {
            return Err(Error::TooLarge { most: expected.most });
        }
        let mut step = Step::Idle(None);
        let (mut batch, mut batched, mut got) = (Vec::new(), 0_usize, 0_u64);
        if expected.length.is_some_and(|n| n >= RESERVE_FROM) {
            step = Step::Idle(Some(self.begin(&expected).await?));
        }
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(Error::Body)?;
            got += chunk.len() as u64;
            if got > expected.length.unwrap_or(expected.most) {
                return Err(Error::TooLarge { most: expected.length.unwrap_or(expected.most) });
            }
            batched += chunk.len();
            batch.push(chunk);
            if batched >= BATCH {
                let incoming = match step.settle().await? {
                    Some(incoming) => incoming,
                    None => self.begin(&expected).await?,
                };
                step = Step::Writing(incoming.write(std::mem::take(&mut batch)));
                batched = 0;
            }
        }
        if let Some(want) = expected.length
            && got != want
        {
            return Err(Error::Incomplete { got, want });
        }
        let incoming = step.settle().await?;
        let store = self.clone();
        blocking(move || {
            let mut incoming = match incoming {
                Some(incoming) => incoming,
                None => store.create(&expected)?,
            };
            batch.iter().try_for_each(|chunk| incoming.append(chunk))?;
            incoming.finish()
        })
        .await
    }

    async fn begin(self: &Arc<Self>, expected: &Expected) -> Result<Incoming, Error> {
        let (store, expected) = (self.clone(), expected.clone());
        blocking(move || store.create(&expected)).await
    }

    fn create(self: &Arc<Self>, expected: &Expected) -> Result<Incoming, Error> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let path = self.incoming.join(&id);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let incoming = Incoming {
            store: self.clone(),
            id,
            path: Some(path),
            file,
            size: 0,
            hashers: Some(Box::new(Hashers::new(&expected.algorithms))),
        };
        if let Some(length) = expected.length.filter(|n| *n >= RESERVE_FROM) {
            reserve(&incoming.file, length)?;
        }
        Ok(incoming)
    }
}

/// File systems that cannot reserve are let be: there the write itself reports the full disk.
fn reserve(file: &File, length: u64) -> io::Result<()> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    match nix::fcntl::fallocate(file, nix::fcntl::FallocateFlags::empty(), 0, length) {
        Err(nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT) => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    spawn_blocking(work).await.unwrap_or(Err(Error::Closed))
}

/// The file between two batches: at rest, or being written while the next batch is gathered.
enum Step {
    Idle(Option<Incoming>),
    Writing(JoinHandle<Result<Incoming, Error>>),
}

impl Step {
    async fn settle(&mut self) -> Result<Option<Incoming>, Error> {
        match std::mem::replace(self, Self::Idle(None)) {
            Self::Idle(incoming) => Ok(incoming),
            Self::Writing(handle) => handle.await.unwrap_or(Err(Error::Closed)).map(Some),
        }
    }
}

/// A content file being written; dropping it unlinks it.
struct Incoming {
    store: Arc<ContentStore>,
    id: String,
    path: Option<PathBuf>,
    file: File,
    size: u64,
    hashers: Option<Box<Hashers>>,
}

impl Incoming {
    fn append(&mut self, chunk: &[u8]) -> Result<(), Error> {
        if let Some(hashers) = &mut self.hashers {
            hashers.update(chunk);
        }
        self.file.write_all(chunk)?;
        self.size += chunk.len() as u64;
        Ok(())
    }

    fn write(mut self, batch: Vec<Bytes>) -> JoinHandle<Result<Self, Error>> {
        spawn_blocking(move || {
            batch.iter().try_for_each(|chunk| self.append(chunk))?;
            Ok(self)
        })
    }

    /// Durable, then visible under its final name, then the name durable.
    fn finish(mut self) -> Result<Stored, Error> {
        self.file.sync_all()?;
        let pin = self.store.pin([self.id.clone()]);
        let path = self.store.path(&self.id);
        if let Some(from) = &self.path {
            fs::rename(from, &path)?;
        }
        self.path = Some(path.clone());
        if let Some(shard) = path.parent() {
            File::open(shard)?.sync_all()?;
        }
        self.path = None;
        let (md5, checksums) = self.hashers.take().map_or_else(|| Hashers::new(&[]), |hashers| *hashers).finish();
        Ok(Stored { id: self.id.clone(), size: self.size, md5, checksums, pin: Some(pin) })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(%error, id = %self.id, "cannot unlink an unfinished upload; the next start tries again");
        }
    }
}
