//! What a device changes in a container's specification. Pure, but for a look at the host's device nodes.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Of a device plugin, or of a CDI specification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Edits {
    /// `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_nodes: Vec<DeviceNode>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    #[serde(rename = "additionalGids", skip_serializing_if = "Vec::is_empty")]
    pub additional_groups: Vec<u32>,
    /// Of the processor's caches; this runtime leaves them as they are.
    #[serde(skip_serializing)]
    pub intel_rdt: Option<Value>,
    /// Where a container's linker must look too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub library_dirs: Vec<PathBuf>,
    /// CDI devices that a plugin names in place of saying what they need.
    #[serde(rename = "cdiDevices", skip_serializing_if = "Vec::is_empty")]
    pub cdi: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeviceNode {
    /// In the container.
    pub path: PathBuf,
    /// On the host; the same where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<PathBuf>,
    /// `c`, `b`, `u` or `p`. What is not said is the host's.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Mount {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Hook {
    pub hook_name: String,
    pub path: PathBuf,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

#[derive(Debug, thiserror::Error)]
pub enum EditError {
    #[error("the device {path}: {source}", path = path.display())]
    Node {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0} is not a device node of the host")]
    NotADevice(PathBuf),
    #[error("{0:?} is no place for a device: it must lie in /dev of the container")]
    Place(PathBuf),
    #[error("{0:?} is not the name of a hook")]
    Hook(String),
}

const HOOKS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

impl Edits {
    /// Changes a specification. Later edits win over earlier ones, and over the image and the pod.
    pub fn apply(&self, spec: &mut Value) -> Result<(), EditError> {
        for pair in &self.env {
            let name = pair.split('=').next().unwrap_or_default();
            let env = list(spec, "/process", "env");
            env.retain(|known| known.as_str().is_none_or(|known| known.split('=').next() != Some(name)));
            env.push(json!(pair));
        }
        for folder in &self.library_dirs {
            look_in(list(spec, "/process", "env"), &folder.to_string_lossy());
        }
        for node in &self.device_nodes {
            node.apply(spec)?;
        }
        for mount in &self.mounts {
            let mounts = list(spec, "", "mounts");
            mounts.retain(|known| known["destination"] != json!(mount.container_path));
            let mut options = mount.options.clone();
            if !options.iter().any(|o| o == "bind" || o == "rbind") {
                options.push("rbind".into());
            }
            mounts.push(json!({
                "destination": mount.container_path, "source": mount.host_path, "options": options,
                "type": mount.kind.as_deref().filter(|kind| *kind != "none").unwrap_or("bind"),
            }));
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) {
                return Err(EditError::Hook(hook.hook_name.clone()));
            }
            let mut value = json!({ "path": hook.path, "args": hook.args, "env": hook.env });
            if let Some(timeout) = hook.timeout {
                value["timeout"] = json!(timeout);
            }
            list(spec, "/hooks", &hook.hook_name).push(value);
        }
        for group in &self.additional_groups {
            let groups = list(spec, "/process/user", "additionalGids");
            if !groups.contains(&json!(group)) {
                groups.push(json!(group));
            }
        }
        Ok(())
    }
}

impl DeviceNode {
    fn apply(&self, spec: &mut Value) -> Result<(), EditError> {
        if !self.path.starts_with("/dev") || self.path.components().any(|c| c == std::path::Component::ParentDir) {
            return Err(EditError::Place(self.path.clone()));
        }
        let host = self.host_path.as_deref().unwrap_or(&self.path);
        let (kind, major, minor) = match (&self.kind, self.major, self.minor) {
            (Some(kind), Some(major), Some(minor)) => (kind.clone(), major, minor),
            _ => number(host)?,
        };
        let mut device = json!({ "path": self.path, "type": kind, "major": major, "minor": minor });
        device["fileMode"] = json!(self.file_mode.unwrap_or_else(|| mode(host)));
        device["uid"] = json!(self.uid.unwrap_or(0));
        device["gid"] = json!(self.gid.unwrap_or(0));
        let devices = list(spec, "/linux", "devices");
        devices.retain(|known| known["path"] != device["path"]);
        devices.push(device);
        list(spec, "/linux/resources", "devices").push(json!({
            "allow": true, "type": if kind == "u" { "c" } else { kind.as_str() }, "major": major, "minor": minor,
            "access": self.permissions.as_deref().unwrap_or("rwm"),
        }));
        Ok(())
    }
}

/// Adds a folder to the linker's, after those that the image names.
fn look_in(env: &mut Vec<Value>, folder: &str) {
    const NAME: &str = "LD_LIBRARY_PATH=";
    let known = env.iter_mut().find(|pair| pair.as_str().is_some_and(|pair| pair.starts_with(NAME)));
    match known {
        Some(pair) => {
            let text = pair.as_str().unwrap_or_default().to_owned();
            if !text[NAME.len()..].split(':').any(|known| known == folder) {
                let separator = if text.len() > NAME.len() { ":" } else { "" };
                *pair = json!(format!("{text}{separator}{folder}"));
            }
        }
        None => env.push(json!(format!("{NAME}{folder}"))),
    }
}

fn number(host: &Path) -> Result<(String, u64, u64), EditError> {
    let meta = fs::metadata(host).map_err(|source| EditError::Node { path: host.into(), source })?;
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return Err(EditError::NotADevice(host.into())),
    };
    Ok((kind.into(), nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev())))
}

/// Who may open it is the host's to say.
fn mode(host: &Path) -> u32 {
    fs::metadata(host).map_or(0o660, |meta| meta.mode() & 0o777)
}

/// A list in the specification, made where it is missing.
fn list<'a>(spec: &'a mut Value, parent: &str, name: &str) -> &'a mut Vec<Value> {
    let mut place = spec;
    for part in parent.split('/').filter(|part| !part.is_empty()) {
        place = &mut place[part];
    }
    let place = &mut place[name];
    if !place.is_array() {
        *place = json!([]);
    }
    match place {
        Value::Array(list) => list,
        _ => unreachable!("it was made a list above"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_seen_allowed_and_told_about() {
        let mut spec = json!({
            "process": { "env": ["A=1", "B=2"], "user": { "additionalGids": [5] } },
            "mounts": [{ "destination": "/lib/driver.so", "type": "bind", "source": "/old" }],
            "linux": { "resources": { "devices": [{ "allow": false, "access": "rwm" }] } },
        });
        let edits: Edits = serde_json::from_value(json!({
            "env": ["B=3", "C=4"],
            "deviceNodes": [{ "path": "/dev/accelerator", "hostPath": "/dev/null", "permissions": "rw" }],
            "mounts": [{ "hostPath": "/usr/lib/driver.so", "containerPath": "/lib/driver.so", "options": ["ro", "nosuid"] }],
            "hooks": [{ "hookName": "createContainer", "path": "/usr/bin/hook", "args": ["hook", "ldconfig"] }],
            "additionalGids": [5, 44],
        }))
        .unwrap();
        edits.apply(&mut spec).unwrap();
        assert_eq!(spec["process"]["env"], json!(["A=1", "B=3", "C=4"]));
        let device = &spec["linux"]["devices"][0];
        assert_eq!(
            (device["path"].as_str(), &device["major"], &device["minor"]),
            (Some("/dev/accelerator"), &json!(1), &json!(3))
        );
        let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
        assert_eq!(rules[1], json!({ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw" }));
        assert_eq!(spec["mounts"].as_array().unwrap().len(), 1);
        assert_eq!(spec["mounts"][0]["options"], json!(["ro", "nosuid", "rbind"]));
        assert_eq!(spec["hooks"]["createContainer"][0]["path"], "/usr/bin/hook");
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([5, 44]));
    }

    #[test]
    fn the_linker_looks_where_the_image_says_first() {
        let after = |env: Value| {
            let mut spec = json!({ "process": { "env": env } });
            let edits = Edits { library_dirs: vec!["/driver".into()], ..Edits::default() };
            edits.apply(&mut spec).unwrap();
            edits.apply(&mut spec).unwrap();
            spec["process"]["env"].clone()
        };
        assert_eq!(after(json!(["A=1"])), json!(["A=1", "LD_LIBRARY_PATH=/driver"]));
        assert_eq!(after(json!(["LD_LIBRARY_PATH="])), json!(["LD_LIBRARY_PATH=/driver"]));
        assert_eq!(after(json!(["LD_LIBRARY_PATH=/own"])), json!(["LD_LIBRARY_PATH=/own:/driver"]));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let node = |path: &str, host: &str| {
            let node = DeviceNode { path: path.into(), host_path: Some(host.into()), ..DeviceNode::default() };
            Edits { device_nodes: vec![node], ..Edits::default() }.apply(&mut json!({ "linux": { "resources": {} } }))
        };
        assert!(node("/dev/x", "/dev/zero").is_ok());
        assert!(matches!(node("/etc/x", "/dev/zero"), Err(EditError::Place(_))));
        assert!(matches!(node("/dev/../etc/x", "/dev/zero"), Err(EditError::Place(_))));
        assert!(matches!(node("/dev/x", "/etc/passwd"), Err(EditError::NotADevice(_))));
        assert!(matches!(node("/dev/x", "/dev/no-such"), Err(EditError::Node { .. })));
        let hook = Hook { hook_name: "sometime".into(), ..Hook::default() };
        assert!(Edits { hooks: vec![hook], ..Edits::default() }.apply(&mut json!({})).is_err());
    }
}
