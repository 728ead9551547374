//! Numbers that keep boxes apart: one a box, held by a file lock, so that parallel test processes never take the same.

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};

/// As many boxes at once as there are numbers; networks 10.150-10.189 and 10.200-10.239 are theirs.
const SLOTS: u8 = 40;

pub struct Slot {
    number: u8,
    _file: Flock<File>,
}

impl Slot {
    pub fn take() -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join("kfbox-it-slots");
        std::fs::create_dir_all(&dir)?;
        for number in 0..SLOTS {
            let path = dir.join(number.to_string());
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).context("slot file")?;
            if let Ok(file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                return Ok(Self { number, _file: file });
            }
        }
        bail!("all {SLOTS} test boxes are in use")
    }

    pub fn number(&self) -> u8 {
        self.number
    }
}
