//! The `RuntimeDefault` system call filter.
//!
//! It refuses what the default profiles of container runtimes refuse (loading code into the kernel, changing mounts and
//! namespaces, clocks, key rings, tracing by handle, io_uring), and allows the rest: a short filter costs a tenth of a
//! long one at each container start. `clone3` answers ENOSYS, so that C libraries fall back to `clone`, whose flags a
//! filter can see.
//! Upstream: <https://docs.docker.com/engine/security/seccomp/>

use serde_json::{Value, json};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Refused unless the container holds the capability named.
const GATED: &[(&str, &[&str])] = &[
    (
        "CAP_SYS_ADMIN",
        &[
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setns",
            "swapoff",
            "swapon",
            "umount",
            "umount2",
            "unshare",
            "lookup_dcookie",
            "fanotify_init",
        ],
    ),
    ("CAP_SYS_BOOT", &["kexec_file_load", "kexec_load", "reboot"]),
    ("CAP_SYS_MODULE", &["create_module", "delete_module", "finit_module", "init_module", "query_module"]),
    ("CAP_SYS_PACCT", &["acct"]),
    ("CAP_SYS_PTRACE", &["kcmp", "pidfd_getfd"]),
    ("CAP_SYS_RAWIO", &["ioperm", "iopl"]),
    ("CAP_SYS_TIME", &["clock_adjtime", "clock_settime", "settimeofday", "stime"]),
    (
        "CAP_SYS_NICE",
        &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node", "move_pages", "migrate_pages"],
    ),
    ("CAP_BPF", &["bpf"]),
    ("CAP_PERFMON", &["perf_event_open"]),
    ("CAP_DAC_READ_SEARCH", &["open_by_handle_at"]),
];

/// Refused to all but privileged containers.
const NEVER: &[&str] = &[
    "_sysctl",
    "add_key",
    "get_kernel_syms",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "keyctl",
    "nfsservctl",
    "request_key",
    "sysfs",
    "uselib",
    "userfaultfd",
    "ustat",
    "vm86",
    "vm86old",
];

/// New mount, cgroup, UTS, IPC, user, process and network namespaces: bits of `clone`'s flags.
const NAMESPACE_FLAGS: [u64; 7] =
    [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

const AF_VSOCK: u64 = 40;
const TIOCSTI: u64 = 0x5412;

/// The OCI `linux.seccomp` object for a container with these capabilities.
pub fn runtime_default(capabilities: &[&str]) -> Value {
    let admin = capabilities.contains(&"CAP_SYS_ADMIN");
    let mut refused: Vec<&str> = NEVER.to_vec();
    for (capability, calls) in GATED {
        // Older programs get the newer, narrower capabilities' calls through CAP_SYS_ADMIN, as the kernel does.
        let covered = capabilities.contains(capability) || (admin && matches!(*capability, "CAP_BPF" | "CAP_PERFMON"));
        if !covered {
            refused.extend_from_slice(calls);
        }
    }
    let mut rules = vec![json!({ "names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM })];
    if !admin {
        rules.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
        rules.extend(NAMESPACE_FLAGS.map(|flag| on(0, "clone", flag, flag)));
    }
    rules.push(on(0, "socket", 0xffff_ffff, AF_VSOCK));
    rules.push(on(1, "ioctl", 0xffff_ffff, TIOCSTI));
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": architectures(),
        "syscalls": rules,
    })
}

fn on(index: u32, call: &str, mask: u64, value: u64) -> Value {
    // The OCI field `value` is the mask and `valueTwo` what is compared.
    json!({
        "names": [call],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": EPERM,
        "args": [{ "index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" }],
    })
}

fn architectures() -> &'static [&'static str] {
    if cfg!(target_arch = "x86_64") {
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    } else if cfg!(target_arch = "aarch64") {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    } else {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuses(profile: &Value, call: &str) -> bool {
        profile["syscalls"]
            .as_array()
            .unwrap()
            .iter()
            .any(|rule| rule["args"].is_null() && rule["names"].as_array().unwrap().iter().any(|name| name == call))
    }

    #[test]
    fn capabilities_open_their_calls_only() {
        let plain = runtime_default(&[]);
        for call in ["mount", "bpf", "keyctl", "io_uring_setup", "unshare", "clone3", "kexec_load"] {
            assert!(refuses(&plain, call), "{call}");
        }
        let admin = runtime_default(&["CAP_SYS_ADMIN"]);
        assert!(!refuses(&admin, "mount") && !refuses(&admin, "bpf") && !refuses(&admin, "clone3"));
        assert!(refuses(&admin, "init_module") && refuses(&admin, "keyctl"));
    }

    #[test]
    fn it_is_what_the_runtime_reads() {
        use libcontainer::oci_spec::runtime::LinuxSeccomp;
        let parsed: LinuxSeccomp = serde_json::from_value(runtime_default(&[])).unwrap();
        assert_eq!(parsed.syscalls().as_ref().map(Vec::len), Some(11));
    }
}
