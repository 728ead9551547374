//! Content read back as a stream, one slice after the other, one chunk ahead of the reader.

use crate::content::{ContentStore, Pin};
use bytes::Bytes;
use futures::Stream;
use std::{
    collections::VecDeque,
    fs::File,
    future::Future,
    io,
    os::unix::fs::FileExt,
    pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes read at a time: a stream holds at most two of these.
const CHUNK: u64 = 512 * 1024;

/// A piece of a content file.
#[derive(Debug, Clone)]
pub(crate) struct Slice {
    pub id: String,
    pub offset: u64,
    pub size: u64,
}

/// A chunk, and its file if there is more to read of it.
type Read = (Option<Arc<File>>, Bytes);

/// The bytes of an object or of a range of it. Ends with an error if a content file is unreadable.
pub struct ContentStream {
    store: Arc<ContentStore>,
    slices: VecDeque<Slice>,
    file: Option<Arc<File>>,
    next: Option<JoinHandle<io::Result<Read>>>,
    ready: Option<Bytes>,
    remaining: u64,
    _pin: Option<Pin>,
}

impl ContentStream {
    pub(crate) fn new(store: Arc<ContentStore>, slices: Vec<Slice>, first: Option<File>, pin: Pin) -> Self {
        let remaining = slices.iter().map(|s| s.size).sum();
        Self {
            store,
            slices: slices.into(),
            file: first.map(Arc::new),
            next: None,
            ready: None,
            remaining,
            _pin: Some(pin),
        }
    }

    pub(crate) fn whole(store: Arc<ContentStore>, bytes: Bytes) -> Self {
        let remaining = bytes.len() as u64;
        Self { store, slices: VecDeque::new(), file: None, next: None, ready: Some(bytes), remaining, _pin: None }
    }

    /// Bytes still to come.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    fn read_ahead(&mut self) {
        while self.slices.front().is_some_and(|s| s.size == 0) {
            self.slices.pop_front();
            self.file = None;
        }
        let Some(slice) = self.slices.front_mut() else { return };
        let (offset, size) = (slice.offset, slice.size.min(CHUNK));
        let path = self.store.path(&slice.id);
        let file = self.file.clone();
        slice.offset += size;
        slice.size -= size;
        let last = slice.size == 0;
        self.next = Some(spawn_blocking(move || {
            let file = match file {
                Some(file) => file,
                None => Arc::new(File::open(path)?),
            };
            let bytes = read_at(&file, offset, size)?;
            Ok(((!last).then_some(file), bytes))
        }));
    }
}

pub(crate) fn read_at(file: &File, offset: u64, size: u64) -> io::Result<Bytes> {
    let size = usize::try_from(size).map_err(io::Error::other)?;
    let mut buffer = vec![0; size];
    file.read_exact_at(&mut buffer, offset)?;
    Ok(buffer.into())
}

impl Stream for ContentStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(bytes) = self.ready.take() {
            self.remaining = 0;
            return Poll::Ready((!bytes.is_empty()).then_some(Ok(bytes)));
        }
        if self.next.is_none() {
            self.read_ahead();
        }
        let Some(next) = self.next.as_mut() else { return Poll::Ready(None) };
        let read = ready!(pin::Pin::new(next).poll(context));
        self.next = None;
        match read.map_err(io::Error::other).and_then(|r| r) {
            Ok((file, bytes)) => {
                self.file = file;
                self.remaining = self.remaining.saturating_sub(bytes.len() as u64);
                self.read_ahead();
                Poll::Ready(Some(Ok(bytes)))
            }
            Err(error) => {
                self.slices.clear();
                Poll::Ready(Some(Err(error)))
            }
        }
    }
}
