//! `kfbox logs`.

use crate::failure::{Code, Failure};
use std::{
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

/// How often a followed file is looked at; it is a local file that a person reads.
const LOOK: Duration = Duration::from_millis(200);

pub async fn run(data_dir: PathBuf, follow: bool, tail: usize) -> anyhow::Result<ExitCode> {
    let path = data_dir.join("kfbox.log");
    let file = std::fs::File::open(&path).map_err(|_| {
        Failure::new(
            Code::NotRunning,
            format!("there is no log at {}", path.display()),
            "a box started with `kfbox up` writes one; with systemd, use `journalctl -u kfbox`",
        )
    })?;
    let mut reader = BufReader::new(file);
    let mut last = std::collections::VecDeque::with_capacity(tail.min(10_000));
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        if last.len() == tail {
            last.pop_front();
        }
        if tail > 0 {
            last.push_back(std::mem::take(&mut line));
        }
        line.clear();
    }
    let mut out = std::io::stdout().lock();
    for line in last {
        out.write_all(line.as_bytes())?;
    }
    if !follow {
        return Ok(ExitCode::SUCCESS);
    }
    let mut file = reader.into_inner();
    loop {
        let mut more = Vec::new();
        file.read_to_end(&mut more)?;
        if more.is_empty() {
            // A restart moves the file aside.
            if std::fs::metadata(&path).is_ok_and(|m| m.len() < file.stream_position().unwrap_or(0)) {
                file = std::fs::File::open(&path)?;
                file.seek(SeekFrom::Start(0))?;
            }
            tokio::time::sleep(LOOK).await;
        } else {
            out.write_all(&more)?;
            out.flush()?;
        }
    }
}
