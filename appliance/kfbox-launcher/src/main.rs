//! `kfbox-launcher`: the first process of every step's container.

use std::process::ExitCode;

fn main() -> ExitCode {
    kfbox_launcher::main()
}
