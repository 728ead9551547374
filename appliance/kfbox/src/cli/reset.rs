//! `kfbox reset`: the machine as it was before.

use crate::{
    config::{BoxOptions, Config, UpOptions},
    control::Client,
    daemon,
    failure::{Code, Failure},
    lock::DataDirLock,
};
use std::{
    io::{BufRead, IsTerminal},
    process::ExitCode,
};

pub fn run(common: &BoxOptions, options: &UpOptions, yes: bool) -> anyhow::Result<ExitCode> {
    let config = Config::resolve(common, options)?;
    if !config.data_dir.exists() {
        println!("nothing to remove: {} does not exist", config.data_dir.display());
        return Ok(ExitCode::SUCCESS);
    }
    // Never the wrong folder: only one that a kfbox made.
    if !config.data_dir.join("kfbox.lock").exists() {
        return Err(Failure::new(
            Code::General,
            format!("{} does not look like a kfbox data directory", config.data_dir.display()),
            "name the right one with --data-dir",
        )
        .into());
    }
    if !yes {
        let input = std::io::stdin();
        if !input.is_terminal() {
            return Err(Failure::new(
                Code::General,
                "reset deletes everything and nobody is there to ask",
                "add --yes",
            )
            .into());
        }
        eprint!("Delete everything in {} (runs, artifacts, users)? [y/N] ", config.data_dir.display());
        let mut answer = String::new();
        input.lock().read_line(&mut answer)?;
        if !answer.trim().eq_ignore_ascii_case("y") {
            println!("nothing was changed");
            return Ok(ExitCode::FAILURE);
        }
    }
    super::client(async {
        if Client::new(&config.data_dir).is_running().await {
            super::up::down(config.data_dir.clone(), false).await?;
        }
        let lock = DataDirLock::acquire(&config.data_dir)?;
        daemon::reset(&config).await?;
        drop(lock);
        match std::fs::remove_dir_all(&config.data_dir) {
            // A file system of its own: it is empty now, and stays.
            Err(error)
                if error.kind() == std::io::ErrorKind::ResourceBusy
                    && std::fs::read_dir(&config.data_dir)?.next().is_none() => {}
            removed => removed?,
        }
        println!("removed {}", config.data_dir.display());
        Ok(ExitCode::SUCCESS)
    })
}
