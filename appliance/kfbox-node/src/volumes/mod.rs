//! A pod's volumes on the host: where each is, how it is filled, and its removal.
//!
//! Layout: `DATA/pods/UID/volumes/NAME` on disk, `RUN/pods/UID/volumes/NAME` in memory (secrets, tokens, `Memory`) and for
//! what is mounted there (images, shares of NFS servers), `RUN/pods/UID/subpaths/CONTAINER/INDEX` for parts of volumes.
//! Upstream: <https://kubernetes.io/docs/concepts/storage/volumes/>

pub mod atomic;
pub mod content;
pub mod nfs;
pub mod subpath;

use crate::{
    oci::Bind,
    pod::{downward::Surroundings, env::Variables, objects::Objects},
    quantity,
};
use content::ContentError;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Container, PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount, Volume},
};
use kube::{Api, Client, api::PostParams};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};
use subpath::SubPathError;

/// A token's life where the pod does not say: as upstream.
const TOKEN_SECONDS: i64 = 3600;
/// A token is renewed when this part of its life is over.
const RENEW_AT: f64 = 0.8;

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
    Content {
        volume: String,
        #[source]
        source: ContentError,
    },
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {path}: {source}", path = path.display())]
    File {
        volume: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : hostPath type check failed: {path} is not {wanted}")]
    HostPathType { volume: String, path: String, wanted: &'static str },
    #[error("persistentvolumeclaim \"{0}\" not found")]
    NoClaim(String),
    #[error("persistentvolumeclaim \"{0}\" is not bound")]
    Unbound(String),
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {reason}")]
    Unsupported { volume: String, reason: String },
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : failed to fetch token: {source}")]
    Token {
        volume: String,
        #[source]
        source: kube::Error,
    },
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
    Nfs {
        volume: String,
        #[source]
        source: nfs::NfsError,
    },
    #[error("cannot read volume objects: {0}")]
    Api(#[from] kube::Error),
    #[error("container volume mount {0} names no volume of the pod")]
    NoVolume(String),
    #[error("failed to prepare subPath for volumeMount \"{volume}\": {source}")]
    SubPath {
        volume: String,
        #[source]
        source: SubPathError,
    },
}

/// Where a volume is on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub path: PathBuf,
    pub read_only: bool,
}

pub type ReadyVolumes = BTreeMap<String, Ready>;

/// A pod's folders.
#[derive(Debug, Clone)]
pub struct PodDirs {
    /// On disk.
    pub data: PathBuf,
    /// In memory.
    pub run: PathBuf,
}

impl PodDirs {
    pub fn volume(&self, volume: &Volume) -> PathBuf {
        let base = if content::is_secret(volume) || is_memory(volume) { &self.run } else { &self.data };
        base.join("volumes").join(&volume.name)
    }
}

fn is_memory(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().and_then(|e| e.medium.as_deref()).is_some_and(|medium| medium == "Memory")
}

/// Tokens issued for a pod's volumes, by volume and path, and when the first must be renewed.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    issued: BTreeMap<String, BTreeMap<String, String>>,
    pub renew_after: Option<Duration>,
}

/// Asks for every token that the pod's volumes project.
pub async fn issue_tokens(client: &Client, pod: &Pod) -> Result<Tokens, VolumeError> {
    let mut all = Tokens::default();
    let Some(spec) = &pod.spec else { return Ok(all) };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    for volume in spec.volumes.iter().flatten() {
        for projection in content::tokens(volume) {
            let seconds = projection.expiration_seconds.unwrap_or(TOKEN_SECONDS);
            let request = TokenRequest {
                spec: Some(TokenRequestSpec {
                    audiences: Some(projection.audience.iter().filter(|a| !a.is_empty()).cloned().collect()),
                    expiration_seconds: Some(seconds),
                    bound_object_ref: Some(BoundObjectReference {
                        api_version: Some("v1".into()),
                        kind: Some("Pod".into()),
                        name: pod.metadata.name.clone(),
                        uid: pod.metadata.uid.clone(),
                    }),
                }),
                ..TokenRequest::default()
            };
            let answer = accounts
                .create_token_request(account, &PostParams::default(), &request)
                .await
                .map_err(|source| VolumeError::Token { volume: volume.name.clone(), source })?;
            if let Some(token) = answer.status.and_then(|status| status.token) {
                all.issued.entry(volume.name.clone()).or_default().insert(projection.path.clone(), token);
            }
            let life = Duration::from_secs(u64::try_from(seconds).unwrap_or(600)).mul_f64(RENEW_AT);
            all.renew_after = Some(all.renew_after.map_or(life, |other| other.min(life)));
        }
    }
    Ok(all)
}

/// Fills the volumes that come from objects. Returns whether anything changed. Blocking.
pub fn fill(
    pod: &Pod,
    dirs: &PodDirs,
    around: &Surroundings,
    objects: &Objects,
    tokens: &Tokens,
) -> Result<bool, VolumeError> {
    let mut changed = false;
    let group = fs_group(pod);
    let none = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let issued = tokens.issued.get(&volume.name).unwrap_or(&none);
        let payload = content::payload(pod, volume, around, objects, issued)
            .map_err(|source| VolumeError::Content { volume: volume.name.clone(), source })?;
        if let Some(payload) = payload {
            let path = dirs.volume(volume);
            changed |= atomic::write(&path, &payload, group).map_err(|source| VolumeError::File {
                volume: volume.name.clone(),
                path,
                source,
            })?;
        }
    }
    Ok(changed)
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// What is behind the pod's claims, by volume.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Claimed {
    /// Folders of the host.
    pub folders: BTreeMap<String, PathBuf>,
    pub shares: BTreeMap<String, nfs::Share>,
}

/// What the cluster says about the pod's claims.
pub async fn resolve_claims(client: &Client, pod: &Pod) -> Result<Claimed, VolumeError> {
    let mut found = Claimed::default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let Some(claim_name) = claim_name(pod_name, volume) else { continue };
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
        let claim = claims.get_opt(&claim_name).await?.ok_or_else(|| VolumeError::NoClaim(claim_name.clone()))?;
        let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let name = claim.spec.and_then(|s| s.volume_name).filter(|name| bound && !name.is_empty());
        let name = name.ok_or_else(|| VolumeError::Unbound(claim_name.clone()))?;
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let spec = volumes.get_opt(&name).await?.and_then(|v| v.spec);
        if let Some((source, spec)) = spec.as_ref().and_then(|s| Some((s.nfs.as_ref()?, s))) {
            let share = nfs::Share::of(source, spec.mount_options.as_ref());
            found.shares.insert(volume.name.clone(), share);
            continue;
        }
        let path = spec.and_then(|s| s.host_path.map(|h| h.path).or_else(|| s.local.map(|l| l.path)));
        let path = path.ok_or_else(|| VolumeError::Unsupported {
            volume: volume.name.clone(),
            reason: format!("PersistentVolume {name} is neither hostPath, local nor nfs"),
        })?;
        found.folders.insert(volume.name.clone(), path.into());
    }
    Ok(found)
}

/// The claim that a volume uses; an ephemeral one is named after its pod.
pub fn claim_name(pod: &str, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{pod}-{}", volume.name)),
        (None, None) => None,
    }
}

/// What volumes are made of that others brought here, by volume.
#[derive(Debug, Default)]
pub struct Brought {
    /// Folders of the host, of claims.
    pub claims: BTreeMap<String, PathBuf>,
    /// Layers.
    pub images: BTreeMap<String, Vec<PathBuf>>,
    /// Where shares are mounted, and whether for reading only.
    pub shares: BTreeMap<String, (PathBuf, bool)>,
}

/// Makes every volume ready. Blocking.
pub fn prepare(pod: &Pod, dirs: &PodDirs, brought: &Brought) -> Result<ReadyVolumes, VolumeError> {
    let mut all = ReadyVolumes::new();
    let group = fs_group(pod);
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let at = |path: &Path| {
            let (volume, path) = (volume.name.clone(), path.to_path_buf());
            move |source| VolumeError::File { volume, path, source }
        };
        let own = dirs.volume(volume);
        let read_only_claim = volume.persistent_volume_claim.as_ref().and_then(|c| c.read_only).unwrap_or(false);
        let (path, read_only) = if content::is_content(volume) {
            // Filled by `fill`, whose files a container may not change.
            fs::create_dir_all(&own).map_err(at(&own))?;
            (own, true)
        } else if let Some(source) = &volume.empty_dir {
            let fresh = !own.exists();
            fs::create_dir_all(&own).map_err(at(&own))?;
            if is_memory(volume) && !is_mount_point(&own) {
                let limit = source.size_limit.as_ref().and_then(quantity::value).filter(|n| *n > 0);
                let options = limit.map_or("mode=0777".to_owned(), |bytes| format!("mode=0777,size={bytes}"));
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
                mount(Some("tmpfs"), &own, Some("tmpfs"), flags, Some(options.as_str()))
                    .map_err(|e| at(&own)(e.into()))?;
            }
            if fresh {
                fs::set_permissions(&own, fs::Permissions::from_mode(0o777)).map_err(at(&own))?;
                own_by_group(&own, group).map_err(at(&own))?;
            }
            (own, false)
        } else if let Some(source) = &volume.host_path {
            host_path(&volume.name, &source.path, source.type_.as_deref().unwrap_or_default())?;
            (PathBuf::from(&source.path), false)
        } else if let Some((path, read_only)) = brought.shares.get(&volume.name) {
            // Not looked into: its server may be silent.
            (path.clone(), *read_only || read_only_claim)
        } else if let Some(path) = brought.claims.get(&volume.name) {
            fs::create_dir_all(path).map_err(at(path))?;
            own_by_group(path, group).map_err(at(path))?;
            (path.clone(), read_only_claim)
        } else if let Some(layers) = brought.images.get(&volume.name) {
            (image_volume(&dirs.run.join("volumes").join(&volume.name), layers).map_err(at(&own))?, true)
        } else {
            return Err(VolumeError::Unsupported {
                volume: volume.name.clone(),
                reason: "this kind of volume is not supported by this node".into(),
            });
        };
        all.insert(volume.name.clone(), Ready { path, read_only });
    }
    Ok(all)
}

/// One layer is used in place; more are joined by a read-only overlay.
fn image_volume(target: &Path, layers: &[PathBuf]) -> io::Result<PathBuf> {
    if let [single] = layers {
        return Ok(single.clone());
    }
    if is_mount_point(target) {
        return Ok(target.into());
    }
    fs::create_dir_all(target)?;
    let lower: Vec<String> = layers.iter().map(|layer| layer.display().to_string()).collect();
    let options = format!("lowerdir={}", lower.join(":"));
    mount(Some("overlay"), target, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str()))?;
    Ok(target.into())
}

fn host_path(volume: &str, path: &str, kind: &str) -> Result<(), VolumeError> {
    let file = |source| VolumeError::File { volume: volume.into(), path: path.into(), source };
    let wrong = |wanted| VolumeError::HostPathType { volume: volume.into(), path: path.into(), wanted };
    let found = fs::metadata(path);
    let is = |test: fn(&fs::FileType) -> bool| found.as_ref().is_ok_and(|m| test(&m.file_type()));
    match kind {
        "" => {
            // As container runtimes do: what is missing becomes a folder.
            if found.is_err() {
                fs::create_dir_all(path).map_err(file)?;
            }
            Ok(())
        }
        "DirectoryOrCreate" if found.is_err() => fs::create_dir_all(path).map_err(file),
        "Directory" | "DirectoryOrCreate" if is(fs::FileType::is_dir) => Ok(()),
        "Directory" | "DirectoryOrCreate" => Err(wrong("a directory")),
        "FileOrCreate" if found.is_err() => fs::File::create(path).map(drop).map_err(file),
        "File" | "FileOrCreate" if is(fs::FileType::is_file) => Ok(()),
        "File" | "FileOrCreate" => Err(wrong("a file")),
        "Socket" if is(fs::FileType::is_socket) => Ok(()),
        "Socket" => Err(wrong("a socket file")),
        "CharDevice" if is(fs::FileType::is_char_device) => Ok(()),
        "CharDevice" => Err(wrong("a character device")),
        "BlockDevice" if is(fs::FileType::is_block_device) => Ok(()),
        "BlockDevice" => Err(wrong("a block device")),
        _ => Err(wrong("of a known type")),
    }
}

/// Gives a volume to the pod's group, unless it has it already.
fn own_by_group(path: &Path, group: Option<u32>) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let Some(group) = group else { return Ok(()) };
    let root = fs::symlink_metadata(path)?;
    if root.gid() == group && root.mode() & 0o2070 == 0o2070 {
        return Ok(());
    }
    own_tree(path, group)
}

fn own_tree(path: &Path, group: u32) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    chown(path, None, Some(group))?;
    let mode = meta.permissions().mode();
    let mode = if meta.is_dir() { mode | 0o2070 } else { mode | 0o060 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            own_tree(&entry?.path(), group)?;
        }
    }
    Ok(())
}

/// The container's volume mounts as bind mounts. Blocking.
pub fn binds(
    container: &Container,
    ready: &ReadyVolumes,
    dirs: &PodDirs,
    env: &Variables,
) -> Result<Vec<Bind>, VolumeError> {
    let mut all = Vec::new();
    for (index, wanted) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = ready.get(&wanted.name).ok_or_else(|| VolumeError::NoVolume(wanted.name.clone()))?;
        let sub = match (&wanted.sub_path, &wanted.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => Some(path.clone()),
            (_, Some(expression)) if !expression.is_empty() => Some(env.expand(expression)),
            _ => None,
        };
        let source = match sub {
            Some(sub) => {
                let target = dirs.run.join("subpaths").join(&container.name).join(index.to_string());
                let failed = |source| VolumeError::SubPath { volume: wanted.name.clone(), source };
                let part = subpath::open(&volume.path, &sub).map_err(failed)?;
                // A container that runs again gets what the name means now.
                while umount2(&target, MntFlags::MNT_DETACH).is_ok() {}
                let _ = fs::remove_file(&target);
                subpath::bind(&part, &sub, &target).map_err(failed)?;
                target
            }
            None => volume.path.clone(),
        };
        all.push(Bind {
            source,
            target: absolute(&wanted.mount_path),
            read_only: volume.read_only || wanted.read_only.unwrap_or(false),
            propagation: wanted.mount_propagation.clone(),
        });
    }
    Ok(all)
}

fn absolute(path: &str) -> PathBuf {
    if path.starts_with('/') { path.into() } else { Path::new("/").join(path) }
}

pub fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |p: &Path| fs::symlink_metadata(p).map(|m| m.dev()).ok();
    match (device(path), path.parent().and_then(device)) {
        (Some(own), Some(parent)) => own != parent,
        _ => false,
    }
}

/// Unmounts everything below a folder, deepest first.
pub fn unmount_below(folder: &Path) -> io::Result<()> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mut targets: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|target| PathBuf::from(target.replace("\\040", " ")))
        .filter(|target| target.starts_with(folder))
        .collect();
    // Later mounts cover earlier ones.
    targets.reverse();
    for target in targets {
        umount2(&target, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::{
        api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, PodSecurityContext, PodSpec, VolumeMount},
        apimachinery::pkg::api::resource::Quantity,
    };
    use std::os::unix::fs::MetadataExt;

    struct Scratch {
        dir: tempfile::TempDir,
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = unmount_below(self.dir.path());
        }
    }

    fn pod(volumes: Vec<Volume>) -> Pod {
        Pod {
            spec: Some(PodSpec {
                volumes: Some(volumes),
                security_context: Some(PodSecurityContext { fs_group: Some(4321), ..Default::default() }),
                ..PodSpec::default()
            }),
            ..Pod::default()
        }
    }

    #[test]
    fn empty_directories_are_of_disk_or_memory_and_the_groups() {
        let scratch = Scratch { dir: tempfile::tempdir().unwrap() };
        let root = scratch.dir.path();
        let dirs = PodDirs { data: root.join("d"), run: root.join("r") };
        let empty = |name: &str, medium: Option<&str>, size: Option<&str>| Volume {
            name: name.into(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: medium.map(Into::into),
                size_limit: size.map(|s| Quantity(s.into())),
            }),
            ..Volume::default()
        };
        let pod = pod(vec![empty("disk", None, None), empty("mem", Some("Memory"), Some("1Mi"))]);
        let ready = prepare(&pod, &dirs, &Brought::default()).unwrap();
        let disk = fs::metadata(&ready["disk"].path).unwrap();
        assert_eq!((disk.gid(), disk.mode() & 0o7777), (4321, 0o2777));
        assert!(is_mount_point(&ready["mem"].path));
        assert!(fs::write(ready["mem"].path.join("big"), vec![0; 2 << 20]).is_err(), "the size limit holds");
        let again = prepare(&pod, &dirs, &Brought::default()).unwrap();
        assert_eq!(ready, again);
        let count = || fs::read_to_string("/proc/self/mountinfo").unwrap().matches(root.to_str().unwrap()).count();
        assert_eq!(count(), 1, "mounted once");
        unmount_below(root).unwrap();
        assert_eq!(count(), 0);
    }

    #[test]
    fn host_paths_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, kind: &str| host_path("v", dir.path().join(name).to_str().unwrap(), kind);
        check("new", "DirectoryOrCreate").unwrap();
        check("new", "Directory").unwrap();
        check("file", "FileOrCreate").unwrap();
        check("plain", "").unwrap();
        assert!(dir.path().join("plain").is_dir());
        assert!(matches!(check("new", "File"), Err(VolumeError::HostPathType { .. })));
        assert!(matches!(check("missing", "Directory"), Err(VolumeError::HostPathType { .. })));
        assert!(matches!(check("new", "Socket"), Err(VolumeError::HostPathType { .. })));
    }

    #[test]
    fn mounts_find_their_volume_and_its_part() {
        let scratch = Scratch { dir: tempfile::tempdir().unwrap() };
        let root = scratch.dir.path().canonicalize().unwrap();
        let dirs = PodDirs { data: root.join("d"), run: root.join("r") };
        let volume = Volume {
            name: "v".into(),
            host_path: Some(HostPathVolumeSource { path: root.join("h").display().to_string(), type_: None }),
            ..Volume::default()
        };
        let ready = prepare(&pod(vec![volume]), &dirs, &Brought::default()).unwrap();
        let mount = |name: &str, sub: Option<&str>| Container {
            name: "c".into(),
            volume_mounts: Some(vec![VolumeMount {
                name: name.into(),
                mount_path: "data".into(),
                sub_path: sub.map(Into::into),
                ..VolumeMount::default()
            }]),
            ..Container::default()
        };
        let found = binds(&mount("v", Some("a/b")), &ready, &dirs, &Variables::default()).unwrap();
        assert_eq!(found[0].target, Path::new("/data"));
        fs::write(root.join("h/a/b/x"), "1").unwrap();
        assert_eq!(fs::read_to_string(found[0].source.join("x")).unwrap(), "1");
        assert!(matches!(
            binds(&mount("no", None), &ready, &dirs, &Variables::default()),
            Err(VolumeError::NoVolume(_))
        ));
        std::os::unix::fs::symlink("/etc", root.join("h/evil")).unwrap();
        assert!(matches!(
            binds(&mount("v", Some("evil")), &ready, &dirs, &Variables::default()),
            Err(VolumeError::SubPath { .. })
        ));
    }
}
