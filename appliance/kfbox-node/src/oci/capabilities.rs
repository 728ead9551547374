//! Which Linux capabilities a container gets: a default set as container runtimes give, then what its security context
//! adds and drops.
//! Upstream: <https://kubernetes.io/docs/tasks/configure-pod-container/security-context/>

use k8s_openapi::api::core::v1::SecurityContext;
use std::collections::BTreeSet;

/// What containers get unless they say otherwise; the same fourteen as in Docker and containerd.
const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// In the kernel's order: bit N is capability N.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A set of capabilities as the kernel counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Available(u64);

impl Available {
    /// What this process may hand on: nobody can be given more than the daemon's own bounding set.
    pub fn of_this_process() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self::parse(&status)
    }

    fn parse(status: &str) -> Self {
        let bits = status
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        Self(bits.unwrap_or(u64::MAX))
    }

    fn has(self, name: &str) -> bool {
        ALL.iter().position(|c| *c == name).is_some_and(|bit| self.0 & (1 << bit) != 0)
    }
}

/// Sorted names, with the `CAP_` prefix.
pub fn granted(context: Option<&SecurityContext>, available: Available) -> Vec<&'static str> {
    let mut set: BTreeSet<&'static str> = DEFAULT.into();
    let privileged = context.and_then(|c| c.privileged).unwrap_or(false);
    if privileged {
        set = ALL.into();
    } else if let Some(change) = context.and_then(|c| c.capabilities.as_ref()) {
        let (add, drop) = (change.add.as_deref().unwrap_or_default(), change.drop.as_deref().unwrap_or_default());
        let is_all = |name: &String| name.eq_ignore_ascii_case("all");
        if add.iter().any(is_all) {
            set = ALL.into();
        }
        if drop.iter().any(is_all) {
            set.clear();
        }
        set.extend(add.iter().filter_map(|name| known(name)));
        for name in drop {
            if let Some(name) = known(name) {
                set.remove(name);
            }
        }
    }
    set.into_iter().filter(|name| available.has(name)).collect()
}

fn known(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL.into_iter().find(|c| c.strip_prefix("CAP_") == Some(bare))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Capabilities;

    fn context(add: &[&str], drop: &[&str]) -> SecurityContext {
        let names = |list: &[&str]| Some(list.iter().map(|s| (*s).to_owned()).collect());
        SecurityContext {
            capabilities: Some(Capabilities { add: names(add), drop: names(drop) }),
            ..SecurityContext::default()
        }
    }

    #[test]
    fn drop_all_then_add_leaves_what_was_added() {
        let all = Available(u64::MAX);
        assert_eq!(granted(Some(&context(&["NET_BIND_SERVICE"], &["ALL"])), all), ["CAP_NET_BIND_SERVICE"]);
        assert_eq!(granted(Some(&context(&[], &["all"])), all), Vec::<&str>::new());
        assert_eq!(granted(None, all).len(), 14);
        assert!(!granted(Some(&context(&[], &["KILL"])), all).contains(&"CAP_KILL"));
        assert!(granted(Some(&context(&["sys_admin"], &[])), all).contains(&"CAP_SYS_ADMIN"));
    }

    #[test]
    fn nothing_is_granted_that_the_daemon_lacks() {
        let without_resource = Available::parse("CapBnd:\t000001fffeffffff\n");
        let privileged = SecurityContext { privileged: Some(true), ..SecurityContext::default() };
        let set = granted(Some(&privileged), without_resource);
        assert_eq!(set.len(), 40);
        assert!(!set.contains(&"CAP_SYS_RESOURCE"));
    }
}
