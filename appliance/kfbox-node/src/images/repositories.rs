//! What the embedded registry holds: repositories, each with its blobs, manifests and tags. The content itself is among
//! the store's blobs, once, however many repositories name it and whether or not it is an image of the node's.
//!
//! `registry/OWNER/REPOSITORY/{blobs,manifests,tags}/` holds one small file for each, so that every change is one file that
//! appears or goes. OWNER is a namespace's uid: a namespace made anew under an old name finds nothing of the old one's.
//!
//! Guarantees: what was acknowledged is on disk; a manifest names only content that its own repository has; nobody reaches
//! a blob by its digest alone, but only through a repository that links it.
//! Source: OCI distribution-spec 1.1, image-spec `manifest.md` and `image-index.md`.

use super::{
    blobs::{BlobError, Blobs},
    config::Descriptor,
    name,
    store::StoreError,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The folder of what belongs to everybody, and the first part of its repositories' names.
pub const SHARED: &str = "library";
/// Enough for a laboratory; bounds what one namespace's member can make the daemon keep in memory (some 300 bytes each).
const MAX_REPOSITORIES: usize = 1_000;
const MAX_ENTRIES: usize = 10_000;
/// A blob that no manifest names may be one whose manifest is on its way.
const GRACE: Duration = Duration::from_secs(3600);

/// Whose a repository is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The first part of the repositories' names: a namespace's name, or [`SHARED`].
    pub name: String,
    /// The namespace's uid, or [`SHARED`].
    folder: String,
}

impl Owner {
    pub fn shared() -> Self {
        Self { name: SHARED.into(), folder: SHARED.into() }
    }

    /// Of a namespace; `None` when the uid is no uid.
    pub fn namespace(name: &str, uid: &str) -> Option<Self> {
        let fine = |c: char| c.is_ascii_hexdigit() || c == '-';
        let is_uid = (8..=64).contains(&uid.len()) && uid.chars().all(fine);
        is_uid.then(|| Self { name: name.into(), folder: uid.into() })
    }
}

/// The first part of a repository's name, which says whose it is. `None` for a name of one part.
pub fn owner_name(repository: &str) -> Option<&str> {
    repository.split_once('/').map(|(owner, _)| owner)
}

#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("the repository does not have the blob {0}")]
    BlobUnknown(String),
    #[error("the repository does not have the manifest {0}, which this index names")]
    ChildUnknown(String),
    #[error("this registry keeps at most {0}")]
    TooMany(&'static str),
    #[error("{0} needs this blob; delete that first")]
    InUse(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<BlobError> for RepositoryError {
    fn from(error: BlobError) -> Self {
        Self::Store(error.into())
    }
}

/// What is known of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub media_type: String,
    pub size: u64,
    /// Configuration and layers.
    pub blobs: Vec<String>,
    /// The manifests of an index.
    pub children: Vec<String>,
    /// What it is attached to: a signature to an image.
    pub subject: Option<String>,
    pub artifact_type: String,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Default)]
struct Repository {
    /// When somebody last relied on it.
    blobs: BTreeMap<String, Option<Instant>>,
    manifests: BTreeMap<String, Held>,
    tags: BTreeMap<String, String>,
}

/// In a manifest's file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    media_type: String,
}

type Key = (String, String);

pub struct Repositories {
    root: PathBuf,
    all: Mutex<BTreeMap<Key, Repository>>,
}

impl Repositories {
    /// Reads what is there. What a crash left half-written, or whose content is gone, is dropped. Blocking.
    pub fn open(root: PathBuf, blobs: &Blobs) -> Result<Self, StoreError> {
        fs::create_dir_all(&root).map_err(StoreError::at(&root))?;
        let mut all = BTreeMap::new();
        for owner in names_in(&root) {
            for encoded in names_in(&root.join(&owner)) {
                let folder = root.join(&owner).join(&encoded);
                let repository = Repository::read(&folder, blobs);
                all.insert((owner.clone(), encoded.replace('+', "/")), repository);
            }
        }
        Ok(Self { root, all: Mutex::new(all) })
    }

    fn folder(&self, owner: &Owner, repository: &str) -> PathBuf {
        // A name's parts are of letters, digits, `.`, `_` and `-`.
        self.root.join(&owner.folder).join(repository.replace('/', "+"))
    }

    /// Whether the repository has the blob. Who asks will rely on the answer: it stays for a while.
    pub fn has_blob(&self, owner: &Owner, repository: &str, digest: &str) -> bool {
        let mut all = self.all.lock();
        let seen = all.get_mut(&key(owner, repository)).and_then(|r| r.blobs.get_mut(digest));
        seen.map(|seen| *seen = Some(Instant::now())).is_some()
    }

    /// Makes a blob of the store one of the repository's. Blocking.
    pub fn link_blob(&self, owner: &Owner, repository: &str, digest: &str) -> Result<(), RepositoryError> {
        let mut all = self.all.lock();
        let entry = self.entry(&mut all, owner, repository)?;
        if !entry.blobs.contains_key(digest) {
            room(entry.blobs.len(), "10000 blobs in a repository")?;
            write(&self.folder(owner, repository).join("blobs").join(file_name(digest)), b"")?;
        }
        entry.blobs.insert(digest.to_owned(), Some(Instant::now()));
        Ok(())
    }

    /// Blocking. False when it does not have it.
    pub fn unlink_blob(&self, owner: &Owner, repository: &str, digest: &str) -> Result<bool, RepositoryError> {
        let mut all = self.all.lock();
        let Some(entry) = all.get_mut(&key(owner, repository)) else { return Ok(false) };
        if !entry.blobs.contains_key(digest) {
            return Ok(false);
        }
        let user = entry.manifests.iter().find(|(_, held)| held.blobs.iter().any(|blob| blob == digest));
        if let Some((manifest, _)) = user {
            return Err(RepositoryError::InUse(manifest.clone()));
        }
        remove(&self.folder(owner, repository).join("blobs").join(file_name(digest)))?;
        entry.blobs.remove(digest);
        Ok(true)
    }

    /// Adds a manifest whose bytes are among the store's blobs, and gives it a tag. Blocking.
    pub fn put_manifest(
        &self,
        owner: &Owner,
        repository: &str,
        digest: &str,
        held: Held,
        tag: Option<&str>,
    ) -> Result<(), RepositoryError> {
        let mut all = self.all.lock();
        let entry = self.entry(&mut all, owner, repository)?;
        if let Some(missing) = held.blobs.iter().find(|blob| !entry.blobs.contains_key(*blob)) {
            return Err(RepositoryError::BlobUnknown(missing.clone()));
        }
        if let Some(missing) = held.children.iter().find(|child| !entry.manifests.contains_key(*child)) {
            return Err(RepositoryError::ChildUnknown(missing.clone()));
        }
        let folder = self.folder(owner, repository);
        if entry.manifests.get(digest).is_none_or(|known| known.media_type != held.media_type) {
            room(entry.manifests.len(), "10000 manifests in a repository")?;
            let file = serde_json::to_vec(&Entry { media_type: held.media_type.clone() }).unwrap_or_default();
            write(&folder.join("manifests").join(file_name(digest)), &file)?;
        }
        entry.manifests.insert(digest.to_owned(), held);
        if let Some(tag) = tag
            && entry.tags.get(tag).is_none_or(|known| known != digest)
        {
            if !entry.tags.contains_key(tag) {
                room(entry.tags.len(), "10000 tags in a repository")?;
            }
            write(&folder.join("tags").join(tag), digest.as_bytes())?;
            entry.tags.insert(tag.to_owned(), digest.to_owned());
        }
        Ok(())
    }

    /// By tag or digest: the digest and what is known.
    pub fn manifest(&self, owner: &Owner, repository: &str, reference: &str) -> Option<(String, Held)> {
        let all = self.all.lock();
        let entry = all.get(&key(owner, repository))?;
        let digest = if name::is_digest(reference) { reference } else { entry.tags.get(reference)? };
        Some((digest.to_owned(), entry.manifests.get(digest)?.clone()))
    }

    /// Removes a tag, or by digest a manifest with all its tags. False when there is none. Blocking.
    pub fn delete_manifest(&self, owner: &Owner, repository: &str, reference: &str) -> Result<bool, RepositoryError> {
        let mut all = self.all.lock();
        let Some(entry) = all.get_mut(&key(owner, repository)) else { return Ok(false) };
        let folder = self.folder(owner, repository);
        if !name::is_digest(reference) {
            if !entry.tags.contains_key(reference) {
                return Ok(false);
            }
            remove(&folder.join("tags").join(reference))?;
            entry.tags.remove(reference);
            return Ok(true);
        }
        if !entry.manifests.contains_key(reference) {
            return Ok(false);
        }
        // Tags first: a crash in between leaves a manifest without a tag, never a tag without its manifest.
        let tags: Vec<String> = entry.tags.iter().filter(|(_, d)| *d == reference).map(|(t, _)| t.clone()).collect();
        for tag in tags {
            remove(&folder.join("tags").join(&tag))?;
            entry.tags.remove(&tag);
        }
        remove(&folder.join("manifests").join(file_name(reference)))?;
        let held = entry.manifests.remove(reference);
        // Nobody waits for these any more, unless they ask again.
        for blob in held.into_iter().flat_map(|held| held.blobs) {
            if let Some(seen) = entry.blobs.get_mut(&blob) {
                *seen = None;
            }
        }
        Ok(true)
    }

    /// In order, those after `last`. `None` when there is no such repository.
    pub fn tags(&self, owner: &Owner, repository: &str, last: &str, count: usize) -> Option<Vec<String>> {
        let all = self.all.lock();
        let tags = &all.get(&key(owner, repository))?.tags;
        Some(tags.keys().filter(|tag| tag.as_str() > last).take(count).cloned().collect())
    }

    /// Repositories of an owner that have a manifest, in order.
    pub fn of(&self, owner: &Owner) -> Vec<String> {
        let all = self.all.lock();
        let first = (owner.folder.clone(), String::new());
        let own = all.range(first..).take_while(|((folder, _), _)| *folder == owner.folder);
        own.filter(|(_, r)| !r.manifests.is_empty()).map(|((_, name), _)| name.clone()).collect()
    }

    /// Whether anything was ever pushed there.
    pub fn knows(&self, owner: &Owner, repository: &str) -> bool {
        self.all.lock().contains_key(&key(owner, repository))
    }

    /// What is attached to a manifest, as the entries of an index.
    pub fn referrers(&self, owner: &Owner, repository: &str, subject: &str) -> Vec<(String, Held)> {
        let all = self.all.lock();
        let manifests = all.get(&key(owner, repository)).into_iter().flat_map(|r| &r.manifests);
        let attached = manifests.filter(|(_, held)| held.subject.as_deref() == Some(subject));
        attached.map(|(digest, held)| (digest.clone(), held.clone())).collect()
    }

    /// Whether the owner ever had a repository.
    pub fn has_owner(&self, owner: &Owner) -> bool {
        let first = (owner.folder.clone(), String::new());
        self.all.lock().range(first..).next().is_some_and(|((folder, _), _)| *folder == owner.folder)
    }

    /// Whether any repository has this manifest.
    pub fn holds(&self, digest: &str) -> bool {
        self.all.lock().values().any(|repository| repository.manifests.contains_key(digest))
    }

    /// Drops links of blobs that no manifest names any more, and returns every digest that is needed. Blocking.
    pub fn needed(&self) -> HashSet<String> {
        let mut all = self.all.lock();
        let mut needed = HashSet::new();
        for ((owner, name), entry) in all.iter_mut() {
            let named: BTreeSet<&String> = entry.manifests.values().flat_map(|held| &held.blobs).collect();
            let folder = self.root.join(owner).join(name.replace('/', "+")).join("blobs");
            let stale = entry
                .blobs
                .iter()
                .filter(|(digest, seen)| !named.contains(digest) && seen.is_none_or(|seen| seen.elapsed() > GRACE));
            let stale: Vec<String> = stale.map(|(digest, _)| digest.clone()).collect();
            for digest in stale {
                if remove(&folder.join(file_name(&digest))).is_ok() {
                    entry.blobs.remove(&digest);
                }
            }
            needed.extend(entry.blobs.keys().cloned());
            needed.extend(entry.manifests.keys().cloned());
        }
        needed
    }

    /// The uids of the namespaces that have repositories.
    pub fn owners(&self) -> HashSet<String> {
        self.all.lock().keys().map(|(folder, _)| folder.clone()).filter(|folder| folder != SHARED).collect()
    }

    /// Removes all that these namespaces, by their uids, had. Returns the namespaces' names. Blocking.
    pub fn forget(&self, gone: &HashSet<String>) -> Result<HashSet<String>, StoreError> {
        let mut all = self.all.lock();
        for folder in gone {
            let path = self.root.join(folder);
            fs::remove_dir_all(&path).map_err(StoreError::at(&path))?;
        }
        let mut names = HashSet::new();
        all.retain(|(folder, name), _| {
            let stays = !gone.contains(folder);
            if !stays {
                names.extend(owner_name(name).map(str::to_owned));
            }
            stays
        });
        Ok(names)
    }

    fn entry<'a>(
        &self,
        all: &'a mut BTreeMap<Key, Repository>,
        owner: &Owner,
        repository: &str,
    ) -> Result<&'a mut Repository, RepositoryError> {
        let key = key(owner, repository);
        if !all.contains_key(&key) {
            let own = all.keys().filter(|(folder, _)| *folder == owner.folder).count();
            if own >= MAX_REPOSITORIES {
                return Err(RepositoryError::TooMany("1000 repositories in a namespace"));
            }
            let folder = self.folder(owner, repository);
            for kind in ["blobs", "manifests", "tags"] {
                let path = folder.join(kind);
                fs::create_dir_all(&path).map_err(StoreError::at(&path))?;
            }
            for path in [folder.as_path(), &self.root.join(&owner.folder), &self.root] {
                File::open(path).and_then(|f| f.sync_all()).map_err(StoreError::at(path))?;
            }
        }
        Ok(all.entry(key).or_default())
    }
}

impl Repository {
    fn read(folder: &Path, blobs: &Blobs) -> Self {
        let mut found = Self::default();
        let now = Some(Instant::now());
        for name in names_in(&folder.join("blobs")) {
            if let Some(digest) = digest_of_file(&name).filter(|digest| blobs.has(digest)) {
                found.blobs.insert(digest, now);
            }
        }
        for name in names_in(&folder.join("manifests")) {
            let Some(digest) = digest_of_file(&name) else { continue };
            let path = folder.join("manifests").join(&name);
            let held = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Entry>(&bytes).ok());
            let held = held.and_then(|entry| held_of(&blobs.read_small(&digest).ok()?, &entry.media_type).ok());
            match held {
                Some(held) => drop(found.manifests.insert(digest, held)),
                None => {
                    tracing::warn!(path = %path.display(), "a manifest of the registry cannot be read and is dropped")
                }
            }
        }
        for tag in names_in(&folder.join("tags")) {
            let digest = fs::read_to_string(folder.join("tags").join(&tag)).unwrap_or_default();
            if found.manifests.contains_key(&digest) {
                found.tags.insert(tag, digest);
            }
        }
        found
    }
}

/// What a manifest or an index says; why it is neither.
pub fn held_of(bytes: &[u8], media_type: &str) -> Result<Held, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Document {
        schema_version: u32,
        #[serde(default)]
        media_type: String,
        #[serde(default)]
        artifact_type: String,
        config: Option<Descriptor>,
        layers: Option<Vec<Layer>>,
        manifests: Option<Vec<Descriptor>>,
        subject: Option<Descriptor>,
        #[serde(default)]
        annotations: Option<BTreeMap<String, String>>,
    }
    #[derive(Deserialize)]
    struct Layer {
        digest: String,
        /// Content that is elsewhere by its maker's wish is not asked for here.
        #[serde(default)]
        urls: Option<Vec<String>>,
    }
    let document: Document = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if document.schema_version != 2 {
        return Err(format!("schema version {} is not taken, only 2", document.schema_version));
    }
    if !document.media_type.is_empty() && document.media_type != media_type {
        return Err(format!("it says that it is {:?}, and came as {media_type:?}", document.media_type));
    }
    let is_index = super::config::INDEX_TYPES.contains(&media_type);
    if !is_index && !super::config::MANIFEST_TYPES.contains(&media_type) {
        return Err(format!("{media_type:?} is not the type of an image manifest or index"));
    }
    let mut artifact_type = document.artifact_type;
    let (blobs, children) = match (is_index, document.config, document.layers, document.manifests) {
        (false, Some(config), Some(layers), None) => {
            if artifact_type.is_empty() {
                artifact_type.clone_from(&config.media_type);
            }
            let layers = layers.into_iter().filter(|layer| layer.urls.as_ref().is_none_or(Vec::is_empty));
            (std::iter::once(config.digest).chain(layers.map(|layer| layer.digest)).collect(), Vec::new())
        }
        (true, None, None, Some(manifests)) => (Vec::new(), manifests.into_iter().map(|m| m.digest).collect()),
        _ => return Err("a manifest has a config and layers, an index has manifests".into()),
    };
    let subject = document.subject.map(|subject| subject.digest);
    let named: Vec<&String> = blobs.iter().chain(&children).chain(&subject).collect();
    if let Some(bad) = named.iter().find(|digest| !name::is_digest(digest)) {
        return Err(format!("{:?} is not a digest", bad.chars().take(160).collect::<String>()));
    }
    Ok(Held {
        media_type: media_type.to_owned(),
        size: bytes.len() as u64,
        blobs,
        children,
        subject,
        artifact_type,
        annotations: document.annotations.unwrap_or_default(),
    })
}

fn key(owner: &Owner, repository: &str) -> Key {
    (owner.folder.clone(), repository.to_owned())
}

fn room(have: usize, what: &'static str) -> Result<(), RepositoryError> {
    if have >= MAX_ENTRIES { Err(RepositoryError::TooMany(what)) } else { Ok(()) }
}

fn file_name(digest: &str) -> String {
    digest.replacen(':', "-", 1)
}

fn digest_of_file(name: &str) -> Option<String> {
    Some(name.replacen('-', ":", 1)).filter(|digest| name::is_digest(digest))
}

/// The names in a folder; what is on its way to one begins with a dot.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| !name.starts_with('.')).collect()
}

fn write(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(path);
    let next = folder.join(".next");
    let written = File::create(&next).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_data()
    });
    written.map_err(StoreError::at(&next))?;
    fs::rename(&next, path).map_err(StoreError::at(path))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::at(folder))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StoreError::at(path)(error)),
        _ => {}
    }
    let folder = path.parent().unwrap_or(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::at(folder))
}
