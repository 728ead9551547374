//! The OCI `config.json` of a container, from its pod, its image and what was prepared for it. Pure: nothing here reads
//! or writes the machine.
//! Upstream: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md>

pub mod capabilities;
pub mod identity;
pub mod resources;
pub mod seccomp;
pub mod users;

use crate::pod::admit;
use capabilities::Available;
use identity::Identity;
use k8s_openapi::api::core::v1::{Container, PodSpec, SeccompProfile};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What an image says about running it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub stop_signal: String,
}

/// A bind mount into the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
    /// `None`, `HostToContainer` or `Bidirectional`.
    pub propagation: Option<String>,
}

/// The pod's namespaces, kept by bind mounts. None: the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodNamespaces {
    pub network: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    /// Shared by the pod's containers, or another container's. None: each container has its own.
    pub pid: Option<PathBuf>,
    /// The pod's own users, to which its other namespaces then belong. None: the host's.
    pub user: Option<PathBuf>,
}

pub struct Input<'a> {
    pub pod: &'a PodSpec,
    pub container: &'a Container,
    pub image: &'a ImageDefaults,
    pub identity: &'a Identity,
    /// In order; a later one of the same name wins.
    pub env: &'a [(String, String)],
    pub command: Vec<String>,
    pub binds: &'a [Bind],
    pub namespaces: &'a PodNamespaces,
    pub rootfs: &'a Path,
    /// The pod's `/dev/shm`, which its containers share.
    pub shm: Option<&'a Path>,
    pub cgroup: &'a str,
    pub unified_cgroups: bool,
    pub pids_limit: Option<i64>,
    pub available: Available,
    /// Character and block devices for a privileged container: path, type, major, minor.
    pub host_devices: &'a [(PathBuf, char, u64, u64)],
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("no command specified")]
    NoCommand,
    #[error("the localhost seccomp profile {0} is not on this node")]
    LocalhostSeccomp(String),
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// `command` replaces the image's entrypoint and its arguments; `args` alone replaces only the arguments.
pub fn command(container: &Container, image: &ImageDefaults, expand: impl Fn(&str) -> String) -> Vec<String> {
    let own = |list: &Option<Vec<String>>| list.iter().flatten().map(|s| expand(s)).collect::<Vec<_>>();
    let (command, args) = (own(&container.command), own(&container.args));
    if !command.is_empty() {
        return [command, args].concat();
    }
    [image.entrypoint.clone(), if args.is_empty() { image.cmd.clone() } else { args }].concat()
}

pub fn spec(input: &Input<'_>) -> Result<Value, SpecError> {
    if input.command.is_empty() {
        return Err(SpecError::NoCommand);
    }
    let context = input.container.security_context.as_ref();
    let privileged = context.and_then(|c| c.privileged).unwrap_or(false);
    let capabilities = capabilities::granted(context, input.available);
    // A user other than root keeps nothing beyond the bounding set, unless file capabilities raise it.
    let held: &[&str] = if input.identity.uid == 0 { &capabilities } else { &[] };
    let escalation = context.and_then(|c| c.allow_privilege_escalation).unwrap_or(true);
    let admin = capabilities.contains(&"CAP_SYS_ADMIN");
    let profile = context
        .and_then(|c| c.seccomp_profile.as_ref())
        .or_else(|| input.pod.security_context.as_ref().and_then(|p| p.seccomp_profile.as_ref()));
    let seccomp = if privileged { None } else { filter(profile, &capabilities)? };

    let mut process = json!({
        "terminal": input.container.tty.unwrap_or(false),
        "user": {
            "uid": input.identity.uid,
            "gid": input.identity.gid,
            "additionalGids": input.identity.additional,
        },
        "args": input.command,
        "env": environment(input),
        "cwd": working_dir(input.container, input.image),
        "capabilities": {
            "bounding": capabilities,
            "effective": held,
            "permitted": held,
            "inheritable": [],
            "ambient": [],
        },
    });
    // The runtime loads the filter late where this is set at all, so it is left out rather than false.
    if !escalation && !privileged && !admin {
        process["noNewPrivileges"] = json!(true);
    }

    let app_armor = admit::app_armor_profile(input.pod, input.container).filter(|p| p.type_ == "Localhost");
    if let Some(name) = app_armor.and_then(|profile| profile.localhost_profile.as_ref()) {
        process["apparmorProfile"] = json!(name);
    }

    let mut linux = json!({
        "cgroupsPath": input.cgroup,
        "namespaces": namespaces(input),
        "resources": resources::resources(input.container, input.pids_limit, privileged),
        "sysctl": sysctls(input.pod),
    });
    if !privileged {
        let unmasked = context.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked");
        if !unmasked {
            linux["maskedPaths"] = json!(MASKED);
            linux["readonlyPaths"] = json!(READ_ONLY);
        }
    } else {
        linux["devices"] = input
            .host_devices
            .iter()
            .map(|(path, kind, major, minor)| {
                json!({ "path": path, "type": kind.to_string(), "major": major, "minor": minor, "fileMode": 0o666 })
            })
            .collect();
    }
    if let Some(seccomp) = seccomp {
        linux["seccomp"] = seccomp;
    }
    if input.binds.iter().any(|b| b.propagation.as_deref() == Some("Bidirectional")) {
        linux["rootfsPropagation"] = json!("shared");
    } else if input.binds.iter().any(|b| b.propagation.as_deref() == Some("HostToContainer")) {
        linux["rootfsPropagation"] = json!("slave");
    }

    Ok(json!({
        "ociVersion": "1.0.2",
        "root": {
            "path": input.rootfs,
            "readonly": context.and_then(|c| c.read_only_root_filesystem).unwrap_or(false),
        },
        "process": process,
        "mounts": mounts(input, privileged),
        "linux": linux,
    }))
}

fn filter(profile: Option<&SeccompProfile>, capabilities: &[&str]) -> Result<Option<Value>, SpecError> {
    match profile.map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => Ok(Some(seccomp::runtime_default(capabilities))),
        Some("Localhost") => {
            let name = profile.and_then(|p| p.localhost_profile.clone()).unwrap_or_default();
            Err(SpecError::LocalhostSeccomp(name))
        }
        _ => Ok(None),
    }
}

fn working_dir<'a>(container: &'a Container, image: &'a ImageDefaults) -> &'a str {
    match container.working_dir.as_deref() {
        Some(dir) if !dir.is_empty() => dir,
        _ if !image.working_dir.is_empty() => &image.working_dir,
        _ => "/",
    }
}

fn environment(input: &Input<'_>) -> Vec<String> {
    let image = input.image.env.iter().filter_map(|pair| pair.split_once('='));
    let own = input.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut merged: Vec<(&str, &str)> = vec![("PATH", DEFAULT_PATH)];
    if input.container.tty.unwrap_or(false) {
        merged.push(("TERM", "xterm"));
    }
    for (name, value) in image.chain(own) {
        match merged.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => merged.push((name, value)),
        }
    }
    merged.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn namespaces(input: &Input<'_>) -> Vec<Value> {
    let mut all = vec![json!({ "type": "mount" })];
    if !input.pod.host_pid.unwrap_or(false) {
        all.push(match &input.namespaces.pid {
            Some(path) => json!({ "type": "pid", "path": path }),
            None => json!({ "type": "pid" }),
        });
    }
    let shared = [
        ("user", &input.namespaces.user),
        ("network", &input.namespaces.network),
        ("ipc", &input.namespaces.ipc),
        ("uts", &input.namespaces.uts),
    ];
    for (kind, path) in shared {
        if let Some(path) = path {
            all.push(json!({ "type": kind, "path": path }));
        }
    }
    if input.unified_cgroups {
        all.push(json!({ "type": "cgroup" }));
    }
    all
}

fn sysctls(pod: &PodSpec) -> serde_json::Map<String, Value> {
    let declared = pod.security_context.as_ref().and_then(|c| c.sysctls.as_deref()).unwrap_or_default();
    declared.iter().map(|s| (s.name.clone(), json!(s.value))).collect()
}

fn mounts(input: &Input<'_>, privileged: bool) -> Vec<Value> {
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": source, "options": options });
    let sys_mode = if privileged { "rw" } else { "ro" };
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys_mode]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", sys_mode]),
    ];
    all.push(match input.shm {
        Some(path) => mount("/dev/shm", "bind", &path.to_string_lossy(), &["rbind", "rw"]),
        None => mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    });
    // Parents first, so that a volume inside another's folder is not hidden by it.
    let mut binds: Vec<&Bind> = input.binds.iter().collect();
    binds.sort_by_key(|bind| bind.target.components().count());
    for bind in binds {
        let propagation = match bind.propagation.as_deref() {
            Some("Bidirectional") => "rshared",
            Some("HostToContainer") => "rslave",
            _ => "rprivate",
        };
        let mode = if bind.read_only { "ro" } else { "rw" };
        let target = bind.target.to_string_lossy();
        // A volume at one of the runtime's own places replaces it.
        all.retain(|known| known["destination"] != target.as_ref());
        all.push(mount(&target, "bind", &bind.source.to_string_lossy(), &["rbind", propagation, mode]));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodSecurityContext, SecurityContext};
    use libcontainer::oci_spec::runtime::Spec;

    fn build(container: &Container, pod: &PodSpec, identity: &Identity, binds: &[Bind]) -> Value {
        let image = ImageDefaults { env: vec!["PATH=/opt/bin:/bin".into(), "LANG=C".into()], ..Default::default() };
        spec(&Input {
            pod,
            container,
            image: &image,
            identity,
            env: &[("LANG".into(), "C.UTF-8".into())],
            command: vec!["/bin/true".into()],
            binds,
            namespaces: &PodNamespaces { network: Some("/run/ns/net".into()), ..Default::default() },
            rootfs: Path::new("/c/rootfs"),
            shm: None,
            cgroup: "/kfbox/pod1/main",
            unified_cgroups: false,
            pids_limit: None,
            available: Available::of_this_process(),
            host_devices: &[],
        })
        .unwrap()
    }

    #[test]
    fn the_runtime_reads_it() {
        let value = build(&Container::default(), &PodSpec::default(), &Identity::default(), &[]);
        let parsed: Spec = serde_json::from_value(value).unwrap();
        let process = parsed.process().as_ref().unwrap();
        assert_eq!(process.env().as_ref().unwrap(), &["PATH=/opt/bin:/bin", "LANG=C.UTF-8"]);
        assert_eq!(process.no_new_privileges(), None);
        assert!(parsed.linux().as_ref().unwrap().seccomp().is_none());
    }

    #[test]
    fn a_restricted_container_is_restricted() {
        let container = Container {
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                read_only_root_filesystem: Some(true),
                ..SecurityContext::default()
            }),
            ..Container::default()
        };
        let pod = PodSpec {
            security_context: Some(PodSecurityContext {
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..Default::default() }),
                ..PodSecurityContext::default()
            }),
            ..PodSpec::default()
        };
        let value = build(&container, &pod, &Identity { uid: 1000, gid: 100, additional: vec![5] }, &[]);
        assert_eq!(value["process"]["noNewPrivileges"], true);
        assert_eq!(value["process"]["capabilities"]["effective"], json!([]));
        assert_eq!(value["root"]["readonly"], true);
        assert_eq!(value["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ALLOW");
        assert!(value["linux"]["maskedPaths"].as_array().unwrap().contains(&json!("/proc/kcore")));
        let _: Spec = serde_json::from_value(value).unwrap();
    }

    #[test]
    fn volumes_are_mounted_parents_first_and_replace_the_runtimes_own() {
        let bind =
            |target: &str| Bind { source: "/v".into(), target: target.into(), read_only: false, propagation: None };
        let binds = [bind("/data/deep"), bind("/data"), bind("/dev/shm")];
        let value = build(&Container::default(), &PodSpec::default(), &Identity::default(), &binds);
        let targets: Vec<&str> =
            value["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
        let place = |name| targets.iter().position(|t| *t == name).unwrap();
        assert!(place("/data") < place("/data/deep"));
        assert_eq!(targets.iter().filter(|t| **t == "/dev/shm").count(), 1);
    }

    #[test]
    fn commands_combine_as_upstream_says() {
        let image = ImageDefaults { entrypoint: vec!["ep".into()], cmd: vec!["c".into()], ..Default::default() };
        let with = |command: &[&str], args: &[&str]| {
            let list = |l: &[&str]| (!l.is_empty()).then(|| l.iter().map(|s| (*s).to_owned()).collect());
            let container = Container { command: list(command), args: list(args), ..Container::default() };
            super::command(&container, &image, str::to_owned).join(" ")
        };
        assert_eq!(with(&[], &[]), "ep c");
        assert_eq!(with(&[], &["a"]), "ep a");
        assert_eq!(with(&["x"], &[]), "x");
        assert_eq!(with(&["x"], &["a"]), "x a");
    }
}
