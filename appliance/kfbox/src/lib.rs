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
