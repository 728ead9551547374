//! Downloads that several requests share: the file grows on disk, and everyone who asked reads along.
//!
//! Guarantees: a client that goes away stops nothing; bytes that do not have the right hash end the answer with an error
//! before its last byte and are never kept.

use super::{Packages, fetch::FetchError, page::File};
use axum::body::{Body, Bytes};
use futures::Stream;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use std::{collections::HashMap, io, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::watch,
};
use url::Url;

/// A host that sends nothing for this long is given up.
const STALL: Duration = Duration::from_secs(60);
const CHUNK: usize = 1 << 16;
/// Downloads at once; more wait their turn, as a laptop's link gains nothing from them.
const CONCURRENT: usize = 16;

pub struct Downloads {
    running: Mutex<HashMap<String, watch::Receiver<Progress>>>,
    slots: Arc<tokio::sync::Semaphore>,
}

impl Default for Downloads {
    fn default() -> Self {
        Self { running: Mutex::default(), slots: Arc::new(tokio::sync::Semaphore::new(CONCURRENT)) }
    }
}

#[derive(Debug, Clone, Default)]
struct Progress {
    path: Option<PathBuf>,
    length: Option<u64>,
    written: u64,
    end: End,
}

#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the disk: {0}")]
    Disk(#[from] io::Error),
    #[error("the download broke off: {0}")]
    Broken(String),
    #[error("the file has another SHA-256 than the index says")]
    Hash,
    #[error("the file is larger than the limit of {0} bytes")]
    TooLarge(u64),
    #[error("the daemon is stopping")]
    Stopping,
}

/// An answer's body, and its length when it is known before the end.
pub struct Opened {
    pub body: Body,
    pub length: Option<u64>,
}

impl Packages {
    /// Opens a file of the index: from the cache, from a download under way, or from a new one.
    pub async fn open_file(&self, file: &File) -> Result<Opened, Arc<DownloadError>> {
        if file.url.scheme() == "file" {
            return self.open_local(file).await.map_err(Arc::new);
        }
        self.open_url(&file.url, &file.sha256).await
    }

    /// Opens what has this hash, wherever it is; upstream has it at the URL.
    pub async fn open_url(&self, url: &Url, sha256: &str) -> Result<Opened, Arc<DownloadError>> {
        if let Some(opened) = self.open_kept(sha256).await.map_err(|e| Arc::new(e.into()))? {
            return Ok(opened);
        }
        let mut progress = self.join(url, sha256);
        // The headers of our answer depend on whether upstream has it at all.
        let begun = match progress.wait_for(|p| p.path.is_some() || p.end.is_some()).await {
            Ok(state) => state.clone(),
            Err(_) => return Err(Arc::new(DownloadError::Stopping)),
        };
        match (begun.end, begun.path) {
            (Some(Err(error)), _) => Err(error),
            (None, Some(path)) => match tokio::fs::File::open(&path).await {
                Ok(open) => Ok(Opened { body: Body::from_stream(follow(open, progress)), length: begun.length }),
                // It was finished and moved between the two.
                Err(_) => self.open_finished(sha256).await,
            },
            _ => self.open_finished(sha256).await,
        }
    }

    async fn open_finished(&self, sha256: &str) -> Result<Opened, Arc<DownloadError>> {
        let kept = self.open_kept(sha256).await.map_err(|e| Arc::new(e.into()))?;
        kept.ok_or_else(|| Arc::new(DownloadError::Broken("the finished file is gone".into())))
    }

    pub async fn open_kept_file(&self, sha256: &str) -> io::Result<Option<Opened>> {
        self.open_kept(sha256).await
    }

    async fn open_kept(&self, sha256: &str) -> io::Result<Option<Opened>> {
        let (this, sha256) = (self.clone(), sha256.to_owned());
        let kept =
            tokio::task::spawn_blocking(move || this.inner.store.get(&sha256)).await.map_err(io::Error::other)??;
        Ok(kept.map(|(file, length)| Opened {
            body: Body::from_stream(tokio_util::io::ReaderStream::with_capacity(
                tokio::fs::File::from_std(file),
                CHUNK,
            )),
            length: Some(length),
        }))
    }

    async fn open_local(&self, file: &File) -> Result<Opened, DownloadError> {
        let path = file.url.to_file_path().map_err(|()| DownloadError::Broken("not a local path".into()))?;
        let open = tokio::fs::File::open(path).await?;
        let length = open.metadata().await?.len();
        let body = Body::from_stream(tokio_util::io::ReaderStream::with_capacity(open, CHUNK));
        Ok(Opened { body, length: Some(length) })
    }

    /// Joins the download of this hash, starting it if there is none.
    fn join(&self, url: &Url, sha256: &str) -> watch::Receiver<Progress> {
        let mut running = self.inner.downloads.running.lock();
        if let Some(progress) = running.get(sha256) {
            return progress.clone();
        }
        let (sender, receiver) = watch::channel(Progress::default());
        running.insert(sha256.to_owned(), receiver.clone());
        drop(running);
        let (this, url, sha256) = (self.clone(), url.clone(), sha256.to_owned());
        self.inner.tasks.spawn("package-download", async move {
            let stop = this.inner.tasks.shutdown();
            let result = tokio::select! {
                result = this.download(&url, &sha256, &sender) => result,
                () = stop.cancelled() => Err(DownloadError::Stopping),
            };
            if let Err(error) = &result {
                tracing::warn!(%error, host = url.host_str(), sha256, "a package could not be downloaded");
            }
            let partial = sender.borrow().path.clone();
            // Out of the list before the end is told: who comes now looks into the cache first.
            this.inner.downloads.running.lock().remove(&sha256);
            sender.send_modify(|p| p.end = Some(result.map_err(Arc::new)));
            if let Some(partial) = partial {
                // Gone already when all went well.
                let _ = tokio::fs::remove_file(partial).await;
            }
        });
        receiver
    }

    async fn download(&self, url: &Url, sha256: &str, progress: &watch::Sender<Progress>) -> Result<(), DownloadError> {
        let slots = self.inner.downloads.slots.clone();
        let _slot = slots.acquire_owned().await.map_err(|_| DownloadError::Stopping)?;
        let limit = self.inner.config.max_file_bytes;
        let (mut body, length) = self.inner.fetcher.file(url).await?;
        if length.is_some_and(|l| l > limit) {
            return Err(DownloadError::TooLarge(limit));
        }
        let path = self.inner.store.partial();
        let mut file = tokio::fs::File::create_new(&path).await?;
        progress.send_modify(|p| {
            p.path = Some(path.clone());
            p.length = length;
        });
        let mut hasher = Sha256::new();
        let mut written = 0u64;
        loop {
            let frame = tokio::time::timeout(STALL, body.frame())
                .await
                .map_err(|_| DownloadError::Broken("the host stopped sending".into()))?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|e| DownloadError::Broken(e.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            let before = written;
            written += u64::try_from(data.len()).unwrap_or(u64::MAX);
            if written > limit {
                return Err(DownloadError::TooLarge(limit));
            }
            hasher.update(&data);
            file.write_all(&data).await?;
            file.flush().await?;
            // One byte is held back, so that readers never have the whole file before its hash is known.
            progress.send_modify(|p| p.written = before.max(written.saturating_sub(1)));
        }
        if hex::encode(hasher.finalize()) != sha256 {
            return Err(DownloadError::Hash);
        }
        file.sync_all().await?;
        let (this, sha256) = (self.clone(), sha256.to_owned());
        tokio::task::spawn_blocking(move || this.inner.store.keep(&path, &sha256))
            .await
            .map_err(io::Error::other)??;
        progress.send_modify(|p| p.written = written);
        Ok(())
    }
}

type End = Option<Result<(), Arc<DownloadError>>>;

/// Waits until there is more than what was sent, or the end.
async fn advance(progress: &mut watch::Receiver<Progress>, sent: u64) -> io::Result<(u64, End)> {
    let state = progress.wait_for(|p| p.written > sent || p.end.is_some()).await;
    state.map(|s| (s.written, s.end.clone())).map_err(|_| io::Error::other("the download was dropped"))
}

/// The bytes of a growing file, up to its verified end.
fn follow(mut file: tokio::fs::File, mut progress: watch::Receiver<Progress>) -> impl Stream<Item = io::Result<Bytes>> {
    async_stream::try_stream! {
        let mut sent = 0u64;
        loop {
            let (written, end) = advance(&mut progress, sent).await?;
            if let Some(Err(error)) = end.clone() {
                Err(io::Error::other(error))?;
            }
            while sent < written {
                let want = usize::try_from(written - sent).unwrap_or(CHUNK).min(CHUNK);
                let mut buffer = vec![0; want];
                let read = file.read(&mut buffer).await?;
                if read == 0 {
                    Err(io::Error::other("the partial file is shorter than what was written"))?;
                }
                buffer.truncate(read);
                sent += u64::try_from(read).unwrap_or(u64::MAX);
                yield Bytes::from(buffer);
            }
            if end.is_some() {
                break;
            }
        }
    }
}
