//! Names, manifests and layers on disk.
//!
//! `images.json` maps each manifest to its names; `blobs/` holds what manifests speak of; `layers/ID` is a layer unpacked,
//! ID being the first 24 hexadecimal digits of its diff id (short, because overlayfs takes all lower directories in one page).

use super::{
    Auths, ImageConfig, OnProgress, Progress,
    blobs::{BlobError, Blobs, Hasher, HashingReader},
    config::{ConfigBlob, Manifest, RunConfig},
    name::{self, ImageName},
    pins::Pins,
    pushed::REGISTRY_HOST,
    repositories::{Repositories, owner_name},
    unpack::{self, UnpackError},
};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How often garbage collection looks for a moment without activity, and with which pauses.
const TRIES_ALONE: usize = 100;
const PAUSE_ALONE: Duration = Duration::from_millis(100);
/// The most layers of an image: overlayfs takes 500 lower directories, Docker makes at most 127.
const MAX_LAYERS: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Name(#[from] name::InvalidName),
    #[error("no image {name}; `kfbox image list` shows those that are here")]
    NotFound { name: String },
    #[error("the image's {what} cannot be used: {why}")]
    Invalid { what: &'static str, why: String },
    #[error("layer {layer}: {source}")]
    Layer {
        layer: String,
        #[source]
        source: UnpackError,
    },
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("{path}: {source}{}", super::advice(source))]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("images are being fetched or loaded; content that nobody needs is removed afterwards")]
    Busy,
    #[error("the image work was stopped")]
    Stopped,
}

impl StoreError {
    pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the (compressed) blob.
    pub digest: String,
    /// Digest of the uncompressed tar.
    pub diff_id: String,
    /// Bytes of the blob.
    pub size: u64,
}

/// An image that is complete on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of the configuration, which Docker and the kubelet call the image's id.
    pub id: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Full names, tags and `name@digest` alike.
    pub names: Vec<String>,
    pub config: RunConfig,
    /// Bytes of all (compressed) layers.
    pub size: u64,
    /// RFC 3339; empty when the image does not say.
    pub created: String,
    pub layers: Vec<Layer>,
}

impl Image {
    /// The names by digest (`docker.io/library/python@sha256:...`), as `status.containerStatuses.imageID` wants one.
    pub fn repo_digests(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str).filter(|name| name.contains('@'))
    }

    /// The names by tag.
    pub fn repo_tags(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str).filter(|name| !name.contains('@'))
    }
}

/// The read-only layers of an image, for a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// In the order of overlayfs' `lowerdir`: the topmost layer first.
    pub lower_dirs: Vec<PathBuf>,
}

/// What a collection of garbage freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    pub blobs: usize,
    pub layers: usize,
    /// Bytes of the blobs.
    pub bytes: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    /// By manifest digest, the names.
    images: BTreeMap<String, BTreeSet<String>>,
}

/// Digests of the credentials for which registries gave an image.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Proofs(pub(super) BTreeSet<String>);

/// Credentials remembered of one image. Whose were forgotten has them checked by the registry once more.
const MAX_PROOFS: usize = 256;

#[derive(Default)]
struct Known {
    by_manifest: BTreeMap<String, Arc<Image>>,
    by_name: HashMap<String, String>,
}

/// The store. Cloning shares it.
#[derive(Clone)]
pub struct ImageStore {
    pub(super) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    root: PathBuf,
    pub(super) config: ImageConfig,
    pub(super) blobs: Blobs,
    known: RwLock<Known>,
    marking: Mutex<()>,
    /// One lock a layer, so that two images which share one unpack it once.
    unpacking: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// Layers unpacked for images that are not complete yet.
    unclaimed: Mutex<HashSet<PathBuf>>,
    /// Held for reading while content is added or handed out, for writing while garbage is collected: content that no
    /// manifest names yet is not garbage. Never held over the network, where `pins` do the same.
    pub(super) activity: Arc<tokio::sync::RwLock<()>>,
    pub(super) pins: Pins,
    pub(super) pulls: super::pull::Pulls,
    pub(super) repositories: Repositories,
}

/// Runs blocking work off the asynchronous threads.
pub(crate) async fn blocking<T: Send + 'static, E: From<StoreError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(StoreError::Stopped.into()),
    }
}

impl ImageStore {
    /// Opens the store in `folder` (`data_dir/images`), made if missing. Content that a crash left half-written is removed;
    /// an image whose manifest is damaged is dropped with a warning. Blocks on the disk for a moment.
    pub fn open(folder: &Path, config: ImageConfig) -> Result<Self, StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        let temporary = folder.join("tmp");
        // Layers hold set-uid programs: no other user of the machine may reach them.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(StoreError::at(folder))?;
        if temporary.exists() {
            fs::remove_dir_all(&temporary).map_err(StoreError::at(&temporary))?;
        }
        let blobs = Blobs::open(folder.join("blobs"), temporary)?;
        let layers = folder.join("layers");
        fs::create_dir_all(&layers).map_err(StoreError::at(&layers))?;
        let repositories = Repositories::open(folder.join("registry"), &blobs)?;
        let inner = Inner {
            root: folder.to_owned(),
            config,
            blobs,
            known: RwLock::default(),
            marking: Mutex::default(),
            unpacking: Mutex::default(),
            unclaimed: Mutex::default(),
            activity: Arc::default(),
            pins: Pins::default(),
            pulls: super::pull::Pulls::default(),
            repositories,
        };
        let index_path = inner.index_path();
        let index: Index = match fs::read(&index_path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| StoreError::Invalid { what: "list (images.json)", why: error.to_string() })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Index::default(),
            Err(error) => return Err(StoreError::at(&index_path)(error)),
        };
        for (digest, names) in index.images {
            match inner.load(&digest, names.clone()) {
                Ok(image) => inner.known.write().insert(image),
                Err(error) => {
                    tracing::warn!(%digest, ?names, %error, "an image of the store cannot be read and is dropped")
                }
            }
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn config(&self) -> &ImageConfig {
        &self.inner.config
    }

    /// The image of that name, digest or id, if it is here. A name that is not here is looked up once more through the
    /// configured aliases.
    pub fn resolve(&self, name: &str) -> Option<Image> {
        let known = self.inner.known.read();
        if name::is_digest(name) {
            return known.by_id(name).map(|image| (**image).clone());
        }
        let parsed = ImageName::parse(name).ok()?;
        let found = known.find(&parsed).or_else(|| {
            let target = name::alias_of(&self.inner.config.aliases, &parsed)?;
            known.find(&ImageName::parse(&target).ok()?)
        });
        found.map(|image| (**image).clone())
    }

    /// All images, by their first name.
    pub fn list(&self) -> Vec<Image> {
        let mut all: Vec<Image> = self.inner.known.read().by_manifest.values().map(|image| (**image).clone()).collect();
        all.sort_by(|a, b| a.names.cmp(&b.names));
        all
    }

    /// Removes a name, or with an id or digest all names of the image. Content is freed by [`ImageStore::gc`]; containers
    /// that run from it go on.
    pub async fn remove(&self, name: &str) -> Result<(), StoreError> {
        let (inner, name) = (self.inner.clone(), name.to_owned());
        blocking(move || {
            let mut known = inner.known.write();
            let missing = || StoreError::NotFound { name: name.clone() };
            let (digest, gone) = if name::is_digest(&name) {
                (known.by_id(&name).ok_or_else(missing)?.digest.clone(), None)
            } else {
                let parsed = ImageName::parse(&name)?;
                (known.find(&parsed).ok_or_else(missing)?.digest.clone(), Some(parsed.key()))
            };
            let mut names: BTreeSet<String> =
                known.by_manifest.get(&digest).into_iter().flat_map(|image| image.names.iter().cloned()).collect();
            match gone {
                Some(gone) => drop(names.remove(&gone)),
                None => names.clear(),
            }
            // Names by digest alone would keep an image that nobody can see under any name of their own.
            if !names.iter().any(|name| !name.contains('@')) {
                names.clear();
            }
            inner.rename(&mut known, &digest, names)
        })
        .await
    }

    /// Whether it came from a registry, which can give it again; one that was imported is here for good.
    pub fn is_pulled(&self, image: &Image) -> bool {
        self.inner.is_marked_pulled(&image.digest)
    }

    /// Whether somebody with these credentials may run an image that is here: it was imported, or its registry gave it to
    /// anybody, or to these credentials before. Otherwise only the registry can tell, by a pull.
    pub fn may_use(&self, name: &str, image: &Image, auths: &Auths) -> bool {
        match self.inner.proofs(&image.digest) {
            Ok(None) => true,
            Ok(Some(proofs)) => {
                let own = self.target(name).map(|target| auths.proof(&target));
                proofs.0.contains(&Auths::default_proof()) || own.is_some_and(|own| proofs.0.contains(&own))
            }
            Err(error) => {
                tracing::warn!(%error, "whose an image is cannot be read; its registry is asked");
                false
            }
        }
    }

    /// The unpacked layers of an image, unpacked now where they are missing.
    pub async fn snapshot(&self, image: &Image) -> Result<Snapshot, StoreError> {
        let guard = self.inner.activity.clone().read_owned().await;
        let (inner, image) = (self.inner.clone(), image.clone());
        blocking(move || {
            let _guard = guard;
            let mut lower_dirs = Vec::with_capacity(image.layers.len());
            for layer in image.layers.iter().rev() {
                lower_dirs.push(inner.unpack(layer, &super::silent())?);
            }
            Ok(Snapshot { lower_dirs })
        })
        .await
    }

    /// Frees what no image needs. `in_use` names layer directories of containers that still run (their image may be
    /// removed); those that this mount namespace has mounted are found without being named.
    pub async fn gc(&self, in_use: &HashSet<PathBuf>) -> Result<Collected, StoreError> {
        let guard = self.alone().await?;
        let (inner, in_use) = (self.inner.clone(), in_use.clone());
        blocking(move || {
            let (collected, doomed) = inner.collect(&in_use)?;
            // Trees take long to remove, and nobody can come to need one under its present name.
            drop(guard);
            for tree in doomed {
                fs::remove_dir_all(&tree).map_err(StoreError::at(&tree))?;
            }
            Ok(collected)
        })
        .await
    }

    /// Waits for a moment without activity. A writer that queued would hold up every pod that starts until an import of
    /// minutes is done.
    async fn alone(&self) -> Result<tokio::sync::OwnedRwLockWriteGuard<()>, StoreError> {
        for _ in 0..TRIES_ALONE {
            if let Ok(guard) = self.inner.activity.clone().try_write_owned() {
                return Ok(guard);
            }
            tokio::time::sleep(PAUSE_ALONE).await;
        }
        Err(StoreError::Busy)
    }
}

impl Known {
    fn insert(&mut self, image: Image) {
        for name in &image.names {
            self.by_name.insert(name.clone(), image.digest.clone());
        }
        self.by_manifest.insert(image.digest.clone(), Arc::new(image));
    }

    fn find(&self, name: &ImageName) -> Option<&Arc<Image>> {
        self.by_manifest.get(self.by_name.get(&name.key())?)
    }

    fn by_id(&self, digest: &str) -> Option<&Arc<Image>> {
        self.by_manifest.get(digest).or_else(|| self.by_manifest.values().find(|image| image.id == digest))
    }
}

impl Inner {
    fn index_path(&self) -> PathBuf {
        self.root.join("images.json")
    }

    fn pulled_path(&self, digest: &str) -> Option<PathBuf> {
        let hex = digest.split_once(':').map(|(_, hex)| hex).filter(|_| name::is_digest(digest))?;
        Some(self.root.join("pulled").join(hex))
    }

    pub(super) fn is_marked_pulled(&self, digest: &str) -> bool {
        self.pulled_path(digest).is_some_and(|path| path.exists())
    }

    /// With which credentials a pulled image was had; none of one that was imported.
    pub(super) fn proofs(&self, digest: &str) -> Result<Option<Proofs>, StoreError> {
        let Some(path) = self.pulled_path(digest) else { return Ok(None) };
        match fs::read(&path) {
            // A note that a crash left empty proves nothing.
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or_default())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::at(&path)(error)),
        }
    }

    /// Notes that a registry gave an image for these credentials; without any it was the embedded one, which is asked each
    /// time.
    pub(super) fn mark_pulled(&self, digest: &str, proof: Option<String>) -> Result<(), StoreError> {
        let Some(path) = self.pulled_path(digest) else { return Ok(()) };
        let folder = self.root.join("pulled");
        fs::create_dir_all(&folder).map_err(StoreError::at(&folder))?;
        let _one_at_a_time = self.marking.lock();
        let known = self.proofs(digest)?;
        let is_known = known.is_some();
        let mut proofs = known.unwrap_or_default();
        let is_new = proof.is_some_and(|proof| proofs.0.insert(proof));
        if is_known && !is_new {
            return Ok(());
        }
        while proofs.0.len() > MAX_PROOFS {
            proofs.0.pop_first();
        }
        let invalid = |error: serde_json::Error| StoreError::Invalid { what: "list of proofs", why: error.to_string() };
        let next = folder.join("next");
        if let Err(error) = fs::write(&next, serde_json::to_vec(&proofs).map_err(invalid)?) {
            drop(fs::remove_file(&next));
            return Err(StoreError::at(&next)(error));
        }
        fs::rename(&next, &path).map_err(StoreError::at(&path))
    }

    /// Whether an image is here at all.
    pub(super) fn has(&self, digest: &str) -> bool {
        self.known.read().by_manifest.contains_key(digest)
    }

    /// Reads an image's manifest and configuration back and checks that they fit each other.
    fn load(&self, digest: &str, names: BTreeSet<String>) -> Result<Image, StoreError> {
        let manifest: Manifest = parse("manifest", &self.blobs.read_small(digest)?)?;
        let config: ConfigBlob = parse("configuration", &self.blobs.read_small(&manifest.config.digest)?)?;
        let layers = pair(&manifest, &config)?;
        if !config.os.is_empty() && config.os != "linux" {
            return Err(StoreError::Invalid {
                what: "platform",
                why: format!("it is for {}, this machine is linux", config.os),
            });
        }
        if !config.architecture.is_empty() && config.architecture != super::config::architecture() {
            let why = format!("it is for {}, this machine is {}", config.architecture, super::config::architecture());
            return Err(StoreError::Invalid { what: "platform", why });
        }
        Ok(Image {
            id: manifest.config.digest.clone(),
            digest: digest.to_owned(),
            names: names.into_iter().collect(),
            size: layers.iter().map(|layer| layer.size).sum(),
            config: config.config,
            created: config.created,
            layers,
        })
    }

    /// Completes an image whose blobs are all here: unpacks its layers, then gives it its names, which leave the images
    /// that had them.
    pub(super) fn commit(&self, digest: &str, names: &[ImageName], progress: &OnProgress) -> Result<Image, StoreError> {
        let image = self.load(digest, BTreeSet::new())?;
        for layer in &image.layers {
            self.unpack(layer, progress)?;
        }
        let mut known = self.known.write();
        let mut all: BTreeSet<String> =
            known.by_manifest.get(digest).map(|image| image.names.iter().cloned().collect()).unwrap_or_default();
        for name in names {
            all.insert(name.key());
            all.insert(format!("{}@{digest}", name.without_tag()));
        }
        if !known.by_manifest.contains_key(digest) {
            known.by_manifest.insert(digest.to_owned(), Arc::new(image.clone()));
        }
        if let Err(error) = self.rename(&mut known, digest, all) {
            // Without a name it was not here before.
            if known.by_manifest.get(digest).is_some_and(|image| image.names.is_empty()) {
                known.by_manifest.remove(digest);
            }
            return Err(error);
        }
        let mut unclaimed = self.unclaimed.lock();
        for layer in &image.layers {
            unclaimed.remove(&self.layer_path(&layer.diff_id)?);
        }
        Ok(known.by_manifest.get(digest).map_or(image, |image| (**image).clone()))
    }

    /// As [`Inner::commit`], of an image that was imported: it stays until somebody removes it.
    pub(super) fn keep(&self, digest: &str, names: &[ImageName], progress: &OnProgress) -> Result<Image, StoreError> {
        if let Some(path) = self.pulled_path(digest) {
            let _ = fs::remove_file(path);
        }
        self.commit(digest, names, progress)
    }

    /// Gives an image exactly these names, on disk first; without any it is no longer known.
    fn rename(&self, known: &mut Known, digest: &str, names: BTreeSet<String>) -> Result<(), StoreError> {
        let mut index = Index::default();
        for image in known.by_manifest.values().filter(|image| image.digest != digest) {
            let left: BTreeSet<String> = image.names.iter().filter(|name| !names.contains(*name)).cloned().collect();
            if left.iter().any(|name| !name.contains('@')) || image.names.len() == left.len() {
                index.images.insert(image.digest.clone(), left);
            }
        }
        if !names.is_empty() {
            index.images.insert(digest.to_owned(), names);
        }
        self.save(&index)?;
        known.by_name.clear();
        known.by_manifest.retain(|digest, _| index.images.contains_key(digest));
        for (digest, names) in index.images {
            let Some(image) = known.by_manifest.get_mut(&digest) else { continue };
            for name in &names {
                known.by_name.insert(name.clone(), digest.clone());
            }
            if !image.names.iter().eq(names.iter()) {
                Arc::make_mut(image).names = names.into_iter().collect();
            }
        }
        Ok(())
    }

    fn save(&self, index: &Index) -> Result<(), StoreError> {
        let (path, next) = (self.index_path(), self.root.join("images.json.next"));
        let bytes = serde_json::to_vec_pretty(index)
            .map_err(|error| StoreError::Invalid { what: "list (images.json)", why: error.to_string() })?;
        let mut file = File::create(&next).map_err(StoreError::at(&next))?;
        if let Err(error) = file.write_all(&bytes).and_then(|()| file.sync_data()) {
            drop(fs::remove_file(&next));
            return Err(StoreError::at(&next)(error));
        }
        fs::rename(&next, &path).map_err(StoreError::at(&path))?;
        File::open(&self.root).and_then(|folder| folder.sync_all()).map_err(StoreError::at(&self.root))
    }

    fn layer_path(&self, diff_id: &str) -> Result<PathBuf, StoreError> {
        if !name::is_digest(diff_id) {
            return Err(StoreError::Invalid { what: "configuration", why: format!("{diff_id:?} is not a diff id") });
        }
        let hex = diff_id.split_once(':').map_or("", |(_, hex)| hex);
        Ok(self.root.join("layers").join(&hex[..24]))
    }

    /// The unpacked layer, unpacked now if it is missing: under a temporary name, flushed, then renamed.
    pub(super) fn unpack(&self, layer: &Layer, progress: &OnProgress) -> Result<PathBuf, StoreError> {
        let path = self.layer_path(&layer.diff_id)?;
        if path.is_dir() {
            return Ok(path);
        }
        let lock = self.unpacking.lock().entry(layer.diff_id.clone()).or_default().clone();
        let held = lock.lock();
        if path.is_dir() {
            return Ok(path);
        }
        let result = self.unpack_to(layer, &path, progress);
        drop(held);
        self.unpacking.lock().remove(&layer.diff_id);
        if result.is_ok() {
            self.unclaimed.lock().insert(path.clone());
        }
        result.map(|()| path)
    }

    fn unpack_to(&self, layer: &Layer, path: &Path, progress: &OnProgress) -> Result<(), StoreError> {
        let failed = |source| StoreError::Layer { layer: layer.digest.clone(), source };
        let blob_path = self.blobs.path(&layer.digest)?;
        let blob = File::open(&blob_path).map_err(StoreError::at(&blob_path))?;
        let temporary = self.root.join("tmp").join(uuid::Uuid::new_v4().to_string());
        fs::create_dir(&temporary).map_err(StoreError::at(&temporary))?;
        let mut told = 0;
        let result = unpack::unpack(blob, &temporary, Some(&layer.diff_id), &mut |bytes| {
            // Not at every read: one in each mebibyte is enough for a bar.
            if bytes >= told + (1 << 20) || bytes == layer.size {
                told = bytes;
                progress(Progress::Unpacking { layer: layer.digest.clone(), bytes, total: layer.size });
            }
        });
        let renamed = result.map_err(failed).and_then(|_| fs::rename(&temporary, path).map_err(StoreError::at(path)));
        if let Err(error) = renamed {
            drop(fs::remove_dir_all(&temporary));
            return Err(error);
        }
        let layers = self.root.join("layers");
        File::open(&layers).and_then(|folder| folder.sync_all()).map_err(StoreError::at(&layers))?;
        progress(Progress::Done { layer: layer.digest.clone() });
        Ok(())
    }

    /// The diff id of a layer that no configuration names yet.
    pub(super) fn diff_id(&self, digest: &str) -> Result<String, StoreError> {
        let path = self.blobs.path(digest)?;
        let file = File::open(&path).map_err(StoreError::at(&path))?;
        let plain = unpack::decompress(file).map_err(StoreError::at(&path))?;
        let mut reader = HashingReader::new(io::Read::take(plain, unpack::MAX_EXPANDED + 1), Hasher::sha256());
        io::copy(&mut reader, &mut io::sink()).map_err(StoreError::at(&path))?;
        if reader.bytes > unpack::MAX_EXPANDED {
            return Err(StoreError::Layer { layer: digest.into(), source: UnpackError::TooLarge });
        }
        Ok(reader.hasher.finish())
    }

    /// Forgets the names of images that were made from the embedded registry's content, if `gone` says so of the first part
    /// of their repository's name.
    pub(super) fn forget_made(&self, gone: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        let is_gone = |name: &String| {
            let rest = name.strip_prefix(REGISTRY_HOST).and_then(|rest| rest.strip_prefix('/'));
            rest.and_then(owner_name).is_some_and(&gone)
        };
        let mut known = self.known.write();
        let made: Vec<Arc<Image>> =
            known.by_manifest.values().filter(|image| image.names.iter().any(is_gone)).cloned().collect();
        for image in made.iter().filter(|image| self.is_marked_pulled(&image.digest)) {
            let left: BTreeSet<String> = image.names.iter().filter(|name| !is_gone(name)).cloned().collect();
            self.rename(&mut known, &image.digest, left)?;
        }
        Ok(())
    }

    /// Forgets images that were made from what has since been deleted from the embedded registry, unless something runs.
    fn forget_deleted(&self, in_use: &HashSet<PathBuf>) -> Result<(), StoreError> {
        let mut known = self.known.write();
        let made: Vec<Arc<Image>> = known.by_manifest.values().cloned().collect();
        for image in made {
            let own =
                image.names.iter().all(|name| name.starts_with(REGISTRY_HOST)) && self.is_marked_pulled(&image.digest);
            let paths: Vec<PathBuf> =
                image.layers.iter().map(|l| self.layer_path(&l.diff_id)).collect::<Result<_, _>>()?;
            if own && !self.repositories.holds(&image.digest) && !paths.iter().any(|path| in_use.contains(path)) {
                self.rename(&mut known, &image.digest, BTreeSet::new())?;
            }
        }
        Ok(())
    }

    /// The blobs and unpacked layers that images and repositories need.
    fn needed(&self) -> Result<(HashSet<String>, HashSet<PathBuf>), StoreError> {
        let (mut blobs, mut layers) = (self.repositories.needed(), HashSet::new());
        for image in self.known.read().by_manifest.values() {
            blobs.extend([image.digest.clone(), image.id.clone()]);
            for layer in &image.layers {
                blobs.insert(layer.digest.clone());
                layers.insert(self.layer_path(&layer.diff_id)?);
            }
        }
        Ok((blobs, layers))
    }

    /// Removes what was brought for an image that will not be complete. While somebody else adds content, that is left to
    /// the next collection: theirs may look the same.
    pub(super) fn give_up(&self) {
        let Ok(_alone) = self.activity.try_write() else { return };
        if let Err(error) = self.remove_unclaimed() {
            tracing::warn!(%error, "what was brought for an image that failed could not be removed; it will be tried again");
        }
    }

    fn remove_unclaimed(&self) -> Result<(), StoreError> {
        let (blobs, layers) = self.needed()?;
        for digest in self.blobs.list()?.into_iter().filter(|digest| !blobs.contains(digest)) {
            self.pins.unless_pinned(&digest, || self.blobs.remove(&digest)).transpose()?;
        }
        let unclaimed = std::mem::take(&mut *self.unclaimed.lock());
        for path in unclaimed.into_iter().filter(|path| !layers.contains(path)) {
            let doomed = self.put_aside(&path)?;
            fs::remove_dir_all(&doomed).map_err(StoreError::at(&doomed))?;
        }
        Ok(())
    }

    /// So that a crash never leaves half a layer under its name.
    fn put_aside(&self, path: &Path) -> Result<PathBuf, StoreError> {
        let doomed = self.root.join("tmp").join(uuid::Uuid::new_v4().to_string());
        fs::rename(path, &doomed).map_err(StoreError::at(path))?;
        Ok(doomed)
    }

    /// Removes blobs, and puts layers aside as trees for the caller to remove.
    fn collect(&self, in_use: &HashSet<PathBuf>) -> Result<(Collected, Vec<PathBuf>), StoreError> {
        self.forget_deleted(in_use)?;
        let (blobs, layers) = self.needed()?;
        // What was known of images that are gone.
        for entry in fs::read_dir(self.root.join("pulled")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let known = |digest: &String| digest.split_once(':').is_some_and(|(_, hex)| *hex == *name);
            if !blobs.iter().any(known) {
                let _ = fs::remove_file(entry.path());
            }
        }
        // As a text, because a mount's options name many directories in one line.
        let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let (mut collected, mut aside) = (Collected::default(), Vec::new());
        for digest in self.blobs.list()? {
            if blobs.contains(&digest) {
                continue;
            }
            if let Some(removed) = self.pins.unless_pinned(&digest, || self.blobs.remove(&digest)) {
                collected.bytes += removed?;
                collected.blobs += 1;
            }
        }
        let folder = self.root.join("layers");
        for entry in fs::read_dir(&folder).map_err(StoreError::at(&folder))? {
            let path = entry.map_err(StoreError::at(&folder))?.path();
            let is_mounted = path.to_str().is_none_or(|path| mounted.contains(path));
            if layers.contains(&path) || in_use.contains(&path) || is_mounted {
                continue;
            }
            aside.push(self.put_aside(&path)?);
            collected.layers += 1;
        }
        Ok((collected, aside))
    }
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::Invalid { what, why: error.to_string() })
}

/// A manifest's layers with the diff ids of the configuration.
fn pair(manifest: &Manifest, config: &ConfigBlob) -> Result<Vec<Layer>, StoreError> {
    let (layers, ids) = (&manifest.layers, &config.rootfs.diff_ids);
    if layers.len() != ids.len() {
        let why = format!("the manifest has {} layers, the configuration {}", layers.len(), ids.len());
        return Err(StoreError::Invalid { what: "manifest", why });
    }
    if layers.len() > MAX_LAYERS {
        return Err(StoreError::Invalid { what: "manifest", why: format!("it has more than {MAX_LAYERS} layers") });
    }
    let mut all = Vec::with_capacity(layers.len());
    for (layer, diff_id) in layers.iter().zip(ids) {
        if !name::is_digest(diff_id) || !name::is_digest(&layer.digest) {
            return Err(StoreError::Invalid { what: "manifest", why: "a layer's digest is malformed".into() });
        }
        all.push(Layer { digest: layer.digest.clone(), diff_id: diff_id.clone(), size: layer.size });
    }
    Ok(all)
}
