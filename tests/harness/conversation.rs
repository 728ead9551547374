//! A client program that runs on while the test watches what it prints. Guarantee: it is killed when dropped.

use anyhow::Context;
use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, Sender, channel},
    time::{Duration, Instant},
};

pub struct Conversation {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Conversation {
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let (sender, lines) = channel();
        follow(child.stdout.take().context("stdout")?, sender.clone());
        follow(child.stderr.take().context("stderr")?, sender);
        Ok(Self { stdin: child.stdin.take(), child, lines, heard: Vec::new() })
    }

    /// The next line, of either output, that `wanted` takes.
    pub fn line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        const LIMIT: Duration = Duration::from_secs(60);
        self.line_within(LIMIT, wanted)
            .with_context(|| format!("{what} did not come before the end or within {LIMIT:?}: {:#?}", self.heard))
    }

    /// As `line`; none when it does not come in this time or before the program's end.
    pub fn line_within(&mut self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let deadline = Instant::now() + limit;
        loop {
            let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
            self.heard.push(line.clone());
            if wanted(&line) {
                return Some(line);
            }
        }
    }

    /// The next line that contains the text.
    pub fn expect(&mut self, text: &str) -> anyhow::Result<String> {
        self.line(text, |line| line.contains(text))
    }

    pub fn say(&mut self, text: &str) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().context("standard input is closed")?;
        stdin.write_all(text.as_bytes())?;
        Ok(stdin.flush()?)
    }

    /// Ends its standard input.
    pub fn hang_up(&mut self) {
        self.stdin = None;
    }

    /// Waits for the program's own end; its exit code and all that it printed.
    pub fn end(mut self) -> anyhow::Result<(Option<i32>, Vec<String>)> {
        self.stdin = None;
        let mut heard = std::mem::take(&mut self.heard);
        heard.extend(self.lines.iter());
        Ok((self.child.wait()?.code(), heard))
    }
}

fn follow(stream: impl Read + Send + 'static, lines: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
}

impl Drop for Conversation {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
