//! The Container Device Interface: files by which a machine's drivers say what each of their devices needs in a container.
//!
//! Only who may write to the machine's own folders writes such files, and only a resource's owner (a device plugin, this
//! node's inventory) names their devices: a pod cannot.
//! Upstream: <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>

use super::edits::Edits;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

/// A specification of a machine with many cards is some hundred kilobytes.
const MAX_FILE: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    #[error("{0:?} is not a CDI device's name, which is VENDOR/CLASS=DEVICE")]
    BadName(String),
    #[error("no CDI specification in {folders} has the device {name}{problems}")]
    Unknown { name: String, folders: String, problems: String },
    #[error("the CDI device {name} is in {first} and in {second}", first = first.display(), second = second.display())]
    Twice { name: String, first: PathBuf, second: PathBuf },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Specification {
    #[serde(rename = "cdiVersion")]
    version: String,
    /// `VENDOR/CLASS`.
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

/// What the named devices need, in order. A specification's common part comes once, before its devices'. Blocking.
///
/// The folders are given from the least to the most important; a device in a later one hides that of an earlier one.
pub fn resolve(folders: &[PathBuf], names: &[String]) -> Result<Vec<Edits>, CdiError> {
    let (mut found, mut problems) = (BTreeMap::new(), Vec::new());
    let mut specifications = Vec::new();
    for folder in folders {
        let mut here: BTreeMap<String, (usize, PathBuf)> = BTreeMap::new();
        let mut paths: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        paths.sort();
        for path in paths {
            let specification = match read(&path) {
                Ok(Some(specification)) => specification,
                Ok(None) => continue,
                Err(error) => {
                    problems.push(format!("; {}: {error}", path.display()));
                    continue;
                }
            };
            for device in &specification.devices {
                let name = format!("{}={}", specification.kind, device.name);
                let here_already = here.insert(name.clone(), (specifications.len(), path.clone()));
                if let Some((_, first)) = here_already
                    && names.contains(&name)
                {
                    return Err(CdiError::Twice { name, first, second: path });
                }
            }
            specifications.push(specification);
        }
        found.extend(here);
    }
    let mut edits = Vec::new();
    let mut common = BTreeSet::new();
    for name in names {
        if !is_name(name) {
            return Err(CdiError::BadName(name.clone()));
        }
        let unknown = || CdiError::Unknown {
            name: name.clone(),
            folders: folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
            problems: problems.concat(),
        };
        let (index, _) = found.get(name).ok_or_else(unknown)?;
        let specification = specifications.get(*index).ok_or_else(unknown)?;
        if common.insert(*index) {
            edits.push(specification.container_edits.clone());
        }
        let device = specification.devices.iter().find(|d| name.ends_with(&format!("={}", d.name)));
        edits.push(device.ok_or_else(unknown)?.container_edits.clone());
    }
    Ok(edits)
}

/// Whether some specification has the device. Blocking.
pub fn has(folders: &[PathBuf], name: &str) -> bool {
    resolve(folders, &[name.to_owned()]).is_ok()
}

fn read(path: &Path) -> Result<Option<Specification>, io::Error> {
    let bad = |error: &dyn std::error::Error| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let yaml = match path.extension().and_then(|e| e.to_str()) {
        Some("json") => false,
        Some("yaml") => true,
        _ => return Ok(None),
    };
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than 16 MiB"));
    }
    let text = fs::read_to_string(path)?;
    let specification: Specification = if yaml {
        serde_yaml::from_str(&text).map_err(|error| bad(&error))?
    } else {
        serde_json::from_str(&text).map_err(|error| bad(&error))?
    };
    let names = specification.devices.iter().map(|d| format!("{}={}", specification.kind, d.name));
    for name in names {
        if !is_name(&name) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name:?} is not a device's name")));
        }
    }
    if !specification.version.starts_with("0.") && !specification.version.starts_with("1.") {
        let why = format!("its version {} is not known", specification.version);
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(Some(specification))
}

fn is_name(name: &str) -> bool {
    let word = |text: &str, more: &[char]| {
        let inner = |c: char| c.is_ascii_alphanumeric() || more.contains(&c);
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(inner)
    };
    let Some((kind, device)) = name.split_once('=') else { return false };
    let Some((vendor, class)) = kind.split_once('/') else { return false };
    word(vendor, &['_', '-', '.']) && word(class, &['_', '-']) && word(device, &['_', '-', '.', ':'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARDS: &str = r#"{
        "cdiVersion": "0.6.0", "kind": "vendor.example/card",
        "devices": [
            { "name": "0", "containerEdits": { "deviceNodes": [{ "path": "/dev/null" }] } },
            { "name": "all", "containerEdits": { "env": ["CARDS=all"] } }
        ],
        "containerEdits": { "env": ["DRIVER=5"] }
    }"#;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn devices_are_found_by_name_and_the_nearer_folder_wins() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("etc"), dir.path().join("run"), dir.path().join("missing")];
        for folder in &folders[..2] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(folders[0].join("cards.json"), CARDS).unwrap();
        fs::write(folders[0].join("readme.txt"), "not one").unwrap();
        let both = resolve(&folders, &names(&["vendor.example/card=0", "vendor.example/card=all"])).unwrap();
        assert_eq!(both.len(), 3, "what is common comes once");
        assert_eq!(both[0].env, ["DRIVER=5"]);
        assert_eq!(both[1].device_nodes[0].path, Path::new("/dev/null"));
        let yaml = "cdiVersion: 0.5.0\nkind: vendor.example/card\ndevices:\n- name: all\n  containerEdits:\n    env: [CARDS=new]\n";
        fs::write(folders[1].join("cards.yaml"), yaml).unwrap();
        let now = resolve(&folders, &names(&["vendor.example/card=all"])).unwrap();
        assert_eq!(now[1].env, ["CARDS=new"]);
        // Two of one folder contradict each other.
        fs::write(folders[1].join("other.yaml"), yaml).unwrap();
        assert!(matches!(resolve(&folders, &names(&["vendor.example/card=all"])), Err(CdiError::Twice { .. })));
        assert!(has(&folders, "vendor.example/card=0"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().to_owned()];
        fs::write(dir.path().join("broken.json"), "{").unwrap();
        fs::write(dir.path().join("evil.json"), CARDS.replace("\"0\"", "\"../0\"")).unwrap();
        for name in ["", "vendor", "vendor/class", "vendor/class=", "vendor/../x=1", "v/c=a b"] {
            assert!(matches!(resolve(&folders, &names(&[name])), Err(CdiError::BadName(_))), "{name}");
        }
        let error = resolve(&folders, &names(&["vendor.example/card=9"])).unwrap_err().to_string();
        assert!(error.contains("broken.json") && error.contains("evil.json") && error.contains("../0"), "{error}");
    }
}
