//! The command line, the configuration and the composition root. Everything else is a library below this crate.

mod adapters;
mod backend;
pub mod cli;
mod config;
mod control;
mod daemon;
mod failure;
mod lock;
mod memory;
mod outbound;
mod pip;
mod publish;

use std::{ffi::OsString, process::ExitCode};

/// Runs the hidden `kfbox shim ...` if that is what was asked for. Must be called before any thread exists.
pub fn shim(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if args.next()? != "shim" {
        return None;
    }
    let code = kfbox_node::shim::shim_main(&args.collect::<Vec<_>>());
    Some(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
