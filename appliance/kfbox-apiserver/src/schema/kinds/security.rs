//! Security contexts of pods and containers. Upstream: `ValidateSecurityContext` in `pkg/apis/core/validation`.

use std::collections::HashSet;

use serde_json::Value;

use super::{Check, element, join, list, text, volumes};

fn ids(c: &mut Check, security: &Value, path: &str, fields: &[&str]) {
    for name in fields {
        if let Some(id) = security.get(name).and_then(Value::as_i64) {
            id_holds(c, &join(path, name), id);
        }
    }
}

fn id_holds(c: &mut Check, field: &str, id: i64) {
    if !(0..=i64::from(i32::MAX)).contains(&id) {
        c.invalid(field, id, "must be between 0 and 2147483647, inclusive");
    }
}

/// Names of kernel parameters; upstream shows its expression.
const SYSCTL: &str = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

fn is_sysctl(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            edge(bytes.first())
                && edge(bytes.last())
                && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
        })
}

pub(super) fn pod(c: &mut Check, spec: &Value, path: &str) {
    let security = spec.get("securityContext").unwrap_or(&Value::Null);
    let path = join(path, "securityContext");
    ids(c, security, &path, &["fsGroup", "runAsUser", "runAsGroup"]);
    for (at, group) in list(security, "/supplementalGroups").iter().enumerate() {
        id_holds(c, &element(&path, "supplementalGroups", at), group.as_i64().unwrap_or(-1));
    }
    let on = |name: &str| spec.get(name) == Some(&Value::Bool(true));
    if on("shareProcessNamespace") && on("hostPID") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        c.invalid(&join(&path, "shareProcessNamespace"), true, why);
    }
    let mut seen = HashSet::new();
    for (at, sysctl) in list(security, "/sysctls").iter().enumerate() {
        let field = join(&element(&path, "sysctls", at), "name");
        let name = text(sysctl, "/name");
        if name.is_empty() {
            c.required(&field, "");
        } else if !is_sysctl(name) {
            c.invalid(&field, name, SYSCTL);
        } else if !seen.insert(name) {
            c.duplicate(&field, name);
        }
        let plain = name.replace('/', ".");
        let ipc = plain.starts_with("fs.mqueue.")
            || plain.starts_with("kernel.shm")
            || plain.starts_with("kernel.msg")
            || plain == "kernel.sem";
        if on("hostNetwork") && plain.starts_with("net.") {
            c.invalid(&field, name, "may not be specified when 'hostNetwork' is true");
        } else if on("hostIPC") && ipc {
            c.invalid(&field, name, "may not be specified when 'hostIPC' is true");
        }
    }
    c.one_of(security, &path, "fsGroupChangePolicy", &["Always", "OnRootMismatch"]);
    seccomp(c, security, &path);
    app_armor(c, security, &path);
    c.one_of(security, &path, "supplementalGroupsPolicy", &["Merge", "Strict"]);
    c.one_of(security, &path, "seLinuxChangePolicy", &["MountOption", "Recursive"]);
}

pub(super) fn container(c: &mut Check, one: &Value, path: &str, own_users: bool) {
    let Some(security) = one.get("securityContext") else { return };
    ids(c, security, path, &["runAsUser", "runAsGroup"]);
    c.one_of(security, path, "procMount", &["Default", "Unmasked"]);
    if !own_users && text(security, "/procMount") == "Unmasked" {
        c.invalid(&join(path, "procMount"), "Unmasked", "`hostUsers` must be false to use `Unmasked`");
    }
    seccomp(c, security, path);
    if security.get("allowPrivilegeEscalation") == Some(&Value::Bool(false)) {
        if security.get("privileged") == Some(&Value::Bool(true)) {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            c.invalid(path, security.clone(), why);
        }
        if list(security, "/capabilities/add").iter().any(|name| name == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            c.invalid(path, security.clone(), why);
        }
    }
    app_armor(c, security, path);
}

const PROFILES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];

fn seccomp(c: &mut Check, security: &Value, path: &str) {
    let Some(profile) = security.get("seccompProfile") else { return };
    let path = join(path, "seccompProfile");
    let kind = text(profile, "/type");
    if kind.is_empty() {
        c.required(&join(&path, "type"), "type is required when seccompProfile is set");
    }
    c.one_of(profile, &path, "type", PROFILES);
    let field = join(&path, "localhostProfile");
    match profile.get("localhostProfile").and_then(Value::as_str) {
        None if kind == "Localhost" => c.required(&field, "must be set when seccomp type is Localhost"),
        Some(_) if kind != "Localhost" => {
            c.invalid(&field, profile.clone(), "can only be set when seccomp type is Localhost");
        }
        Some(place) => volumes::relative(c, &field, place),
        None => {}
    }
}

/// A path's longest, less its end.
const MAX_PROFILE: usize = 4095;

fn app_armor(c: &mut Check, security: &Value, path: &str) {
    let Some(profile) = security.get("appArmorProfile") else { return };
    let path = join(path, "appArmorProfile");
    let kind = text(profile, "/type");
    if kind.is_empty() {
        c.required(&join(&path, "type"), "type is required when appArmorProfile is set");
    }
    c.one_of(profile, &path, "type", PROFILES);
    let field = join(&path, "localhostProfile");
    match (kind, profile.get("localhostProfile").and_then(Value::as_str)) {
        ("Localhost", None | Some("")) => c.required(&field, "must be set when AppArmor type is Localhost"),
        ("Localhost", Some(name)) => {
            if name != name.trim() {
                c.invalid(&field, name, "must not be padded with whitespace");
            }
            if name.len() > MAX_PROFILE {
                c.push(super::FieldError::too_long(&field, MAX_PROFILE));
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            c.invalid(&field, name, "can only be set when AppArmor type is Localhost");
        }
        _ => {}
    }
}

/// Settings of one operating system that may not be given for another.
const NOT_ON_WINDOWS: &[&str] = &[
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "seLinuxChangePolicy",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
];

pub(super) fn operating_system(c: &mut Check, spec: &Value, path: &str) {
    let Some(os) = spec.get("os") else { return };
    let (forbidden, why): (&[&str], &str) = match text(os, "/name") {
        "" => return c.required(&join(path, "os.name"), "cannot be empty"),
        "linux" => (&["windowsOptions"], "windows options cannot be set for a linux pod"),
        "windows" => {
            for name in ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"] {
                if spec.get(name).is_some_and(|v| name == "hostUsers" || v != &Value::Bool(false)) {
                    c.forbidden(&join(path, name), "cannot be set for a windows pod");
                }
            }
            (NOT_ON_WINDOWS, "cannot be set for a windows pod")
        }
        other => return c.not_supported(&join(path, "os"), &Value::from(other), &["linux", "windows"]),
    };
    let mut places = vec![(join(path, "securityContext"), spec.get("securityContext"))];
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        for (at, one) in list(spec, &format!("/{kind}")).iter().enumerate() {
            places.push((join(&element(path, kind, at), "securityContext"), one.get("securityContext")));
        }
    }
    for (path, security) in places {
        for name in forbidden.iter().filter(|name| security.is_some_and(|s| s.get(name).is_some())) {
            c.forbidden(&join(&path, name), why);
        }
    }
}
