//! Pods that this node refuses before anything of them is made, and why. Pure.
//! Upstream: <https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/>,
//! <https://kubernetes.io/docs/tutorials/security/apparmor/>,
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>

use super::record;
use crate::oci::resources::{self, QosClass};
use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, PodSpec};

/// Set in namespaces of the pod's own, and without influence on other pods. Upstream's list.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
/// Pods of this priority and above are part of the system: the API's bound for users' own priorities.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: &'static str,
    pub message: String,
}

fn refuse(reason: &'static str, message: impl Into<String>) -> Result<(), Refusal> {
    Err(Refusal { reason, message: message.into() })
}

/// What of the machine decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conditions {
    pub app_armor: bool,
    pub memory_pressure: bool,
    pub disk_pressure: bool,
    pub pid_pressure: bool,
}

pub fn admit(pod: &Pod, now: Conditions) -> Result<(), Refusal> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    pressure(spec, now)?;
    sysctls(spec)?;
    app_armor(spec, now.app_armor)?;
    user_namespace(spec)
}

/// A pod that goes on when the machine runs short.
pub fn is_critical(spec: &PodSpec) -> bool {
    spec.priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL)
}

fn pressure(spec: &PodSpec, now: Conditions) -> Result<(), Refusal> {
    let conditions: Vec<&str> = [
        (now.memory_pressure, "MemoryPressure"),
        (now.disk_pressure, "DiskPressure"),
        (now.pid_pressure, "PIDPressure"),
    ]
    .into_iter()
    .filter_map(|(is, name)| is.then_some(name))
    .collect();
    if conditions.is_empty() || is_critical(spec) {
        return Ok(());
    }
    if conditions == ["MemoryPressure"] {
        let tolerated = spec.tolerations.iter().flatten().any(|t| {
            let key = t.key.as_deref().unwrap_or_default();
            let effect = t.effect.as_deref().unwrap_or_default();
            let all = key.is_empty() && t.operator.as_deref() == Some("Exists");
            (all || key == "node.kubernetes.io/memory-pressure") && (effect.is_empty() || effect == "NoSchedule")
        });
        if resources::qos(spec) != QosClass::BestEffort || tolerated {
            return Ok(());
        }
    }
    refuse("Evicted", format!("The node had condition: [{}]. ", conditions.join(" ")))
}

fn sysctls(spec: &PodSpec) -> Result<(), Refusal> {
    let declared = spec.security_context.as_ref().and_then(|c| c.sysctls.as_deref()).unwrap_or_default();
    for sysctl in declared {
        // Either separator is allowed; whichever comes first separates.
        let slashes = sysctl.name.find('/').is_some_and(|slash| sysctl.name.find('.').is_none_or(|dot| slash < dot));
        let name = if slashes { sysctl.name.replace('/', ".") } else { sysctl.name.clone() };
        if !SAFE_SYSCTLS.contains(&name.as_str()) {
            return refuse("SysctlForbidden", format!("forbidden sysctl: {name:?} not allowlisted"));
        }
        let (space, shared) =
            if name.starts_with("net.") { ("Net", spec.host_network) } else { ("IPC", spec.host_ipc) };
        if shared == Some(true) {
            let message = format!("forbidden sysctl: {name:?} not allowed with host {space} enabled");
            return refuse("SysctlForbidden", message);
        }
    }
    Ok(())
}

fn app_armor(spec: &PodSpec, enabled: bool) -> Result<(), Refusal> {
    for (_, container) in record::containers(spec) {
        let Some(profile) = app_armor_profile(spec, &container).filter(|p| p.type_ != "Unconfined") else { continue };
        if !enabled {
            return refuse("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host");
        }
        if profile.type_ == "RuntimeDefault" {
            let message = "Cannot enforce AppArmor: this node has no default profile; load one and name it with type \
                Localhost, or leave the field out";
            return refuse("AppArmor", message);
        }
    }
    Ok(())
}

/// A container's own profile, or the pod's.
pub fn app_armor_profile<'a>(spec: &'a PodSpec, container: &'a Container) -> Option<&'a AppArmorProfile> {
    let own = container.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref());
    own.or_else(|| spec.security_context.as_ref()?.app_armor_profile.as_ref())
}

/// What of the machine does not change.
pub fn has_app_armor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

fn user_namespace(spec: &PodSpec) -> Result<(), Refusal> {
    let own = spec.host_users == Some(false);
    if own && spec.share_process_namespace == Some(true) {
        let message =
            "this node runs no pods with hostUsers: false and shareProcessNamespace: true; leave one of them out";
        return refuse("UserNamespacesNotSupported", message);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(spec: Value, now: Conditions) -> Result<(), (String, String)> {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{ "name": "a" }]);
        }
        let pod: Pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
        admit(&pod, now).map_err(|refusal| (refusal.reason.to_owned(), refusal.message))
    }

    fn reason(spec: Value, now: Conditions) -> Option<String> {
        check(spec, now).err().map(|(reason, _)| reason)
    }

    #[test]
    fn only_safe_sysctls_pass_and_none_of_the_hosts() {
        let with = |name: &str, host: Value| {
            let mut spec = host;
            spec["securityContext"] = json!({ "sysctls": [{ "name": name, "value": "1" }] });
            check(spec, Conditions::default()).map_err(|(reason, message)| {
                assert_eq!(reason, "SysctlForbidden");
                message
            })
        };
        assert_eq!(with("net.ipv4.tcp_syncookies", json!({})), Ok(()));
        assert_eq!(with("net/ipv4/tcp_syncookies", json!({})), Ok(()));
        assert_eq!(
            with("vm.overcommit_memory", json!({})),
            Err("forbidden sysctl: \"vm.overcommit_memory\" not allowlisted".into())
        );
        assert_eq!(
            with("net.ipv4.tcp_syncookies", json!({ "hostNetwork": true })),
            Err("forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host Net enabled".into())
        );
        assert!(with("kernel.shm_rmid_forced", json!({ "hostIPC": true })).is_err());
        assert!(with("../../sys/x", json!({})).is_err());
    }

    #[test]
    fn app_armor_is_refused_where_the_kernel_has_none() {
        let on_pod = json!({ "securityContext": { "appArmorProfile": { "type": "RuntimeDefault" } } });
        assert_eq!(reason(on_pod.clone(), Conditions::default()).as_deref(), Some("AppArmor"));
        let enabled = Conditions { app_armor: true, ..Conditions::default() };
        assert_eq!(reason(on_pod, enabled).as_deref(), Some("AppArmor"), "there is no default profile");
        let named =
            json!({ "securityContext": { "appArmorProfile": { "type": "Localhost", "localhostProfile": "x" } } });
        assert_eq!(reason(named, enabled), None);
        let overridden = json!({
            "securityContext": { "appArmorProfile": { "type": "RuntimeDefault" } },
            "containers": [{ "name": "a", "securityContext": { "appArmorProfile": { "type": "Unconfined" } } }],
        });
        assert_eq!(reason(overridden, Conditions::default()), None);
    }

    #[test]
    fn a_machine_under_pressure_takes_what_upstream_takes() {
        let memory = Conditions { memory_pressure: true, ..Conditions::default() };
        let disk = Conditions { disk_pressure: true, ..Conditions::default() };
        let (reason_, message) = check(json!({}), memory).unwrap_err();
        assert_eq!((reason_.as_str(), message.as_str()), ("Evicted", "The node had condition: [MemoryPressure]. "));
        let burstable = json!({ "containers": [{ "name": "a", "resources": { "requests": { "cpu": "1m" } } }] });
        assert_eq!(reason(burstable.clone(), memory), None);
        assert!(reason(burstable, disk).is_some());
        let tolerant = json!({ "tolerations": [{ "operator": "Exists" }] });
        assert_eq!(reason(tolerant.clone(), memory), None);
        assert!(reason(tolerant, disk).is_some());
        assert_eq!(reason(json!({ "priority": SYSTEM_CRITICAL }), disk), None);
    }

    #[test]
    fn a_shared_process_namespace_goes_with_the_hosts_users_alone() {
        let shared = |own: bool| json!({ "hostUsers": !own, "shareProcessNamespace": true });
        assert!(reason(shared(true), Conditions::default()).is_some());
        assert_eq!(reason(shared(false), Conditions::default()), None);
        assert_eq!(reason(json!({ "hostUsers": false }), Conditions::default()), None);
    }
}
