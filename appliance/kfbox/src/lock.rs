//! One daemon a data directory: an advisory lock that the kernel releases however the process ends.

use crate::failure::{Code, Failure};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Duration, Instant},
};

/// How long the end of a holder that was killed may take.
const DYING: Duration = Duration::from_secs(15);

/// Held for the daemon's life.
pub struct DataDirLock {
    _file: Flock<File>,
}

impl DataDirLock {
    /// A holder that was killed keeps the lock until the last of its threads is gone, which on a loaded machine takes a
    /// while: it is waited for. One that lives is not.
    pub fn acquire(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join("kfbox.lock");
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let deadline = Instant::now() + DYING;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut file) => {
                    file.set_len(0)?;
                    file.rewind()?;
                    write!(file, "{}", std::process::id())?;
                    return Ok(Self { _file: file });
                }
                Err((file, _)) => file,
            };
            let mut holder = String::new();
            file.rewind()?;
            file.read_to_string(&mut holder)?;
            if !is_ending(holder.trim()) || Instant::now() > deadline {
                return Err(Failure::new(
                    Code::Locked,
                    format!("{} is in use by another kfbox (process {})", data_dir.display(), holder.trim()),
                    "`kfbox status` shows it; `kfbox down` stops it; --data-dir and --instance start a second box",
                )
                .into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Gone, dead, or killed and on its way.
fn is_ending(pid: &str) -> bool {
    const KILLED: u64 = 1 << (Signal::SIGKILL as u64 - 1);
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
    let pending = |name| u64::from_str_radix(field(name), 16).is_ok_and(|signals| signals & KILLED != 0);
    field("State:").starts_with(['Z', 'X']) || pending("SigPnd:") || pending("ShdPnd:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_holder_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDirLock::acquire(dir.path()).unwrap();
        let error = DataDirLock::acquire(dir.path()).err().unwrap();
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        assert_eq!(Failure::exit_code(&error), 4);
        drop(held);
        DataDirLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_holder_that_was_killed_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut killed = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let path = dir.path().join("kfbox.lock");
        fs::write(&path, killed.id().to_string()).unwrap();
        let held = Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        assert!(DataDirLock::acquire(dir.path()).is_err(), "it lives");
        killed.kill().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let path = dir.path().to_owned();
        let waits = std::thread::spawn(move || {
            tell.send(()).unwrap();
            DataDirLock::acquire(&path).map(drop).map_err(|error| error.to_string())
        });
        told.recv().unwrap();
        drop(held);
        waits.join().unwrap().unwrap();
        killed.wait().unwrap();
    }
}
