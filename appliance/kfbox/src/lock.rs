//! One daemon a data directory: an advisory lock that the kernel releases however the process ends.

use crate::failure::{Code, Failure};
use nix::fcntl::{Flock, FlockArg};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Held for the daemon's life.
pub struct DataDirLock {
    _file: Flock<File>,
}

impl DataDirLock {
    pub fn acquire(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join("kfbox.lock");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0)?;
                file.rewind()?;
                write!(file, "{}", std::process::id())?;
                Ok(Self { _file: file })
            }
            Err((mut file, _)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid)?;
                Err(Failure::new(
                    Code::Locked,
                    format!("{} is in use by another kfbox (process {})", data_dir.display(), pid.trim()),
                    "`kfbox status` shows it; `kfbox down` stops it; --data-dir and --instance start a second box",
                )
                .into())
            }
        }
    }
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
}
