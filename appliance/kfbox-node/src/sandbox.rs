//! What the containers of a pod share: network, IPC and host name, `/dev/shm`, and the files in `/etc` that speak of
//! them. Kept by mounts below the run directory, so it outlives the daemon.
//! Upstream: <https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/>

use crate::{
    oci::PodNamespaces,
    shim::kept::{KeepError, is_namespace, keep},
    volumes::is_mount_point,
};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Linux allows 64 bytes, and DNS labels 63.
const MAX_HOSTNAME: usize = 63;
/// What a resolver reads at most (glibc).
const MAX_NAMESERVERS: usize = 3;

#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// The cluster's DNS service. None until there is one: pods then resolve as the host does.
    pub service: Option<IpAddr>,
    pub domain: String,
    /// The host's own `resolv.conf`.
    pub host_resolv: PathBuf,
}

#[derive(Debug, Clone)]
pub struct Sandbox {
    pub namespaces: PodNamespaces,
    pub shm: PathBuf,
    pub hosts: PathBuf,
    pub hostname: PathBuf,
    pub resolv: PathBuf,
}

#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {source}", path = path.display())]
pub struct SandboxError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SandboxError {
    let path = path.to_path_buf();
    move |source| SandboxError { what, path, source }
}

pub fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let name = spec.and_then(|s| s.hostname.as_deref()).filter(|h| !h.is_empty());
    let name = name.or(pod.metadata.name.as_deref()).unwrap_or("pod");
    let cut: String = name.chars().take(MAX_HOSTNAME).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// Whether the pod has users of its own, in a user namespace.
pub fn own_users(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_users) == Some(false)
}

/// Makes the namespaces and mounts that are missing. A pod with users of its own has its namespaces already
/// (`Runtime::own_users`). Blocking.
pub fn namespaces(pod: &Pod, run: &Path, network: Option<PathBuf>) -> Result<(PodNamespaces, PathBuf), SandboxError> {
    let spec = pod.spec.as_ref();
    let folder = run.join("ns");
    fs::create_dir_all(&folder).map_err(at("cannot create", &folder))?;
    let shm = run.join("shm");
    fs::create_dir_all(&shm).map_err(at("cannot create", &shm))?;
    if !is_mount_point(&shm) {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("shm"), &shm, Some("tmpfs"), flags, Some("mode=1777,size=65536k"))
            .map_err(|e| at("cannot mount", &shm)(e.into()))?;
    }
    let host_network = spec.and_then(|s| s.host_network).unwrap_or(false);
    let host_ipc = spec.and_then(|s| s.host_ipc).unwrap_or(false);
    let ipc = (!host_ipc).then(|| folder.join("ipc"));
    // A pod in the host's network has the host's name.
    let uts = (!host_network).then(|| folder.join("uts"));
    let user = own_users(pod).then(|| folder.join("user"));
    let missing = |path: &Option<PathBuf>| path.as_deref().is_some_and(|p| !is_namespace(p));
    if missing(&ipc) || missing(&uts) {
        let (name, ipc, uts) = (hostname(pod), ipc.clone(), uts.clone());
        // A namespace belongs to a thread, so a thread is spent on making it.
        let made = std::thread::spawn(move || make(&name, ipc.as_deref(), uts.as_deref())).join();
        made.unwrap_or_else(|_| Err(at("cannot prepare", &folder)(io::Error::other("the thread panicked"))))?;
    }
    Ok((PodNamespaces { network: if host_network { None } else { network }, ipc, uts, pid: None, user }, shm))
}

fn make(name: &str, ipc: Option<&Path>, uts: Option<&Path>) -> Result<(), SandboxError> {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWIPC, ipc.is_some());
    flags.set(CloneFlags::CLONE_NEWUTS, uts.is_some());
    let own = Path::new("/proc/thread-self/ns");
    unshare(flags).map_err(|e| at("cannot make namespaces", own)(e.into()))?;
    if uts.is_some() {
        nix::unistd::sethostname(name).map_err(|e| at("cannot set the host name", own)(e.into()))?;
    }
    for (kind, path) in [("ipc", ipc), ("uts", uts)] {
        let Some(path) = path else { continue };
        if is_namespace(path) {
            continue;
        }
        keep(&own.join(kind), path).map_err(|KeepError { what, path, source }| SandboxError { what, path, source })?;
    }
    Ok(())
}

/// Writes the pod's `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`. Blocking.
pub fn files(pod: &Pod, data: &Path, ips: &[IpAddr], dns: &DnsConfig) -> Result<[PathBuf; 3], SandboxError> {
    let folder = data.join("etc");
    fs::create_dir_all(&folder).map_err(at("cannot create", &folder))?;
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let host_network = spec.host_network.unwrap_or(false);
    let name = if host_network {
        fs::read_to_string("/proc/sys/kernel/hostname").map(|s| s.trim().to_owned()).unwrap_or_default()
    } else {
        hostname(pod)
    };
    let host_hosts = if host_network { fs::read_to_string("/etc/hosts").ok() } else { None };
    let host_resolv = fs::read_to_string(&dns.host_resolv).unwrap_or_default();
    let contents = [
        ("hosts", hosts(spec, namespace, &name, ips, &dns.domain, host_hosts.as_deref())),
        ("hostname", format!("{name}\n")),
        ("resolv.conf", resolv(spec, namespace, dns, &host_resolv)),
    ];
    for (file, text) in &contents {
        let path = folder.join(file);
        // Written in place: running containers have the file mounted.
        if fs::read_to_string(&path).ok().as_deref() != Some(text) {
            fs::write(&path, text).map_err(at("cannot write", &path))?;
        }
    }
    Ok(contents.map(|(file, _)| folder.join(file)))
}

fn hosts(spec: &PodSpec, namespace: &str, name: &str, ips: &[IpAddr], domain: &str, host: Option<&str>) -> String {
    let mut text = match host {
        Some(host) => format!("# The host's own file, because the pod is in its network.\n{host}"),
        None => {
            let mut text = String::from("# Written by kfbox for this pod.\n127.0.0.1\tlocalhost\n");
            text.push_str("::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nfe00::\tip6-mcastprefix\n");
            text.push_str("fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
            for ip in ips {
                match spec.subdomain.as_deref().filter(|s| !s.is_empty()) {
                    Some(sub) => text.push_str(&format!("{ip}\t{name}.{sub}.{namespace}.svc.{domain}\t{name}\n")),
                    None => text.push_str(&format!("{ip}\t{name}\n")),
                }
            }
            text
        }
    };
    for alias in spec.host_aliases.iter().flatten() {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

fn resolv(spec: &PodSpec, namespace: &str, dns: &DnsConfig, host: &str) -> String {
    let words = |key: &str| -> Vec<String> {
        host.lines()
            .filter_map(|line| line.trim().strip_prefix(key))
            .flat_map(|rest| rest.split_ascii_whitespace().map(str::to_owned))
            .collect()
    };
    let host_network = spec.host_network.unwrap_or(false);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !host_network,
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let (mut servers, mut search, mut options) = match (policy, cluster, dns.service) {
        ("None", ..) => (Vec::new(), Vec::new(), Vec::new()),
        (_, true, Some(service)) => {
            let domain = &dns.domain;
            let mut search = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            search.extend(words("search "));
            (vec![service.to_string()], search, vec!["ndots:5".to_owned()])
        }
        _ => (words("nameserver "), words("search "), words("options ")),
    };
    if let Some(extra) = &spec.dns_config {
        servers.extend(extra.nameservers.iter().flatten().cloned());
        search.extend(extra.searches.iter().flatten().cloned());
        for option in extra.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            options.retain(|known| known.split(':').next() != Some(name.as_str()));
            options.push(option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut seen = std::collections::HashSet::new();
    search.retain(|s| seen.insert(s.clone()));
    servers.truncate(MAX_NAMESERVERS);
    let mut text = String::new();
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::{
        api::core::v1::{HostAlias, PodDNSConfig, PodDNSConfigOption},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    };

    fn dns() -> DnsConfig {
        DnsConfig {
            service: Some([10, 96, 0, 10].into()),
            domain: "cluster.local".into(),
            host_resolv: "/etc/resolv.conf".into(),
        }
    }

    #[test]
    fn policies_of_name_resolution() {
        let host = "nameserver 1.1.1.1\nsearch lab\noptions edns0\n";
        let text = |spec: &PodSpec| resolv(spec, "ns", &dns(), host);
        assert_eq!(
            text(&PodSpec::default()),
            "nameserver 10.96.0.10\nsearch ns.svc.cluster.local svc.cluster.local cluster.local lab\noptions ndots:5\n"
        );
        let on_host = PodSpec { host_network: Some(true), ..PodSpec::default() };
        assert_eq!(text(&on_host), "nameserver 1.1.1.1\nsearch lab\noptions edns0\n");
        let own = PodSpec {
            dns_policy: Some("None".into()),
            dns_config: Some(PodDNSConfig {
                nameservers: Some(vec!["9.9.9.9".into()]),
                searches: None,
                options: Some(vec![PodDNSConfigOption { name: Some("ndots".into()), value: Some("2".into()) }]),
            }),
            ..PodSpec::default()
        };
        assert_eq!(text(&own), "nameserver 9.9.9.9\noptions ndots:2\n");
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let spec = PodSpec {
            subdomain: Some("sub".into()),
            host_aliases: Some(vec![HostAlias { ip: "1.2.3.4".into(), hostnames: Some(vec!["x".into(), "y".into()]) }]),
            ..PodSpec::default()
        };
        let text =
            hosts(&spec, "ns", "p", &[[10, 244, 0, 9].into(), "fd00::9".parse().unwrap()], "cluster.local", None);
        assert!(text.contains("\n10.244.0.9\tp.sub.ns.svc.cluster.local\tp\n"), "{text}");
        assert!(text.contains("\nfd00::9\tp.sub.ns.svc.cluster.local\tp\n"), "{text}");
        assert!(text.ends_with("1.2.3.4\tx\ty\n"), "{text}");
    }

    #[test]
    fn namespaces_are_made_once_and_carry_the_name() {
        struct Unmount(PathBuf);
        impl Drop for Unmount {
            fn drop(&mut self) {
                let _ = crate::volumes::unmount_below(&self.0);
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().canonicalize().unwrap();
        let _unmount = Unmount(run.clone());
        let pod = Pod { metadata: ObjectMeta { name: Some("my-pod".into()), ..Default::default() }, ..Pod::default() };
        let (made, shm) = namespaces(&pod, &run, None).unwrap();
        assert!(is_namespace(made.ipc.as_deref().unwrap()) && is_mount_point(&shm));
        let inode = |p: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(p).unwrap());
        let uts = made.uts.clone().unwrap();
        assert_ne!(inode(&uts), inode(Path::new("/proc/self/ns/uts")));
        let before = inode(&uts);
        let (again, _) = namespaces(&pod, &run, None).unwrap();
        assert_eq!(inode(again.uts.as_deref().unwrap()), before);
        let inside = std::thread::spawn(move || {
            nix::sched::setns(fs::File::open(&uts).unwrap(), CloneFlags::CLONE_NEWUTS).unwrap();
            nix::unistd::gethostname().unwrap()
        });
        assert_eq!(inside.join().unwrap(), "my-pod");
    }
}
