//! `kfbox doctor`: what this machine lacks, and the command that fixes it.

use crate::{
    config::{BoxOptions, Config, TlsMode, UpOptions},
    control::{Client, Status},
};
use kfbox_gateway::AcmeStatus;
use serde::Serialize;
use std::{fs, net::SocketAddr, path::Path, process::ExitCode};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    what: String,
    ok: bool,
    /// True when kfbox works without it, with less.
    optional: bool,
    detail: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    fix: String,
}

pub async fn run(common: BoxOptions, options: UpOptions, json: bool) -> anyhow::Result<ExitCode> {
    let config = Config::resolve(&common, &options)?;
    let mut findings = examine(&config);
    if config.gateway.tls.mode == TlsMode::Acme
        && let Ok(Status { certificate: Some(certificate), .. }) = Client::new(&config.data_dir).get("/v1/status").await
    {
        findings.push(examine_certificate(&certificate));
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for f in &findings {
            let mark = if f.ok {
                "✔"
            } else if f.optional {
                "–"
            } else {
                "✘"
            };
            println!("{mark} {:<28} {}", f.what, f.detail);
            if !f.ok && !f.fix.is_empty() {
                println!("  {:<28} fix: {}", "", f.fix);
            }
        }
    }
    let broken = findings.iter().filter(|f| !f.ok && !f.optional).count();
    if !json {
        println!();
        match broken {
            0 => println!("This machine can run kfbox."),
            1 => println!("One thing is missing."),
            n => println!("{n} things are missing."),
        }
    }
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::from(crate::failure::Code::Requirement as u8) })
}

/// The needs without which `up` refuses to start.
pub fn missing(config: &Config) -> Vec<String> {
    examine_machine(config)
        .into_iter()
        .filter(|f| !f.ok && !f.optional)
        .map(|f| {
            if f.fix.is_empty() {
                format!("{}: {}", f.what, f.detail)
            } else {
                format!("{}: {} ({})", f.what, f.detail, f.fix)
            }
        })
        .collect()
}

fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = examine_machine(config);
    let running = config.data_dir.join("control.sock").exists();
    let mut ports: Vec<(&str, SocketAddr)> = vec![
        ("gateway", config.gateway.address),
        ("Kubernetes API", config.kubernetes.address),
        ("S3", config.objects.address),
        ("ML Metadata", config.metadata.address),
        ("image registry", config.registry.address),
    ];
    ports.extend(config.gateway.tls.acme.http_address.map(|address| ("plain HTTP", address)));
    for (name, address) in ports {
        let free = std::net::TcpListener::bind(address).is_ok();
        findings.push(Finding {
            what: format!("port {} ({name})", address.port()),
            ok: free || running,
            optional: false,
            detail: if free {
                "free"
            } else if running {
                "in use, presumably by this box"
            } else {
                "in use"
            }
            .into(),
            fix: format!(
                "find its owner with `ss -ltnp 'sport = :{}'`, or choose another in the configuration",
                address.port()
            ),
        });
    }
    findings
}

/// kfbox works with a certificate of its own too, but browsers warn of it.
fn examine_certificate(certificate: &AcmeStatus) -> Finding {
    let good = certificate.until.filter(|until| *until > chrono::Utc::now());
    let mut detail = match good {
        Some(until) => format!("until {}", until.format("%Y-%m-%d")),
        None => "none that is good now".into(),
    };
    if certificate.failures > 0 {
        detail += &format!(", and no new one: {}", certificate.error);
    }
    let fine = good.is_some() && certificate.failures == 0;
    Finding { optional: true, ..need("certificate by ACME", fine, &detail, &certificate.next_step) }
}

fn examine_machine(config: &Config) -> Vec<Finding> {
    let root = nix::unistd::geteuid().is_root();
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let overlay = filesystems.lines().any(|l| l.trim().ends_with("overlay"));
    let namespace = |name: &str| Path::new("/proc/self/ns").join(name).exists();
    let mut findings = vec![
        need("root", root, if root { "yes" } else { "no" }, "run as root: sudo kfbox ..."),
        need("overlay file system", overlay, found(overlay), "modprobe overlay"),
        need(
            "namespaces",
            ["net", "pid", "mnt", "uts", "ipc"].iter().all(|n| namespace(n)),
            "net, pid, mnt, uts, ipc",
            "use a kernel with CONFIG_NAMESPACES",
        ),
    ];
    findings.push(cgroups());
    let nft = program("nft");
    findings.push(need("nft", nft, found(nft), "apt-get install -y nftables"));
    let forwarding = Path::new("/proc/sys/net/ipv4/ip_forward").exists();
    findings.push(need("IPv4 forwarding", forwarding, found(forwarding), "use a kernel with CONFIG_INET"));
    let seccomp = fs::read_to_string("/proc/self/status").is_ok_and(|s| s.contains("Seccomp:"));
    findings.push(Finding {
        optional: true,
        ..need("seccomp", seccomp, found(seccomp), "use a kernel with CONFIG_SECCOMP_FILTER")
    });
    findings.push(disk(&config.data_dir));
    let gpu = Path::new("/dev/nvidiactl").exists() || Path::new("/dev/kfd").exists();
    findings.push(Finding { optional: true, ..need("GPU", gpu, if gpu { "found" } else { "none found" }, "") });
    findings
}

fn cgroups() -> Finding {
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let v1 = ["cpu", "memory", "pids"].iter().all(|c| Path::new("/sys/fs/cgroup").join(c).is_dir());
    let detail = if v2 {
        "version 2"
    } else if v1 {
        "version 1"
    } else {
        "no cpu, memory and pids controllers"
    };
    need("control groups", v2 || v1, detail, "mount cgroup2: mount -t cgroup2 none /sys/fs/cgroup")
}

/// Enough for the python image twice and a few runs.
const FREE_BYTES: u64 = 2 << 30;

fn disk(data_dir: &Path) -> Finding {
    let existing = data_dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let free = nix::sys::statvfs::statvfs(existing).map_or(0, |s| s.blocks_available() * s.fragment_size());
    let detail = format!("{:.1} GiB free at {}", free as f64 / f64::from(1 << 30), existing.display());
    Finding {
        optional: true,
        ..need("disk space", free >= FREE_BYTES, &detail, "free some space, or put --data-dir on a larger disk")
    }
}

#[expect(clippy::disallowed_methods, reason = "looking for a program is what a shell does: by PATH")]
fn program(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| Path::new(dir).join(name).is_file())
}

fn found(yes: bool) -> &'static str {
    if yes { "found" } else { "not found" }
}

fn need(what: &str, ok: bool, detail: &str, fix: &str) -> Finding {
    Finding { what: what.into(), ok, optional: false, detail: detail.into(), fix: fix.into() }
}
