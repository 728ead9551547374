//! kfbox: the whole Kubeflow platform as one program. Parse, run.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything starts a thread: a shim is one single-threaded process a container.
    if let Some(code) = kfbox::shim(std::env::args_os().skip(1)) {
        return code;
    }
    kfbox::cli::main()
}
