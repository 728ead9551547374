//! kfbox: the whole Kubeflow platform as one program. Parse, run.

use std::process::ExitCode;

fn main() -> ExitCode {
    kfbox::cli::main()
}
