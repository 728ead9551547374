//! The rules of the level `baseline`: what opens the node to a pod.

use super::{
    Subject, Violation, bad_settings, containers_named, name, outside_user_namespaces, plural, quoted, setters, text,
    violation,
};
use serde_json::Value;
use std::collections::BTreeSet;

const APP_ARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// In the order in which releases came to allow them.
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// The last of these is allowed since 1.31.
const SELINUX_TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

pub fn app_armor(pod: Subject<'_>) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let mut bad = |context: &Value| {
        let profile = &context["appArmorProfile"];
        let bad = profile.is_object() && !matches!(text(profile, "type"), "RuntimeDefault" | "Localhost");
        if bad {
            values.insert(text(profile, "type").to_owned());
        }
        bad
    };
    let of_pod = bad(&pod.spec["securityContext"]);
    let containers = pod.containers_where(|c| bad(&c["securityContext"]));
    let mut who: Vec<String> = setters(of_pod, &containers).into_iter().collect();
    let allowed =
        |profile: &str| profile.is_empty() || profile == "runtime/default" || profile.starts_with("localhost/");
    let mut annotations: Vec<String> = pod.metadata["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key, value.as_str()?)))
        .filter(|(key, value)| key.starts_with(APP_ARMOR_ANNOTATION) && !allowed(value))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    annotations.sort();
    if !annotations.is_empty() {
        who.push(plural("annotation", "annotations", annotations.len()).to_owned());
    }
    if who.is_empty() {
        return None;
    }
    let values: Vec<String> = values.into_iter().chain(annotations).collect();
    violation(
        plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len()),
        format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(values)),
    )
}

pub fn capabilities(pod: Subject<'_>) -> Option<Violation> {
    let mut added = BTreeSet::new();
    let bad = pod.containers_where(|c| {
        let capabilities = c["securityContext"]["capabilities"]["add"].as_array();
        let wrong: Vec<&str> = capabilities
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .filter(|c| !CAPABILITIES.contains(c))
            .collect();
        let any = !wrong.is_empty();
        added.extend(wrong);
        any
    });
    if bad.is_empty() {
        return None;
    }
    let detail =
        format!("{} must not include {} in securityContext.capabilities.add", containers_named(&bad), quoted(added));
    violation("non-default capabilities", detail)
}

pub fn host_namespaces(pod: Subject<'_>) -> Option<Violation> {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| pod.spec[**field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    if shared.is_empty() { None } else { violation("host namespaces", shared.join(", ")) }
}

pub fn host_path_volumes(pod: Subject<'_>) -> Option<Violation> {
    let bad: Vec<&str> = pod.volumes().filter(|v| !v["hostPath"].is_null()).map(name).collect();
    if bad.is_empty() {
        return None;
    }
    violation("hostPath volumes", format!("{} {}", plural("volume", "volumes", bad.len()), quoted(&bad)))
}

pub fn host_ports(pod: Subject<'_>) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let bad = pod.containers_where(|c| {
        let used: Vec<String> = c["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| port["hostPort"].as_i64())
            .filter(|port| *port != 0)
            .map(|port| port.to_string())
            .collect();
        let any = !used.is_empty();
        ports.extend(used);
        any
    });
    if bad.is_empty() {
        return None;
    }
    let uses = plural("uses", "use", bad.len());
    let noun = plural("hostPort", "hostPorts", ports.len());
    let ports: Vec<String> = ports.into_iter().collect();
    violation("hostPort", format!("{} {uses} {noun} {}", containers_named(&bad), ports.join(", ")))
}

pub fn host_probes(pod: Subject<'_>) -> Option<Violation> {
    let mut hosts = BTreeSet::new();
    let mut bad = BTreeSet::new();
    for container in pod.containers() {
        let handlers = [
            &container["livenessProbe"],
            &container["readinessProbe"],
            &container["startupProbe"],
            &container["lifecycle"]["postStart"],
            &container["lifecycle"]["preStop"],
        ];
        let found: Vec<&str> = handlers
            .iter()
            .flat_map(|h| [text(&h["httpGet"], "host"), text(&h["tcpSocket"], "host")])
            .filter(|host| !host.is_empty())
            .collect();
        if !found.is_empty() {
            bad.insert(name(container));
        }
        hosts.extend(found);
    }
    if bad.is_empty() {
        return None;
    }
    let bad: Vec<&str> = bad.into_iter().collect();
    let uses = plural("uses", "use", bad.len());
    let noun = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    violation("probe or lifecycle host", format!("{} {uses} {noun} {}", containers_named(&bad), quoted(hosts)))
}

pub fn privileged(pod: Subject<'_>) -> Option<Violation> {
    let bad = pod.containers_where(|c| c["securityContext"]["privileged"] == true);
    if bad.is_empty() {
        return None;
    }
    violation("privileged", format!("{} must not set securityContext.privileged=true", containers_named(&bad)))
}

pub fn proc_mount(pod: Subject<'_>) -> Option<Violation> {
    let mut kinds = BTreeSet::new();
    let bad = pod.containers_where(|c| {
        let other = c["securityContext"]["procMount"].as_str().filter(|kind| *kind != "Default");
        kinds.extend(other);
        other.is_some()
    });
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.procMount to {}", containers_named(&bad), quoted(kinds));
    violation("procMount", detail)
}

pub fn proc_mount_outside_user_namespaces(pod: Subject<'_>) -> Option<Violation> {
    outside_user_namespaces(pod, proc_mount)
}

pub fn selinux(pod: Subject<'_>) -> Option<Violation> {
    selinux_of(pod, &SELINUX_TYPES[..4])
}

pub fn selinux_with_engine(pod: Subject<'_>) -> Option<Violation> {
    selinux_of(pod, &SELINUX_TYPES)
}

fn selinux_of(pod: Subject<'_>, types: &[&str]) -> Option<Violation> {
    let mut bad_types = BTreeSet::new();
    let (mut user, mut role) = (false, false);
    let mut bad = |context: &Value| {
        let options = &context["seLinuxOptions"];
        let kind = text(options, "type");
        let (sets_type, sets_user, sets_role) =
            (!types.contains(&kind), !text(options, "user").is_empty(), !text(options, "role").is_empty());
        if sets_type {
            bad_types.insert(kind.to_owned());
        }
        user |= sets_user;
        role |= sets_role;
        sets_type || sets_user || sets_role
    };
    let of_pod = bad(&pod.spec["securityContext"]);
    let containers = pod.containers_where(|c| bad(&c["securityContext"]));
    let who = setters(of_pod, &containers)?;
    let mut wrong = Vec::new();
    if !bad_types.is_empty() {
        wrong.push(format!("{} {}", plural("type", "types", bad_types.len()), quoted(bad_types)));
    }
    if user {
        wrong.push("user may not be set".to_owned());
    }
    if role {
        wrong.push("role may not be set".to_owned());
    }
    violation("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions: {}", wrong.join("; ")))
}

/// How profiles were set before 1.19.
pub fn seccomp_annotations(pod: Subject<'_>) -> Option<Violation> {
    let allowed =
        |profile: &str| matches!(profile, "runtime/default" | "docker/default") || profile.starts_with("localhost/");
    let keys = pod.containers().map(|c| format!("{SECCOMP_CONTAINER}{}", name(c)));
    let bad: BTreeSet<String> = [SECCOMP_POD.to_owned()]
        .into_iter()
        .chain(keys)
        .filter_map(|key| Some((pod.annotation(&key)?, key)))
        .filter(|(value, _)| !allowed(value))
        .map(|(value, key)| format!("{key}={value:?}"))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let noun = plural("annotation", "annotations", bad.len());
    let bad: Vec<String> = bad.into_iter().collect();
    violation("seccompProfile", format!("forbidden {noun} {}", bad.join(", ")))
}

pub fn seccomp(pod: Subject<'_>) -> Option<Violation> {
    let (who, values) = bad_settings(pod, bad_seccomp)?;
    violation("seccompProfile", format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values)))
}

/// The type of a profile that is set and not allowed.
pub fn bad_seccomp(context: &Value) -> Option<&str> {
    let profile = &context["seccompProfile"];
    let kind = text(profile, "type");
    (profile.is_object() && !matches!(kind, "RuntimeDefault" | "Localhost")).then_some(kind)
}

/// `allowed` is how many of [`SYSCTLS`] are.
pub fn sysctls(pod: Subject<'_>, allowed: usize) -> Option<Violation> {
    let bad: Vec<&str> = pod.spec["securityContext"]["sysctls"]
        .as_array()
        .into_iter()
        .flatten()
        .map(name)
        .filter(|name| !SYSCTLS[..allowed].contains(name))
        .collect();
    if bad.is_empty() { None } else { violation("forbidden sysctls", bad.join(", ")) }
}

pub fn windows_host_process(pod: Subject<'_>) -> Option<Violation> {
    let bad = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
    let containers = pod.containers_where(|c| bad(&c["securityContext"]));
    let who = setters(bad(&pod.spec["securityContext"]), &containers)?;
    violation("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}
