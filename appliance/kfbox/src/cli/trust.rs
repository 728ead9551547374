//! `kfbox trust`: the certificate of the box's own authority among those that Debian's programs trust, as
//! update-ca-certificates(8) has it.

use super::TrustArgs;
use crate::failure::{Code, Failure};
use anyhow::Context;
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// Where an administrator puts certificates, and what comes of them; below the root.
const LOCAL: &str = "usr/local/share/ca-certificates";
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// The authority's certificate in PEM. `None` when the box has none: it speaks plain HTTP, or has other certificates.
pub fn authority(data_dir: &Path) -> Option<String> {
    fs::read_to_string(kfbox_gateway::authority_file(&data_dir.join("pki"))).ok()
}

pub fn run(data_dir: &Path, args: &TrustArgs) -> anyhow::Result<ExitCode> {
    let installed = args.root.join(LOCAL).join(file_name(data_dir));
    if args.remove {
        return remove(&args.root, &installed);
    }
    let Some(pem) = authority(data_dir) else {
        let message = format!("the box in {} has no certificate authority of its own", data_dir.display());
        let next = "start it with `kfbox up --tls`; certificates of your own (`--tls files`) are trusted elsewhere";
        return Err(Failure::new(Code::General, message, next).into());
    };
    if args.print {
        print!("{pem}");
    } else if args.env {
        environment(&args.root, &installed)?;
    } else {
        install(&args.root, &installed, &pem)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One name for one box, also when its authority is gone.
fn file_name(data_dir: &Path) -> String {
    let whole = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let digest = Sha256::digest(whole.as_os_str().as_encoded_bytes());
    format!("kfbox-{}.crt", hex::encode(&digest[..4]))
}

fn install(root: &Path, installed: &Path, pem: &str) -> anyhow::Result<()> {
    if fs::read_to_string(installed).is_ok_and(|there| there == pem) {
        println!("already trusted: {}", installed.display());
        return Ok(());
    }
    let folder = installed.parent().unwrap_or(root);
    let denied =
        || format!("cannot write {}; run it as root (sudo), or use `kfbox trust --print`", installed.display());
    fs::create_dir_all(folder).with_context(denied)?;
    let temporary = installed.with_extension(format!("tmp-{}", std::process::id()));
    fs::write(&temporary, pem).with_context(denied)?;
    fs::rename(&temporary, installed).with_context(denied)?;
    if let Err(error) = update(root, false) {
        // Not half: what was not taken up is not left lying there.
        let _ = fs::remove_file(installed);
        return Err(error);
    }
    println!("trusted: {}", installed.display());
    println!("  curl, git, kubectl and other programs that use Debian's certificates need nothing more.");
    println!("  Python brings its own:  eval \"$(kfbox trust --env)\"");
    println!("  kfp SDK                 kfp.Client(..., ssl_ca_cert=\"{}\")", installed.display());
    println!("  Firefox and Chromium    import that file in their settings");
    Ok(())
}

fn remove(root: &Path, installed: &Path) -> anyhow::Result<ExitCode> {
    let pem = fs::read_to_string(installed).unwrap_or_default();
    match fs::remove_file(installed) {
        Ok(()) => {
            update(root, true)?;
            forget(&root.join(BUNDLE), &pem)?;
            println!("no longer trusted: {}", installed.display());
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => println!("it was not trusted here"),
        Err(error) => return Err(error).with_context(|| format!("cannot remove {}", installed.display())),
    }
    Ok(ExitCode::SUCCESS)
}

/// The tool leaves the bundle as it was when no certificate at all is left to put into it.
fn forget(bundle: &Path, pem: &str) -> anyhow::Result<()> {
    let Ok(text) = fs::read_to_string(bundle) else { return Ok(()) };
    if pem.trim().is_empty() || !text.contains(pem.trim()) {
        return Ok(());
    }
    let rest = text.replace(pem.trim(), "");
    let temporary = bundle.with_extension(format!("tmp-{}", std::process::id()));
    fs::write(&temporary, rest.trim_start())?;
    fs::rename(&temporary, bundle).with_context(|| format!("cannot write {}", bundle.display()))
}

fn environment(root: &Path, installed: &Path) -> anyhow::Result<()> {
    if !installed.exists() {
        return Err(Failure::new(Code::General, "the box's certificate is not installed here", "kfbox trust").into());
    }
    let bundle = root.join(BUNDLE);
    for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"] {
        println!("export {name}={}", bundle.display());
    }
    Ok(())
}

/// `fresh` also takes away the links to certificates that are gone.
fn update(root: &Path, fresh: bool) -> anyhow::Result<()> {
    let program = ["/usr/sbin/update-ca-certificates", "/usr/bin/update-ca-certificates"];
    let Some(program) = program.iter().find(|p| Path::new(p).exists()) else {
        let next =
            "apt-get install -y ca-certificates; elsewhere, `kfbox trust --print` gives the certificate to import";
        return Err(Failure::new(Code::Requirement, "update-ca-certificates was not found", next).into());
    };
    let mut command = Command::new(program);
    if fresh {
        command.arg("--fresh");
    }
    if root != Path::new("/") {
        let at = |path: &str| -> anyhow::Result<PathBuf> {
            let path = root.join(path);
            fs::create_dir_all(&path)?;
            Ok(path)
        };
        let conf = root.join("etc/ca-certificates.conf");
        let (certs, hooks) = (at("etc/ssl/certs")?, at("etc/ca-certificates/update.d")?);
        if !conf.exists() {
            fs::write(&conf, "")?;
        }
        command.arg("--certsconf").arg(conf).arg("--certsdir").arg(at("usr/share/ca-certificates")?);
        command.arg("--localcertsdir").arg(at(LOCAL)?).arg("--etccertsdir").arg(certs).arg("--hooksdir").arg(hooks);
    }
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        anyhow::bail!("{program} failed: {said}");
    }
    Ok(())
}
