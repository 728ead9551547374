//! The files of a container's state directory, shared by the shim (writer) and the daemon (reader).
//!
//! `shim.json` and `config.json` are there before the shim starts; `started.json` appears when the container runs;
//! `exit.json` when it ended or could not be created. A record either is whole or is not there.

use crate::users::Users;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

pub const SHIM_CONFIG: &str = "shim.json";
pub const STARTED: &str = "started.json";
pub const EXIT: &str = "exit.json";
pub const LOCK: &str = "lock";
pub const ATTACH_SOCKET: &str = "attach.sock";
/// In a pod's folder: the process that keeps its shared process namespace, and the namespace.
pub const PAUSE: &str = "pause.json";
pub const PAUSE_NAMESPACE: &str = "pid";

/// What the shim needs to know beside the OCI `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimConfig {
    /// 64 hexadecimal digits, as `kfbox://` container ids show them.
    pub id: String,
    /// libcontainer's own state, on tmpfs.
    pub runtime_root: PathBuf,
    /// Mounted by the shim in a mount namespace of its own, so that nothing is left when it ends. None: `config.json`
    /// names a directory that is used as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,
    /// What a container in a user namespace of its pod's own is to find. None: it has the host's users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Users>,
    pub log_path: PathBuf,
    /// Bytes at which a log file is rotated, and how many files are kept in all.
    pub log_max_bytes: u64,
    pub log_max_files: u32,
    /// The container's cgroup, below each hierarchy's root.
    pub cgroup: String,
    pub oom_score_adj: i32,
    #[serde(default)]
    pub stdin: bool,
    #[serde(default)]
    pub stdin_once: bool,
    #[serde(default)]
    pub tty: bool,
    /// Owner of the standard streams, by the host's id, so that a user other than root may reopen `/dev/stdout`.
    pub uid: u32,
    /// What asks the container to end.
    pub stop_signal: i32,
    /// Where the host keeps the container's `/dev/termination-log`, for reference by the daemon.
    pub termination_log: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overlay {
    /// Topmost layer first.
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    pub target: PathBuf,
}

/// A process, told apart from a later one with the same number by the time it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessRef {
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub start_ticks: u64,
}

impl ProcessRef {
    /// The process with this number now.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold spaces and parentheses: fields count from the last one.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let start_ticks = rest
            .split_ascii_whitespace()
            .nth(19)
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed /proc stat line"))?;
        Ok(Self { pid, start_ticks })
    }

    /// True if it still runs (a zombie does not).
    pub fn runs(&self) -> bool {
        let state = fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .ok()
            .and_then(|stat| stat.rsplit_once(')')?.1.trim_start().chars().next());
        self.exists() && !matches!(state, None | Some('Z' | 'X'))
    }

    /// True if it still exists (a zombie counts).
    pub fn exists(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    pub shim: ProcessRef,
    pub init: ProcessRef,
    /// RFC 3339 with nanoseconds.
    pub started_at: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// 128 plus the signal for a process that a signal ended, as a shell would say.
    pub code: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    #[serde(default)]
    pub oom_killed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    pub finished_at: String,
    /// Set when the container could not be created or started: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// What the shim tells the daemon that started it, one JSON line each on its standard output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Notice {
    Started(Started),
    Exited(Exit),
}

pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let bytes = fs::read(path)?;
    serde_json::from_slice(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Writes a record so that a reader sees it whole or not at all. Returns the open file, for a caller that wants it
/// durable too.
pub fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<fs::File> {
    let text = serde_json::to_vec(value).map_err(io::Error::other)?;
    let temporary = path.with_extension("new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(&text)?;
    fs::rename(&temporary, path)?;
    Ok(file)
}

/// Where the `number`th older file of a log is.
pub fn rotated_log(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_with_its_number() {
        let me = ProcessRef::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.exists());
        assert!(!ProcessRef { start_ticks: me.start_ticks + 1, ..me }.exists());
    }

    #[test]
    fn a_record_comes_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let exit = Exit {
            code: 137,
            signal: Some(9),
            oom_killed: true,
            started_at: None,
            finished_at: "2026-01-01T00:00:00.000000000Z".into(),
            failure: None,
        };
        write(&dir.path().join(EXIT), &exit).unwrap();
        assert_eq!(read::<Exit>(&dir.path().join(EXIT)).unwrap(), exit);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }
}
