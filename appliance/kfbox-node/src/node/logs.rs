//! Containers' logs: from the files that their shims write, across rotations, and on as they are written.
//! Upstream: <https://kubernetes.io/docs/concepts/cluster-administration/logging/>

use super::{Node, NodeError};
use crate::{
    pod::{adopt, launch::log_path, record::uid, status},
    process::readable,
    runtime::Handle,
    shim::records::rotated_log,
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

pub type LogStream = BoxStream<'static, io::Result<Bytes>>;

/// Pieces that may wait for a slow reader, and how large each is.
const QUEUE: usize = 8;
const PIECE: usize = 32 * 1024;
/// Rotated files looked for.
const MAX_ROTATED: u32 = 20;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    pub tail_lines: Option<u64>,
    pub since_seconds: Option<i64>,
    /// RFC 3339.
    pub since_time: Option<String>,
    pub timestamps: bool,
    pub previous: bool,
    pub limit_bytes: Option<u64>,
    /// `All`, `Stdout` or `Stderr`; all when absent.
    pub stream: Option<String>,
}

impl Node {
    /// What a container wrote.
    pub async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        options: LogOptions,
    ) -> Result<LogStream, NodeError> {
        let pod = self.pod(namespace, pod)?;
        self.container(&pod, container)?;
        let dirs = self.ctx.dirs(uid(&pod));
        let mut numbers = adopt::attempts(&dirs.data, container);
        let pod_name = || pod.metadata.name.clone().unwrap_or_default();
        let number = if options.previous {
            numbers.pop();
            numbers.pop().ok_or_else(|| NodeError::NoPrevious { container: container.into(), pod: pod_name() })?
        } else {
            let waiting = || NodeError::Waiting {
                container: container.into(),
                pod: pod_name(),
                reason: waiting_reason(&pod, container),
            };
            numbers.pop().ok_or_else(waiting)?
        };
        let path = log_path(&dirs.data, container, number);
        let handle = self.ctx.handles.lock().get(&(uid(&pod).to_owned(), container.to_owned())).cloned();
        // Only the latest run can go on writing.
        let follow = if options.follow && !options.previous { Some(handle) } else { None };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let shutdown = self.ctx.tasks.shutdown();
        self.ctx.tasks.spawn(format!("log/{}", path.display()), async move {
            tokio::select! {
                result = send(&path, &options, follow, &sender) => if let Err(error) = result {
                    let _ = sender.send(Err(error)).await;
                },
                () = sender.closed() => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(ReceiverStream::new(receiver).boxed())
    }
}

fn waiting_reason(pod: &Pod, container: &str) -> String {
    let all = pod.status.iter().flat_map(status::container_statuses);
    let waiting = all.filter(|s| s.name == container).find_map(|s| s.state.as_ref()?.waiting.as_ref()?.reason.clone());
    waiting.unwrap_or_else(|| "ContainerCreating".into())
}

async fn send(
    path: &Path,
    options: &LogOptions,
    follow: Option<Option<Handle>>,
    to: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let watch = match &follow {
        Some(Some(_)) => Some(watch_folder(path)?),
        _ => None,
    };
    let mut output = Output::new(options, to);
    let mut tail = options.tail_lines.map(|lines| Tail { lines, kept: VecDeque::new() });
    // Opened together, before any is read, so that a rotation meanwhile loses nothing.
    let mut files: Vec<File> = (1..=MAX_ROTATED).rev().filter_map(|n| File::open(rotated_log(path, n)).ok()).collect();
    let mut current = File::open(path).ok();
    files.extend(current.as_ref().map(File::try_clone).transpose()?);
    let mut lines = Lines::default();
    for mut file in files {
        lines.drain(&mut file, &mut output, tail.as_mut()).await?;
    }
    if let Some(tail) = tail {
        for line in tail.kept {
            output.line(&line).await?;
        }
    }
    output.flush().await?;
    let (Some(Some(mut handle)), Some(inotify)) = (follow, watch) else { return Ok(()) };

    let mut over = false;
    loop {
        if output.full {
            return Ok(());
        }
        if let Some(file) = &mut current {
            lines.drain(file, &mut output, None).await?;
            output.flush().await?;
        }
        // After a rotation the rest is in a new file.
        let replaced = match (&current, File::open(path)) {
            (Some(old), Ok(new)) if old.metadata()?.ino() != new.metadata()?.ino() => Some(new),
            (None, Ok(new)) => Some(new),
            _ => None,
        };
        if let Some(new) = replaced {
            current = Some(new);
            continue;
        }
        if over {
            return Ok(());
        }
        tokio::select! {
            ready = readable(inotify.as_fd()) => {
                ready?;
                let _ = inotify.read_events();
            }
            _ = handle.ended() => over = true,
        }
    }
}

fn watch_folder(path: &Path) -> io::Result<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    inotify.add_watch(folder, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
    Ok(inotify)
}

/// The last lines of what is read.
struct Tail {
    lines: u64,
    kept: VecDeque<Vec<u8>>,
}

/// Splits what is read into lines; the last may be unfinished.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    async fn drain(&mut self, file: &mut File, output: &mut Output<'_>, mut tail: Option<&mut Tail>) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        // Files of a log are at most some MiB and mostly in the page cache: reading them here does not hold up others.
        while !output.full {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                return Ok(());
            }
            let mut rest = &buffer[..n];
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                self.partial.extend_from_slice(&rest[..end]);
                rest = &rest[end + 1..];
                let line = std::mem::take(&mut self.partial);
                match &mut tail {
                    Some(tail) => {
                        if output.wants(&line) {
                            tail.kept.push_back(line);
                        }
                        while tail.kept.len() as u64 > tail.lines {
                            tail.kept.pop_front();
                        }
                    }
                    None => output.line(&line).await?,
                }
            }
            self.partial.extend_from_slice(rest);
        }
        Ok(())
    }
}

struct Output<'a> {
    since: Option<Timestamp>,
    timestamps: bool,
    stream: Option<&'static [u8]>,
    left: Option<u64>,
    full: bool,
    buffer: BytesMut,
    to: &'a mpsc::Sender<io::Result<Bytes>>,
    continues: bool,
}

impl<'a> Output<'a> {
    fn new(options: &LogOptions, to: &'a mpsc::Sender<io::Result<Bytes>>) -> Self {
        let at = options.since_time.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
        let ago = options
            .since_seconds
            .and_then(|seconds| Timestamp::from_second(Timestamp::now().as_second().saturating_sub(seconds)).ok());
        let stream: Option<&'static [u8]> = match options.stream.as_deref() {
            Some("Stdout") => Some(b"stdout"),
            Some("Stderr") => Some(b"stderr"),
            _ => None,
        };
        Self {
            since: at.or(ago),
            timestamps: options.timestamps,
            stream,
            left: options.limit_bytes,
            full: options.limit_bytes == Some(0),
            buffer: BytesMut::new(),
            to,
            continues: false,
        }
    }

    fn wants(&self, line: &[u8]) -> bool {
        let Some((time, stream, _, _)) = parse(line) else { return false };
        if self.stream.is_some_and(|wanted| wanted != stream) {
            return false;
        }
        self.since.is_none_or(|since| {
            let text = std::str::from_utf8(time).unwrap_or_default();
            text.parse::<Timestamp>().is_ok_and(|at| at >= since)
        })
    }

    async fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.full || !self.wants(line) {
            return Ok(());
        }
        let Some((time, _, whole, text)) = parse(line) else { return Ok(()) };
        if self.timestamps && !self.continues {
            self.put(time);
            self.put(b" ");
        }
        self.put(text);
        if whole {
            self.put(b"\n");
        }
        self.continues = !whole;
        if self.buffer.len() >= PIECE {
            self.flush().await?;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) {
        let n = match self.left {
            Some(left) => bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)),
            None => bytes.len(),
        };
        self.buffer.extend_from_slice(&bytes[..n]);
        if let Some(left) = &mut self.left {
            *left -= n as u64;
            self.full = *left == 0;
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.to.send(Ok(piece)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Time, stream, whether the line is whole, and its text.
type Parts<'a> = (&'a [u8], &'a [u8], bool, &'a [u8]);

fn parse(line: &[u8]) -> Option<Parts<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    Some((time, stream, tag == b"F", parts.next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn text(path: &Path, options: LogOptions) -> String {
        let (sender, mut receiver) = mpsc::channel::<io::Result<Bytes>>(QUEUE);
        let collect = async {
            let mut all = Vec::new();
            while let Some(piece) = receiver.recv().await {
                all.extend_from_slice(&piece.unwrap());
            }
            String::from_utf8(all).unwrap()
        };
        let (sent, text) = tokio::join!(
            async {
                let result = send(path, &options, None, &sender).await;
                drop(sender);
                result
            },
            collect
        );
        sent.unwrap();
        text
    }

    #[tokio::test]
    async fn options_select_what_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let line = |n: u32, stream: &str, tag: &str| format!("2026-01-01T00:00:0{n}.000000000Z {stream} {tag} l{n}\n");
        std::fs::write(rotated_log(&path, 1), line(0, "stdout", "F") + &line(1, "stderr", "F")).unwrap();
        std::fs::write(&path, line(2, "stdout", "P") + &line(3, "stdout", "F")).unwrap();
        let all = LogOptions::default;
        assert_eq!(text(&path, all()).await, "l0\nl1\nl2l3\n");
        assert_eq!(text(&path, LogOptions { tail_lines: Some(3), ..all() }).await, "l1\nl2l3\n");
        assert_eq!(text(&path, LogOptions { tail_lines: Some(0), ..all() }).await, "");
        assert_eq!(text(&path, LogOptions { limit_bytes: Some(4), ..all() }).await, "l0\nl");
        assert_eq!(text(&path, LogOptions { stream: Some("Stderr".into()), ..all() }).await, "l1\n");
        let since = LogOptions { since_time: Some("2026-01-01T00:00:01Z".into()), timestamps: true, ..all() };
        assert_eq!(
            text(&path, since).await,
            "2026-01-01T00:00:01.000000000Z l1\n2026-01-01T00:00:02.000000000Z l2l3\n"
        );
        assert_eq!(text(&path, LogOptions { since_seconds: Some(10), ..all() }).await, "");
    }
}
