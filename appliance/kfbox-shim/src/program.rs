//! What the program does with its arguments.

use super::{container, exec, namespaces, pause};
use std::{ffi::OsString, path::PathBuf};

/// Entry of the program: `--state-dir DIR` runs one container, `exec` runs one more process in a
/// container, speaking [`crate::frames`] on standard input; `pause DIR CGROUP` starts the first process of a pod's shared
/// process namespace; `users DIR FIRST HOSTNAME` makes the namespaces of a pod with a user namespace of its own. Returns
/// the exit status.
pub fn shim_main(arguments: &[OsString]) -> i32 {
    let outcome = match arguments {
        [flag, dir] if flag == "--state-dir" => container::run(&PathBuf::from(dir)),
        [word] if word == "exec" => exec::run(),
        [word, dir, cgroup] if word == "pause" => pause::run(&PathBuf::from(dir), &cgroup.to_string_lossy()),
        [word, dir, first, hostname] if word == "users" => match first.to_string_lossy().parse() {
            Ok(first) => namespaces::run(&PathBuf::from(dir), first, &hostname.to_string_lossy()),
            Err(_) => Err(ShimError::Usage),
        },
        _ => Err(ShimError::Usage),
    };
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    #[error("usage: kfbox-shim --state-dir DIR | exec | pause DIR CGROUP | users DIR FIRST HOSTNAME")]
    Usage,
    #[error("{what} {path}: {source}", path = path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} does not hold what it should: {source}", path = path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{what}: {source}")]
    System {
        what: &'static str,
        #[source]
        source: nix::Error,
    },
    #[error("another shim already runs this container")]
    Taken,
    #[error("{0}")]
    Container(String),
    #[error("the daemon sent no request")]
    NoRequest,
}

impl ShimError {
    pub fn system(what: &'static str) -> impl FnOnce(nix::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// libcontainer nests the telling part of a failure; this joins every level once.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let part = cause.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = cause.source();
    }
    text
}
