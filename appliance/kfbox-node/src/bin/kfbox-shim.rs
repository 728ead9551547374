//! The shim alone, for this crate's own tests. The product uses `kfbox shim`, the same code in the one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().skip(1).skip_while(|word| word == "shim").collect();
    ExitCode::from(u8::try_from(kfbox_node::shim::shim_main(&arguments)).unwrap_or(255))
}
