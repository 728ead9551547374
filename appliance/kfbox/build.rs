//! Builds `kfbox-launcher` as a static program and hands its path to the crate, so that the daemon carries it inside.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap());
    let launcher = manifest.join("../kfbox-launcher");
    println!("cargo::rerun-if-changed={}", launcher.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap()).join("launcher");
    let target = env::var_os("TARGET").unwrap();
    let status = Command::new(env::var_os("CARGO").unwrap())
        .current_dir(&launcher)
        .args(["build", "--quiet", "--release", "--locked", "--bin", "kfbox-launcher"])
        .arg("--target")
        .arg(&target)
        .arg("--target-dir")
        .arg(&out)
        // Static, so that it runs in any image, even an empty one. It replaces the flags of the outer build.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\u{1f}-Copt-level=s\u{1f}-Cpanic=abort")
        .env("CARGO_INCREMENTAL", "0")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "kfbox-launcher could not be compiled");
    let program = out.join(&target).join("release/kfbox-launcher");
    assert!(Path::new(&program).exists());
    println!("cargo::rustc-env=KFBOX_LAUNCHER={}", program.display());
}
