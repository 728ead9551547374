//! Files that records are written to, a line each: who did what, who asked for what. Guarantees: a request never waits for
//! them; a journal's files together never grow beyond their bound; every line is whole; what could not be recorded is
//! counted, and the count is told.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Records on their way to the file; at a few KiB each this bounds memory to some megabytes when the disk stands still.
const QUEUE: usize = 2048;

/// Records written together.
const BATCH: u64 = 1024;

/// How long records are gathered: a thread that is woken for each request costs more than its record does. A daemon that is
/// killed loses what it had not written.
const GATHER: Duration = Duration::from_millis(10);

/// How often it is told that records are being lost.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How much room a journal has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// A file of this size is put aside and a new one begun.
    pub max_bytes: u64,
    /// Files kept, the current one included.
    pub files: usize,
}

/// What becomes a line, on the journal's own thread.
pub trait Record: Send + 'static {
    /// Appends the line and its end, or nothing.
    fn write(&self, out: &mut Vec<u8>);
}

enum Message<R> {
    Record(R),
    Flush(oneshot::Sender<()>),
}

pub struct Journal<R> {
    sender: SyncSender<Message<R>>,
    lost: Arc<AtomicU64>,
}

impl<R: Record> Journal<R> {
    /// `name` is that of the thread, such as `audit-log`.
    pub fn open(name: &'static str, path: &Path, room: Room) -> std::io::Result<Self> {
        let writer = Writer::open(name, path, room)?;
        let (sender, receiver) = sync_channel(QUEUE);
        let lost = writer.lost.clone();
        std::thread::Builder::new().name(name.into()).spawn(move || writer.run(&receiver))?;
        Ok(Self { sender, lost })
    }

    pub fn record(&self, record: R) {
        match self.sender.try_send(Message::Record(record)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Records that were lost since the start.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until what was recorded before is in the file.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        let mut message = Message::Flush(done);
        loop {
            match self.sender.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => message = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(wait.await);
    }
}

struct Writer {
    name: &'static str,
    path: PathBuf,
    file: File,
    /// Bytes of whole lines in the file.
    length: u64,
    max_bytes: u64,
    files: usize,
    lost: Arc<AtomicU64>,
    told: (u64, Option<Instant>),
}

fn create(path: &Path) -> std::io::Result<(File, u64)> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    // One that an administrator made may be more open than it should be.
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

impl Writer {
    fn open(name: &'static str, path: &Path, room: Room) -> std::io::Result<Self> {
        let (file, length) = create(path)?;
        let mut this = Self {
            name,
            path: path.to_owned(),
            file,
            length,
            max_bytes: room.max_bytes.max(1),
            files: room.files.max(1),
            lost: Arc::default(),
            told: (0, None),
        };
        this.repair()?;
        Ok(this)
    }

    /// A daemon that was killed may have left half a line.
    fn repair(&mut self) -> std::io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        let mut end = self.length;
        let mut chunk = [0; 4096];
        let reader = File::open(&self.path)?;
        while end > 0 {
            let start = end.saturating_sub(chunk.len() as u64);
            let chunk = &mut chunk[..usize::try_from(end - start).unwrap_or_default()];
            reader.read_exact_at(chunk, start)?;
            if let Some(at) = chunk.iter().rposition(|b| *b == b'\n') {
                end = start + at as u64 + 1;
                break;
            }
            end = start;
        }
        if end < self.length {
            self.file.set_len(end)?;
            self.length = end;
        }
        Ok(())
    }

    fn run<R: Record>(mut self, receiver: &Receiver<Message<R>>) {
        let mut buffer = Vec::new();
        while let Ok(first) = receiver.recv() {
            if matches!(first, Message::Record(_)) {
                std::thread::sleep(GATHER);
            }
            let mut next = Some(first);
            let (mut count, mut waiting) = (0_u64, Vec::new());
            while let Some(message) = next.take() {
                match message {
                    Message::Record(record) => {
                        record.write(&mut buffer);
                        count += 1;
                    }
                    Message::Flush(done) => waiting.push(done),
                }
                if count < BATCH {
                    next = receiver.try_recv().ok();
                }
            }
            if count > 0
                && let Err(error) = self.append(&buffer)
            {
                self.lost.fetch_add(count, Ordering::Relaxed);
                tracing::debug!(%error, journal = self.name, "records were not written");
            }
            buffer.clear();
            buffer.shrink_to(1 << 20);
            self.tell();
            for done in waiting {
                let _ = done.send(());
            }
        }
    }

    fn append(&mut self, lines: &[u8]) -> std::io::Result<()> {
        if self.length > 0 && self.length + lines.len() as u64 > self.max_bytes {
            self.rotate()?;
        }
        match self.file.write_all(lines) {
            Ok(()) => {
                self.length += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Whole lines or nothing.
                self.file.set_len(self.length)?;
                Err(error)
            }
        }
    }

    /// `audit.log` becomes `audit.log.1`, that `audit.log.2`, and the oldest goes.
    fn rotate(&mut self) -> std::io::Result<()> {
        let aside = |n: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        let kept = self.files - 1;
        if kept == 0 {
            self.file.set_len(0)?;
            self.length = 0;
            return Ok(());
        }
        for n in (1..kept).rev() {
            match std::fs::rename(aside(n), aside(n + 1)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, aside(1))?;
        let (file, length) = create(&self.path)?;
        (self.file, self.length) = (file, length);
        Ok(())
    }

    fn tell(&mut self) {
        let lost = self.lost.load(Ordering::Relaxed);
        let (told, when) = self.told;
        if lost > told && when.is_none_or(|when| when.elapsed() >= TELL_EVERY) {
            tracing::warn!(journal = self.name, lost = lost - told, in_all = lost, "records were lost");
            self.told = (lost, Some(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Line(&'static str);

    impl Record for Line {
        fn write(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(self.0.as_bytes());
        }
    }

    fn writer(path: &Path, max_bytes: u64, files: usize) -> Writer {
        Writer::open("test", path, Room { max_bytes, files }).unwrap()
    }

    #[test]
    fn files_rotate_within_their_bound_and_are_nobody_elses_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let mut writer = writer(&path, 100, 3);
        for n in 0..50 {
            writer.append(format!("{n:029}\n").as_bytes()).unwrap();
        }
        let mut names: Vec<String> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["audit.log", "audit.log.1", "audit.log.2"]);
        let mut numbers = Vec::new();
        for name in ["audit.log.2", "audit.log.1", "audit.log"] {
            let file = dir.path().join(name);
            let metadata = file.metadata().unwrap();
            assert!(metadata.len() <= 100 && metadata.permissions().mode() & 0o777 == 0o600, "{name} {metadata:?}");
            let text = std::fs::read_to_string(file).unwrap();
            numbers.extend(text.lines().map(|l| l.parse::<u32>().unwrap()));
        }
        assert_eq!(numbers, (50 - numbers.len() as u32..50).collect::<Vec<_>>(), "the newest, in order, none twice");
    }

    #[test]
    fn half_a_line_of_a_killed_daemon_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        for (before, after) in [("{}\n{\"half", "{}\n"), ("half", ""), ("{}\n", "{}\n"), ("", "")] {
            std::fs::write(&path, before).unwrap();
            let mut writer = writer(&path, 1000, 2);
            writer.append(b"{1}\n").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{after}{{1}}\n"));
        }
        let long = "x".repeat(10_000);
        std::fs::write(&path, format!("{long}\n{long}")).unwrap();
        writer(&path, 1_000_000, 2);
        assert_eq!(path.metadata().unwrap().len(), 10_001);
    }

    #[test]
    fn a_queue_that_is_full_loses_records_and_holds_nobody_up() {
        // A writer that stands still: nobody takes from the queue.
        let (sender, receiver) = sync_channel(2);
        let journal = Journal { sender, lost: Arc::default() };
        for _ in 0..5 {
            journal.record(Line("{}\n"));
        }
        assert_eq!(journal.lost(), 3);
        drop(receiver);
    }

    #[test]
    fn a_disk_that_is_full_costs_records_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut writer = writer(&path, 1 << 20, 2);
        writer.append(b"{\"first\":1}\n").unwrap();
        let good = std::mem::replace(&mut writer.file, OpenOptions::new().write(true).open("/dev/full").unwrap());
        assert!(writer.append(b"{\"lost\":1}\n").is_err());
        writer.file = good;
        writer.append(b"{\"third\":1}\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"first\":1}\n{\"third\":1}\n");
    }
}
