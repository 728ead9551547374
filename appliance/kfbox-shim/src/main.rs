//! `kfbox-shim`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    ExitCode::from(u8::try_from(kfbox_shim::shim_main(&arguments)).unwrap_or(255))
}
