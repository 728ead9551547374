//! Logs: human text on a terminal, one line each, to standard error. Secrets never reach them.

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

/// Starts logging once for the process. `filter` is a `tracing` directive such as `info,kfbox_node=debug`; an invalid
/// one is an error so that a typing mistake does not silence the logs. A second call does nothing.
pub fn init(filter: &str, json: bool) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::builder().parse(filter)?;
    let registry = tracing_subscriber::registry().with(filter);
    let done = if json {
        registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init()
    } else {
        registry.with(fmt::layer().with_ansi(false).with_writer(std::io::stderr)).try_init()
    };
    drop(done);
    Ok(())
}
