//! Generates the device plugins' protocol from `proto/` with protox, so that no protoc need be installed, and builds
//! `kfbox-shim` as a static program that the crate carries inside.

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
    process::Command,
};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["deviceplugin.proto"], ["proto"])?;
    tonic_prost_build::configure().btree_map(".").build_server(false).compile_fds(descriptors)?;
    shim()
}

fn shim() -> Result<(), Box<dyn Error>> {
    let shim = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("../kfbox-shim");
    println!("cargo::rerun-if-changed={}", shim.display());
    let out = PathBuf::from(variable("OUT_DIR")?).join("shim");
    let target = variable("TARGET")?;
    let status = Command::new(variable("CARGO")?)
        .current_dir(&shim)
        .args(["build", "--quiet", "--release", "--locked", "--bin", "kfbox-shim"])
        .arg("--target")
        .arg(&target)
        .arg("--target-dir")
        .arg(&out)
        // It replaces the flags of the outer build.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\u{1f}-Copt-level=s\u{1f}-Cpanic=abort")
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBSECCOMP_LIB_PATH", seccomp(&target))
        .env("CARGO_INCREMENTAL", "0")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()?;
    let program = out.join(&target).join("release/kfbox-shim");
    if !status.success() || !program.exists() {
        return Err("kfbox-shim could not be compiled".into());
    }
    println!("cargo::rustc-env=KFBOX_SHIM={}", program.display());
    Ok(())
}

/// What cargo tells build scripts.
fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    let value = env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))?;
    value.into_string().map_err(|odd| format!("{name} is not UTF-8: {}", odd.display()).into())
}

/// Where `libseccomp.a` is: as pkg-config says, else where Debian has it.
fn seccomp(target: &str) -> PathBuf {
    let asked = Command::new("pkg-config").args(["--variable=libdir", "libseccomp"]).output();
    let said = asked.ok().filter(|o| o.status.success()).and_then(|o| String::from_utf8(o.stdout).ok());
    match said.as_deref().map(str::trim) {
        Some(folder) if Path::new(folder).join("libseccomp.a").exists() => folder.into(),
        _ => Path::new("/usr/lib").join(target.replace("-unknown", "")),
    }
}
