//! The container's log in CRI format: `TIME stdout|stderr F|P LINE`, rotated by size.
//!
//! Invariant: a full disk or a vanished folder loses log lines but never blocks the container.

use crate::{records::rotated_log as rotated, timestamp};
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

/// A longer line is written in parts tagged `P`; containerd's default.
const MAX_LINE: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout = 0,
    Stderr = 1,
}

pub struct Log {
    path: PathBuf,
    file: Option<File>,
    written: u64,
    max_bytes: u64,
    max_files: u32,
    partial: [Vec<u8>; 2],
    out: Vec<u8>,
}

impl Log {
    pub fn open(path: &Path, max_bytes: u64, max_files: u32) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path).ok();
        let written = file.as_ref().and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
        Self {
            path: path.into(),
            file,
            written,
            max_bytes: max_bytes.max(1024),
            max_files: max_files.max(1),
            partial: [Vec::new(), Vec::new()],
            out: Vec::new(),
        }
    }

    /// Takes what the container wrote, in pieces of any size.
    pub fn push(&mut self, stream: Stream, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let (line, rest) = bytes.split_at(end);
            self.line(stream, line);
            bytes = &rest[1..];
        }
        let partial = &mut self.partial[stream as usize];
        partial.extend_from_slice(bytes);
        while self.partial[stream as usize].len() > MAX_LINE {
            let rest = self.partial[stream as usize].split_off(MAX_LINE);
            let part = std::mem::replace(&mut self.partial[stream as usize], rest);
            self.record(stream, b'P', &part);
        }
        self.flush();
    }

    /// Writes what is left of an unfinished line.
    pub fn finish(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let left = std::mem::take(&mut self.partial[stream as usize]);
            if !left.is_empty() {
                self.record(stream, b'F', &left);
            }
        }
        self.flush();
    }

    fn line(&mut self, stream: Stream, end: &[u8]) {
        let mut start = std::mem::take(&mut self.partial[stream as usize]);
        if start.is_empty() && end.len() <= MAX_LINE {
            return self.record(stream, b'F', end);
        }
        start.extend_from_slice(end);
        let mut parts = start.chunks(MAX_LINE).peekable();
        if parts.peek().is_none() {
            return self.record(stream, b'F', b"");
        }
        while let Some(part) = parts.next() {
            self.record(stream, if parts.peek().is_some() { b'P' } else { b'F' }, part);
        }
    }

    fn record(&mut self, stream: Stream, tag: u8, line: &[u8]) {
        self.out.extend_from_slice(&timestamp::now());
        self.out.extend_from_slice(match stream {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        });
        self.out.push(tag);
        self.out.push(b' ');
        self.out.extend_from_slice(line);
        self.out.push(b'\n');
        if self.written + self.out.len() as u64 >= self.max_bytes {
            self.flush();
            self.rotate();
        }
    }

    fn flush(&mut self) {
        if let Some(file) = &mut self.file
            && file.write_all(&self.out).is_ok()
        {
            self.written += self.out.len() as u64;
        }
        self.out.clear();
        // A burst of output must not leave a large buffer behind in every shim.
        self.out.shrink_to(MAX_LINE);
    }

    fn rotate(&mut self) {
        if self.written < self.max_bytes {
            return;
        }
        for number in (1..self.max_files).rev() {
            let from = if number == 1 { self.path.clone() } else { rotated(&self.path, number - 1) };
            let _ = fs::rename(from, rotated(&self.path, number));
        }
        if self.max_files == 1 {
            let _ = fs::remove_file(&self.path);
        }
        self.file = OpenOptions::new().create(true).append(true).open(&self.path).ok();
        self.written = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        // Drop the time: it is fixed-width.
        text.lines().map(|line| line[31..].to_owned()).collect()
    }

    #[test]
    fn lines_are_whole_whatever_the_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, 1 << 20, 5);
        log.push(Stream::Stdout, b"hel");
        log.push(Stream::Stderr, b"oops\n");
        log.push(Stream::Stdout, b"lo\n\nla");
        log.push(Stream::Stdout, b"st");
        log.finish();
        assert_eq!(lines(&path), ["stderr F oops", "stdout F hello", "stdout F ", "stdout F last"]);
    }

    #[test]
    fn a_long_line_is_written_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, 1 << 20, 5);
        let long = vec![b'x'; MAX_LINE + 10];
        log.push(Stream::Stdout, &long[..100]);
        log.push(Stream::Stdout, &long[100..]);
        log.push(Stream::Stdout, b"\n");
        let seen = lines(&path);
        assert_eq!(seen.len(), 2);
        assert!(seen[0].starts_with("stdout P x") && seen[0].len() == 9 + MAX_LINE);
        assert_eq!(seen[1], "stdout F xxxxxxxxxx");
    }

    #[test]
    fn size_is_bounded_by_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, 2048, 3);
        for n in 0..1000 {
            log.push(Stream::Stdout, format!("line {n}\n").as_bytes());
        }
        log.finish();
        let total: u64 = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(total <= 3 * 2200, "{total}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        assert!(fs::read_to_string(&path).unwrap().ends_with("line 999\n"), "the newest line is in the file");
    }
}
