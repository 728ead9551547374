//! Images without a registry: an OCI archive or layout, `docker save` output, a root file system in a tar, or layers made
//! in memory. Source: image-spec `image-layout.md`; Docker's image specification v1.2 (`manifest.json`).
//!
//! Invariant: no path of an archive is ever used as a path here. Files of an archive become blobs by their digest, and a
//! name in it is only a key in memory.

use super::{
    MAX_DOCUMENT, OnProgress,
    blobs::{BlobError, digest_of},
    bounded::Bounded,
    config::{
        self, CONFIG_TYPE, ConfigBlob, Descriptor, INDEX_TYPES, Index, MANIFEST_TYPE, Manifest, Platform, RootFs,
        RunConfig,
    },
    name::{ImageName, InvalidName},
    store::{Image, ImageStore, Inner, StoreError, blocking, parse},
    unpack,
};
use nix::{
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::Mode,
};
use serde::Deserialize;
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// The most files of an archive; an image of a hundred layers has about three hundred.
const MAX_FILES: usize = 10_000;
/// The largest file of an archive, and the largest blob: as large as the largest layer may be unpacked.
pub(super) const MAX_BLOB: u64 = unpack::MAX_EXPANDED;
/// How deep one index may hold another.
const MAX_NESTING: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(
        "{0} is not an image: neither an OCI archive or layout, nor `docker save` output, nor a tar of a root file system"
    )]
    NotAnImage(String),
    #[error("the archive does not say the image's name; give one with --name")]
    NoName,
    #[error("the archive holds {0} images; one name cannot be given to all")]
    ManyImages(usize),
    #[error("the archive holds no image for linux/{}", config::architecture())]
    NoPlatform,
    #[error("the archive has more than {MAX_FILES} files")]
    TooMany,
    #[error("the archive lacks {0}, which its manifest names")]
    Missing(String),
    #[error("the archive is damaged: {0}")]
    Archive(#[source] io::Error),
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<BlobError> for ImportError {
    fn from(error: BlobError) -> Self {
        Self::Store(error.into())
    }
}

/// What the caller knows better than the archive.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The name to give, in place of the archive's.
    pub name: Option<String>,
    /// How to run a root file system that comes without a configuration.
    pub config: RunConfig,
}

impl ImageStore {
    /// Imports every image of the file or folder for this machine's platform. Returns them in the archive's order.
    pub async fn import(
        &self,
        path: &Path,
        options: ImportOptions,
        progress: OnProgress,
    ) -> Result<Vec<Image>, ImportError> {
        let guard = self.inner.activity.clone().read_owned().await;
        let (inner, path) = (self.inner.clone(), path.to_owned());
        blocking(move || {
            let imported = import(&inner, &path, &options, &progress);
            drop(guard);
            if imported.is_err() {
                inner.give_up();
            }
            imported
        })
        .await
    }

    /// The same from a stream, which is written to the disk first: an archive's list of contents is at its end. At most
    /// 32 GiB.
    pub async fn import_from(
        &self,
        mut from: impl tokio::io::AsyncRead + Send + Unpin,
        options: ImportOptions,
        progress: OnProgress,
    ) -> Result<Vec<Image>, ImportError> {
        use tokio::io::AsyncReadExt;
        let inner = self.inner.clone();
        let incoming = blocking(move || Ok::<_, ImportError>(inner.blobs.incoming()?)).await?;
        let spool = incoming.file.try_clone().map_err(StoreError::at(&incoming.path))?;
        let mut spool = tokio::fs::File::from_std(spool);
        let written = tokio::io::copy(&mut (&mut from).take(MAX_BLOB + 1), &mut spool).await;
        if written.map_err(StoreError::at(&incoming.path))? > MAX_BLOB {
            return Err(BlobError::TooLong { limit: MAX_BLOB }.into());
        }
        tokio::io::AsyncWriteExt::flush(&mut spool).await.map_err(StoreError::at(&incoming.path))?;
        self.import(&incoming.path, options, progress).await
    }

    /// Makes an image of one layer from a tar in memory: the images that kfbox itself carries. The same content under the
    /// same name again costs nothing.
    pub async fn import_layer_image(
        &self,
        name: &str,
        layer: Vec<u8>,
        config: RunConfig,
    ) -> Result<Image, ImportError> {
        let name = ImageName::parse(name)?;
        if let Some(image) = self.resolve(&name.key())
            && image.config == config
            && image.layers.len() == 1
        {
            let digest = image.layers[0].digest.clone();
            let (same, back) = blocking(move || Ok::<_, ImportError>((digest_of(&layer) == digest, layer))).await?;
            if same {
                return Ok(image);
            }
            return self.import_one(name, back, config).await;
        }
        self.import_one(name, layer, config).await
    }

    async fn import_one(&self, name: ImageName, layer: Vec<u8>, config: RunConfig) -> Result<Image, ImportError> {
        let guard = self.inner.activity.clone().read_owned().await;
        let inner = self.inner.clone();
        blocking(move || {
            let written = inner.blobs.write(&layer[..], None, MAX_BLOB).map_err(ImportError::from);
            let imported =
                written.and_then(|(digest, size)| single_layer(&inner, &name, digest, size, config, &super::silent()));
            drop(guard);
            if imported.is_err() {
                inner.give_up();
            }
            imported
        })
        .await
    }
}

fn import(
    inner: &Inner,
    path: &Path,
    options: &ImportOptions,
    progress: &OnProgress,
) -> Result<Vec<Image>, ImportError> {
    let override_name = options.name.as_deref().map(ImageName::parse).transpose()?;
    if path.is_dir() {
        let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
        let folder =
            openat(AT_FDCWD, path, flags, Mode::empty()).map_err(|error| StoreError::at(path)(error.into()))?;
        return oci(inner, &mut Source::Layout(folder), override_name, progress);
    }
    match kind_of(path)? {
        Kind::RootFs => {
            let name = override_name.ok_or(ImportError::NoName)?;
            let file = File::open(path).map_err(StoreError::at(path))?;
            let (digest, size) = inner.blobs.write(file, None, MAX_BLOB)?;
            Ok(vec![single_layer(inner, &name, digest, size, options.config.clone(), progress)?])
        }
        Kind::Oci => oci(inner, &mut unfold(inner, path)?, override_name, progress),
        Kind::Docker => docker(inner, &mut unfold(inner, path)?, override_name, progress),
    }
}

enum Kind {
    Oci,
    Docker,
    RootFs,
}

/// Tells an archive's kind by the names at its top.
fn kind_of(path: &Path) -> Result<Kind, ImportError> {
    let file = File::open(path).map_err(StoreError::at(path))?;
    let plain = unpack::decompress(file).map_err(ImportError::Archive)?;
    let mut archive = tar::Archive::new(Bounded::new(plain.take(MAX_BLOB)));
    let not_an_image = |_| ImportError::NotAnImage(path.display().to_string());
    let (mut docker, mut entries) = (false, 0u64);
    for entry in archive.entries().map_err(not_an_image)? {
        let entry = entry.map_err(not_an_image)?;
        entries += 1;
        match key(&entry.path_bytes()).as_str() {
            "oci-layout" | "index.json" => return Ok(Kind::Oci),
            "manifest.json" => docker = true,
            _ => {}
        }
        if entries > unpack::MAX_ENTRIES {
            return Err(ImportError::TooMany);
        }
    }
    match (docker, entries) {
        (true, _) => Ok(Kind::Docker),
        (_, 0) => Err(ImportError::NotAnImage(path.display().to_string())),
        _ => Ok(Kind::RootFs),
    }
}

/// Where the files of an image are read from.
enum Source {
    Layout(OwnedFd),
    /// By name in the archive, the digest and size of the blob it became.
    Archive(HashMap<String, (String, u64)>),
}

/// Stores each file of an archive as a blob. What turns out to be needed by no image is freed with the next collection,
/// or at once when nothing comes of the archive.
fn unfold(inner: &Inner, path: &Path) -> Result<Source, ImportError> {
    let file = File::open(path).map_err(StoreError::at(path))?;
    let plain = unpack::decompress(file).map_err(ImportError::Archive)?;
    let mut archive = tar::Archive::new(Bounded::new(plain.take(4 * MAX_BLOB)));
    let mut files = HashMap::new();
    let mut links = Vec::new();
    for entry in archive.entries().map_err(ImportError::Archive)? {
        let entry = entry.map_err(ImportError::Archive)?;
        let name = key(&entry.path_bytes());
        match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                if files.len() >= MAX_FILES {
                    return Err(ImportError::TooMany);
                }
                let stored = inner.blobs.write(entry, None, MAX_BLOB)?;
                files.insert(name, stored);
            }
            // `docker save` of old links a layer that two images share to the first one.
            tar::EntryType::Symlink | tar::EntryType::Link if links.len() < MAX_FILES => {
                let target = entry.link_name_bytes().map(|t| t.into_owned()).unwrap_or_default();
                links.push((name, entry.header().entry_type(), target));
            }
            _ => {}
        }
    }
    for (name, kind, target) in links {
        let target = match (kind, name.rsplit_once('/')) {
            (tar::EntryType::Symlink, Some((folder, _))) => key(&[folder.as_bytes(), b"/", &target].concat()),
            _ => key(&target),
        };
        if let Some(stored) = files.get(&target).cloned() {
            files.insert(name, stored);
        }
    }
    Ok(Source::Archive(files))
}

/// A name in an archive as a key: without `.` parts, `..` taken back within the archive.
fn key(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl Source {
    /// Makes the file `name` a blob and returns its digest and size. With `expected`, other content is refused.
    fn store(&mut self, inner: &Inner, name: &str, expected: Option<&str>) -> Result<(String, u64), ImportError> {
        match self {
            Self::Layout(folder) => {
                let how = OpenHow::new()
                    .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NONBLOCK)
                    .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
                let file = match openat2(&*folder, name, how) {
                    Ok(file) => File::from(file),
                    Err(nix::errno::Errno::ENOENT) => return Err(ImportError::Missing(name.into())),
                    Err(error) => return Err(StoreError::at(Path::new(name))(error.into()).into()),
                };
                Ok(inner.blobs.write(file, expected, MAX_BLOB)?)
            }
            Self::Archive(files) => {
                let (digest, size) = files.get(name).cloned().ok_or_else(|| ImportError::Missing(name.into()))?;
                match expected {
                    Some(expected) if expected.starts_with("sha512:") => {
                        let path = inner.blobs.path(&digest)?;
                        let file = File::open(&path).map_err(StoreError::at(&path))?;
                        Ok(inner.blobs.write(file, Some(expected), MAX_BLOB)?)
                    }
                    Some(expected) if expected != digest => {
                        Err(BlobError::Mismatch { expected: expected.into(), found: digest }.into())
                    }
                    _ => Ok((digest, size)),
                }
            }
        }
    }

    fn document(&mut self, inner: &Inner, name: &str) -> Result<Vec<u8>, ImportError> {
        let (digest, _) = self.store(inner, name, None)?;
        Ok(inner.blobs.read_small(&digest)?)
    }

    fn blob(&mut self, inner: &Inner, digest: &str) -> Result<u64, ImportError> {
        inner.blobs.path(digest)?;
        let name = format!("blobs/{}", digest.replacen(':', "/", 1));
        match self.store(inner, &name, Some(digest)) {
            // Another image of the store may have brought it already.
            Err(ImportError::Missing(_)) if inner.blobs.has(digest) => {
                let path: PathBuf = inner.blobs.path(digest)?;
                Ok(path.metadata().map_err(StoreError::at(&path))?.len())
            }
            other => other.map(|(_, size)| size),
        }
    }
}

fn oci(
    inner: &Inner,
    source: &mut Source,
    name: Option<ImageName>,
    progress: &OnProgress,
) -> Result<Vec<Image>, ImportError> {
    let index: Index = match source.document(inner, "index.json") {
        Ok(bytes) => parse("index", &bytes)?,
        Err(ImportError::Missing(_)) => return Err(ImportError::NotAnImage("the folder".into())),
        Err(error) => return Err(error),
    };
    // One entry a name; entries without one are the platforms of a single image.
    let mut chosen: Vec<(Descriptor, Option<ImageName>)> = Vec::new();
    let mut nameless = Vec::new();
    for descriptor in index.manifests {
        match annotated_name(&descriptor) {
            Some(name) => chosen.push((descriptor, Some(name))),
            None => nameless.push(descriptor),
        }
    }
    if let Some(descriptor) = config::for_this_machine(&nameless) {
        chosen.push((descriptor.clone(), None));
    }
    let mut manifests: Vec<(String, Vec<ImageName>)> = Vec::new();
    for (descriptor, own_name) in chosen {
        let digest = manifest_of(inner, source, descriptor, MAX_NESTING)?;
        match manifests.iter_mut().find(|(known, _)| *known == digest) {
            Some((_, names)) => names.extend(own_name),
            None => manifests.push((digest, own_name.into_iter().collect())),
        }
    }
    if manifests.is_empty() {
        return Err(ImportError::NoPlatform);
    }
    if let Some(name) = name {
        if manifests.len() > 1 {
            return Err(ImportError::ManyImages(manifests.len()));
        }
        manifests[0].1 = vec![name];
    }
    let mut images = Vec::new();
    for (digest, names) in manifests {
        if names.is_empty() {
            return Err(ImportError::NoName);
        }
        let manifest: Manifest = parse("manifest", &inner.blobs.read_small(&digest)?)?;
        source.blob(inner, &manifest.config.digest)?;
        for layer in &manifest.layers {
            source.blob(inner, &layer.digest)?;
        }
        images.push(inner.keep(&digest, &names, progress)?);
    }
    Ok(images)
}

/// Follows indexes to the manifest for this machine.
fn manifest_of(
    inner: &Inner,
    source: &mut Source,
    descriptor: Descriptor,
    depth: usize,
) -> Result<String, ImportError> {
    source.blob(inner, &descriptor.digest)?;
    let bytes = inner.blobs.read_small(&descriptor.digest)?;
    let is_index = INDEX_TYPES.contains(&descriptor.media_type.as_str());
    if !is_index {
        return Ok(descriptor.digest);
    }
    let index: Index = parse("index", &bytes)?;
    let next = config::for_this_machine(&index.manifests).cloned().ok_or(ImportError::NoPlatform)?;
    if depth == 0 {
        return Err(ImportError::NoPlatform);
    }
    manifest_of(inner, source, next, depth - 1)
}

/// The full name of an index entry: containerd's annotation, or the standard one where it holds more than a tag.
fn annotated_name(descriptor: &Descriptor) -> Option<ImageName> {
    let annotation = |key: &str| descriptor.annotations.get(key).map(String::as_str);
    annotation("io.containerd.image.name")
        .or_else(|| annotation("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':'])))
        .and_then(|name| ImageName::parse(name).ok())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn docker(
    inner: &Inner,
    source: &mut Source,
    name: Option<ImageName>,
    progress: &OnProgress,
) -> Result<Vec<Image>, ImportError> {
    let saved: Vec<DockerImage> = parse("manifest.json", &source.document(inner, "manifest.json")?)?;
    if name.is_some() && saved.len() > 1 {
        return Err(ImportError::ManyImages(saved.len()));
    }
    let mut images = Vec::new();
    for image in saved {
        let names = match &name {
            Some(name) => vec![name.clone()],
            None => image.repo_tags.iter().flatten().map(|tag| ImageName::parse(tag)).collect::<Result<_, _>>()?,
        };
        if names.is_empty() {
            return Err(ImportError::NoName);
        }
        let (config, config_size) = source.store(inner, &key(image.config.as_bytes()), None)?;
        let mut layers = Vec::new();
        for layer in &image.layers {
            layers.push(source.store(inner, &key(layer.as_bytes()), None)?);
        }
        let digest = write_manifest(inner, (config, config_size), layers)?;
        images.push(inner.keep(&digest, &names, progress)?);
    }
    Ok(images)
}

fn single_layer(
    inner: &Inner,
    name: &ImageName,
    layer: String,
    size: u64,
    run: RunConfig,
    progress: &OnProgress,
) -> Result<Image, ImportError> {
    let diff_id = inner.diff_id(&layer)?;
    let blob = ConfigBlob {
        created: String::new(),
        architecture: config::architecture().into(),
        os: "linux".into(),
        config: run,
        rootfs: RootFs { kind: "layers".into(), diff_ids: vec![diff_id] },
    };
    let bytes =
        serde_json::to_vec(&blob).map_err(|e| StoreError::Invalid { what: "configuration", why: e.to_string() })?;
    let config = inner.blobs.write(&bytes[..], None, MAX_DOCUMENT)?;
    let digest = write_manifest(inner, config, vec![(layer, size)])?;
    Ok(inner.keep(&digest, std::slice::from_ref(name), progress)?)
}

fn write_manifest(inner: &Inner, config: (String, u64), layers: Vec<(String, u64)>) -> Result<String, ImportError> {
    let descriptor = |media_type: &str, (digest, size): (String, u64)| Descriptor {
        media_type: media_type.into(),
        digest,
        size,
        annotations: Default::default(),
        platform: None::<Platform>,
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE.into(),
        config: descriptor(CONFIG_TYPE, config),
        layers: layers.into_iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer)).collect(),
    };
    let bytes =
        serde_json::to_vec(&manifest).map_err(|e| StoreError::Invalid { what: "manifest", why: e.to_string() })?;
    Ok(inner.blobs.write(&bytes[..], None, MAX_DOCUMENT)?.0)
}
