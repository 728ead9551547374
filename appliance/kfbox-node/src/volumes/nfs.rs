//! Shares of NFS servers, in pods and in PersistentVolumes.
//!
//! `mount.nfs` does the mounting, as it does for the kubelet: it finds the version that both sides speak, looks up names,
//! starts what version 3 needs for locks; and a process can be ended while the kernel waits for a server that does not
//! answer, which a thread of the daemon cannot. Guarantees: a share that is mounted is never looked into here (its server
//! may be silent): whether it is mounted the kernel's table says; what is unmounted goes without asking the server.
//! Assumption: none of a share's files is anybody's on this machine, so `fsGroup` changes none, as upstream.
//! Upstream: <https://kubernetes.io/docs/concepts/storage/volumes/#nfs>, nfs(5), mount.nfs(8).

use super::VolumeError;
use k8s_openapi::api::core::v1::{NFSVolumeSource, Pod};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

/// How shares are mounted.
#[derive(Debug, Clone)]
pub struct NfsConfig {
    /// `mount.nfs`, the first of these that is there.
    pub programs: Vec<PathBuf>,
    /// After this a mount that goes on is ended; it is tried again later.
    pub limit: Duration,
}

impl Default for NfsConfig {
    fn default() -> Self {
        Self {
            // Not by the path variable: services are often started without the administrator's folders.
            programs: ["/usr/sbin/mount.nfs", "/sbin/mount.nfs"].map(PathBuf::from).into(),
            limit: Duration::from_secs(60),
        }
    }
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub server: String,
    pub path: String,
    pub read_only: bool,
    /// Of the PersistentVolume; a pod's own volume has none.
    pub options: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum NfsError {
    #[error("{0:?} is neither a host's name nor an address")]
    Server(String),
    #[error("the path {0:?} must be absolute, without line breaks")]
    Path(String),
    #[error("the mount option {0:?} must not hold commas, blanks or line breaks")]
    Option(String),
    #[error(
        "this machine has no NFS client programs; next: install them (Debian and Ubuntu: apt-get install nfs-common; Fedora: \
         dnf install nfs-utils)"
    )]
    NoProgram,
    #[error("mounting {share} failed: {output}; next: {next}", next = next(output))]
    Refused { share: String, output: String },
    #[error(
        "mounting {share} did not come to an end within {seconds} seconds; next: see whether the server is up and lets this \
         machine in (`showmount -e SERVER`, port 2049 in its firewall); it is tried again"
    )]
    Silent { share: String, seconds: u64 },
    #[error("{path}: {source}", path = path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What to do about what `mount.nfs` said.
fn next(output: &str) -> &'static str {
    let text = output.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["no such device", "unknown filesystem", "not supported by kernel", "not configured"]) {
        "this kernel has no NFS client: load it (`modprobe nfs`), or boot a kernel with CONFIG_NFS_FS"
    } else if says(&["access denied", "operation not permitted", "permission denied"]) {
        "let this machine's address in among the server's exports (`exportfs -v` there)"
    } else if says(&["no such file", "does not exist", "reason given by server"]) {
        "see which folders the server exports (`showmount -e SERVER`)"
    } else if says(&["failed to resolve", "name or service not known", "temporary failure in name"]) {
        "give a name that this machine can look up (not the cluster's DNS), or the server's address"
    } else if says(&["bad option", "incorrect mount option", "invalid argument"]) {
        "correct the mountOptions of the PersistentVolume; nfs(5) lists them"
    } else {
        "see whether the server is up and reachable from this machine (port 2049); it is tried again"
    }
}

impl Share {
    pub fn of(source: &NFSVolumeSource, options: Option<&Vec<String>>) -> Self {
        Self {
            server: source.server.clone(),
            path: source.path.clone(),
            read_only: source.read_only.unwrap_or(false),
            options: options.cloned().unwrap_or_default(),
        }
    }

    /// `SERVER:PATH`. Both come from people, and the program takes what begins with a dash for an option.
    fn source(&self) -> Result<String, NfsError> {
        let server = self.server.as_str();
        let is_address = server.parse::<std::net::IpAddr>().is_ok();
        let is_name = !server.is_empty()
            && server.len() <= 253
            && !server.starts_with(['-', '.'])
            && server.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        if !is_address && !is_name {
            return Err(NfsError::Server(self.server.clone()));
        }
        if !self.path.starts_with('/') || self.path.chars().any(char::is_control) {
            return Err(NfsError::Path(self.path.clone()));
        }
        let path = &self.path;
        Ok(if server.contains(':') { format!("[{server}]:{path}") } else { format!("{server}:{path}") })
    }

    /// In the order that upstream joins them: the volume's own last, each once.
    fn options(&self) -> Result<String, NfsError> {
        let mut all: Vec<&str> = Vec::new();
        for option in self.options.iter().map(|option| option.trim()).filter(|option| !option.is_empty()) {
            if option.contains(|c: char| c == ',' || c.is_whitespace() || c.is_control()) {
                return Err(NfsError::Option(option.to_owned()));
            }
            if !all.contains(&option) {
                all.push(option);
            }
        }
        if self.read_only && !all.contains(&"ro") {
            all.push("ro");
        }
        // The program's own tries would hide the reason for two minutes; the pod is tried again anyway.
        if !all.iter().any(|option| option.starts_with("retry=")) {
            all.push("retry=0");
        }
        Ok(all.join(","))
    }
}

/// The shares of a pod's own volumes, by volume.
pub fn of_pod(pod: &Pod) -> BTreeMap<String, Share> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter_map(|v| Some((v.name.clone(), Share::of(v.nfs.as_ref()?, None)))).collect()
}

/// Mounts what is not mounted yet below the folder. Returns where each is, by volume.
pub async fn mount_all(
    config: &NfsConfig,
    folder: &Path,
    shares: BTreeMap<String, Share>,
) -> Result<BTreeMap<String, (PathBuf, bool)>, VolumeError> {
    let mounts = shares.into_iter().map(|(volume, share)| async move {
        let target = folder.join(&volume);
        match mount(config, &share, &target).await {
            Ok(()) => Ok((volume, (target, share.read_only))),
            Err(source) => Err(VolumeError::Nfs { volume, source }),
        }
    });
    futures::future::try_join_all(mounts).await.map(BTreeMap::from_iter)
}

async fn mount(config: &NfsConfig, share: &Share, target: &Path) -> Result<(), NfsError> {
    let (source, options) = (share.source()?, share.options()?);
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| NfsError::Io { path, source }
    };
    if is_mounted(target).map_err(at(target))? {
        return Ok(());
    }
    let program = config.programs.iter().find(|program| program.is_file()).ok_or(NfsError::NoProgram)?;
    fs::create_dir_all(target).map_err(at(target))?;
    let mut command = tokio::process::Command::new(program);
    command.arg(&source).arg(target).arg("-o").arg(options);
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let running = command.spawn().map_err(at(program))?.wait_with_output();
    let Ok(output) = tokio::time::timeout(config.limit, running).await else {
        return Err(NfsError::Silent { share: source, seconds: config.limit.as_secs() });
    };
    let output = output.map_err(at(program))?;
    if output.status.success() {
        tracing::info!(share = %source, target = %target.display(), "mounted");
        return Ok(());
    }
    let said: Vec<String> =
        [&output.stderr, &output.stdout].map(|said| String::from_utf8_lossy(said).trim().to_owned()).into();
    let said = said.into_iter().find(|said| !said.is_empty()).unwrap_or_else(|| output.status.to_string());
    let output: String = said.replace('\n', "; ").chars().take(500).collect();
    Err(NfsError::Refused { share: source, output })
}

/// By the kernel's table, which asks no server.
fn is_mounted(target: &Path) -> io::Result<bool> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|found| Path::new(&found.replace("\\040", " ")) == target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(server: &str, path: &str, options: &[&str]) -> Share {
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        Share { server: server.into(), path: path.into(), read_only: false, options }
    }

    #[test]
    fn sources_and_options_are_written_as_upstream_does() {
        assert_eq!(share("lab.example", "/export/a b", &[]).source().unwrap(), "lab.example:/export/a b");
        assert_eq!(share("2001:db8::1", "/", &[]).source().unwrap(), "[2001:db8::1]:/");
        for bad in ["", "-o", "a b", "a/b", "a:b", "a\n", "."] {
            assert!(matches!(share(bad, "/", &[]).source(), Err(NfsError::Server(_))), "{bad}");
        }
        for bad in ["", "export", "/a\nb"] {
            assert!(matches!(share("a", bad, &[]).source(), Err(NfsError::Path(_))), "{bad}");
        }
        assert_eq!(share("a", "/", &[]).options().unwrap(), "retry=0");
        let read_only = Share { read_only: true, ..share("a", "/", &["nfsvers=4.1", "hard", "hard", "retry=2"]) };
        assert_eq!(read_only.options().unwrap(), "nfsvers=4.1,hard,retry=2,ro");
        for bad in ["ro,suid", "a b", "a\u{0}"] {
            assert!(matches!(share("a", "/", &[bad]).options(), Err(NfsError::Option(_))), "{bad}");
        }
    }

    #[test]
    fn what_the_program_says_leads_to_a_next_step() {
        for (output, wanted) in [
            ("mount.nfs: No such device", "modprobe nfs"),
            ("mount.nfs: access denied by server while mounting a:/b", "exports"),
            ("mount.nfs: mounting a:/b failed, reason given by server: No such file or directory", "showmount"),
            ("mount.nfs: Failed to resolve server nowhere: Name or service not known", "look up"),
            ("mount.nfs: an incorrect mount option was specified", "mountOptions"),
            ("mount.nfs: Connection timed out", "port 2049"),
        ] {
            assert!(next(output).contains(wanted), "{output}");
        }
    }
}
