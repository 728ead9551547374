//! Content that clients push into the embedded registry, and images made of it: the blobs are the store's own, so an image
//! that was pushed here runs without being fetched or written again.
//!
//! Guarantee: content is a blob of its repository before it is acknowledged, and no collection of garbage comes in between.

use super::{
    MAX_DOCUMENT, OnProgress,
    blobs::{BlobError, Hasher, Incoming},
    config::{self, Index},
    name::{self, ImageName},
    pull::PullError,
    repositories::{Owner, Repositories, RepositoryError, held_of},
    store::{Image, ImageStore, Inner, StoreError, blocking, parse},
};
use std::{
    collections::HashSet,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    sync::Arc,
};

pub use kfbox_api::names::REGISTRY_HOST;

/// A blob on its way; gone when dropped.
pub struct Upload {
    incoming: Incoming,
    hasher: Hasher,
    bytes: u64,
}

impl Upload {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Blocking. What could not be written whole is not counted: the next piece begins where the last good one ended.
    pub fn append(&mut self, piece: &[u8]) -> Result<(), StoreError> {
        if self.bytes + piece.len() as u64 > super::import::MAX_BLOB {
            return Err(BlobError::TooLong { limit: super::import::MAX_BLOB }.into());
        }
        let written = self.incoming.file.seek(SeekFrom::Start(self.bytes));
        written.and_then(|_| self.incoming.file.write_all(piece)).map_err(StoreError::at(&self.incoming.path))?;
        self.hasher.update(piece);
        self.bytes += piece.len() as u64;
        Ok(())
    }

    /// The digest by the algorithm that `wanted` names.
    fn digest(&mut self, wanted: &str) -> Result<String, StoreError> {
        let mut hasher = Hasher::like(wanted)?;
        if let Hasher::Sha256(_) = hasher {
            return Ok(std::mem::replace(&mut self.hasher, Hasher::sha256()).finish());
        }
        // The other is rare enough to be read once more.
        let path = self.incoming.path.clone();
        self.incoming.file.rewind().map_err(StoreError::at(&path))?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match self.incoming.file.read(&mut buffer).map_err(StoreError::at(&path))? {
                0 => return Ok(hasher.finish()),
                n => hasher.update(&buffer[..n]),
            }
        }
    }
}

impl ImageStore {
    pub fn repositories(&self) -> &Repositories {
        &self.inner.repositories
    }

    pub async fn begin_upload(&self) -> Result<Upload, StoreError> {
        let inner = self.inner.clone();
        blocking(move || Ok(Upload { incoming: inner.blobs.incoming()?, hasher: Hasher::sha256(), bytes: 0 })).await
    }

    /// Makes an upload a blob of a repository, if it has this digest.
    pub async fn finish_upload(
        &self,
        owner: &Owner,
        repository: &str,
        mut upload: Upload,
        digest: &str,
    ) -> Result<(), RepositoryError> {
        let (owner, repository, digest) = (owner.clone(), repository.to_owned(), digest.to_owned());
        self.changing(move |inner| {
            let found = upload.digest(&digest)?;
            if found != digest {
                return Err(BlobError::Mismatch { expected: digest, found }.into());
            }
            // A write that failed may have left bytes beyond the last good one.
            let path = upload.incoming.path.clone();
            upload.incoming.file.set_len(upload.bytes).map_err(StoreError::at(&path))?;
            inner.new_owner(&owner)?;
            inner.blobs.keep(upload.incoming, &digest)?;
            inner.repositories.link_blob(&owner, &repository, &digest)
        })
        .await
    }

    /// Gives a repository a blob that another has. False when that one does not have it.
    pub async fn mount_blob(
        &self,
        from: (&Owner, &str),
        to: (&Owner, &str),
        digest: &str,
    ) -> Result<bool, RepositoryError> {
        let (from, to) = ((from.0.clone(), from.1.to_owned()), (to.0.clone(), to.1.to_owned()));
        let digest = digest.to_owned();
        self.changing(move |inner| {
            if !inner.repositories.has_blob(&from.0, &from.1, &digest) || !inner.blobs.has(&digest) {
                return Ok(false);
            }
            inner.new_owner(&to.0)?;
            inner.repositories.link_blob(&to.0, &to.1, &digest).map(|()| true)
        })
        .await
    }

    /// Stores a manifest or an index under its digest, which `reference` may name, or else is a tag. Returns the digest.
    pub async fn put_manifest(
        &self,
        owner: &Owner,
        repository: &str,
        document: Vec<u8>,
        media_type: &str,
        reference: &str,
    ) -> Result<String, ManifestError> {
        let held = held_of(&document, media_type).map_err(ManifestError::Invalid)?;
        let (owner, repository, reference) = (owner.clone(), repository.to_owned(), reference.to_owned());
        self.changing(move |inner| {
            let by_digest = name::is_digest(&reference);
            let expected = by_digest.then_some(reference.as_str());
            inner.new_owner(&owner)?;
            let (digest, _) = inner.blobs.write(&document[..], expected, MAX_DOCUMENT)?;
            let tag = (!by_digest).then_some(reference.as_str());
            inner.repositories.put_manifest(&owner, &repository, &digest, held, tag)?;
            Ok(digest)
        })
        .await
        .map_err(ManifestError::Repository)
    }

    /// A blob's file and its size; the caller has made sure that it may be read.
    pub async fn open_blob(&self, digest: &str) -> Result<(File, u64), StoreError> {
        let (inner, digest) = (self.inner.clone(), digest.to_owned());
        blocking(move || {
            let path = inner.blobs.path(&digest)?;
            let file = File::open(&path).map_err(StoreError::at(&path))?;
            let size = file.metadata().map_err(StoreError::at(&path))?.len();
            Ok((file, size))
        })
        .await
    }

    pub async fn read_document(&self, digest: &str) -> Result<Vec<u8>, StoreError> {
        let (inner, digest) = (self.inner.clone(), digest.to_owned());
        blocking(move || Ok(inner.blobs.read_small(&digest)?)).await
    }

    /// Changes what the registry holds.
    pub async fn changing_repositories<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Repositories) -> Result<T, RepositoryError> + Send + 'static,
    ) -> Result<T, RepositoryError> {
        self.changing(move |inner| work(&inner.repositories)).await
    }

    /// Off the asynchronous threads, while no garbage is collected.
    async fn changing<T: Send + 'static, E: From<StoreError> + Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let guard = self.inner.activity.clone().read_owned().await;
        let inner = self.inner.clone();
        blocking(move || {
            let _guard = guard;
            work(&inner)
        })
        .await
    }

    /// What a pod's image name comes to, by the configured aliases.
    pub fn target(&self, name: &str) -> Option<ImageName> {
        let parsed = ImageName::parse(name).ok()?;
        match name::alias_of(&self.inner.config.aliases, &parsed) {
            Some(alias) => ImageName::parse(&alias).ok(),
            None => Some(parsed),
        }
    }

    /// An image of the embedded registry's name that is ready to run: imported under that name, or made from what this
    /// owner pushed.
    pub fn resolve_own(&self, owner: &Owner, name: &ImageName) -> Option<Image> {
        let image = self.resolve(&name.key())?;
        let own = !self.is_pulled(&image) || self.inner.repositories.knows(owner, &name.repository);
        own.then_some(image)
    }

    /// Makes a pushed image ready to run. Nothing leaves or enters the machine.
    pub async fn pull_own(&self, owner: &Owner, target: &ImageName, progress: OnProgress) -> Result<Image, PullError> {
        let missing = || PullError::NotFound { name: target.to_string(), registry: REGISTRY_HOST.into() };
        let failed = |source| PullError::Store { name: target.to_string(), source: Arc::new(source) };
        let reference = target.digest.as_deref().or(target.tag.as_deref()).unwrap_or("latest");
        let held = self.inner.repositories.manifest(owner, &target.repository, reference);
        let (mut digest, held) = held.ok_or_else(missing)?;
        let mut names = vec![target.clone()];
        if config::INDEX_TYPES.contains(&held.media_type.as_str()) {
            let bytes = self.read_document(&digest).await.map_err(failed)?;
            let index: Index = parse("index", &bytes).map_err(failed)?;
            let fits = config::for_this_machine(&index.manifests);
            let fits = fits.ok_or_else(|| PullError::NoPlatform { name: target.to_string() })?;
            names.push(ImageName { digest: Some(digest), ..target.clone() });
            digest = fits.digest.clone();
        }
        let owner = owner.clone();
        let made = self.changing(move |inner| {
            inner.new_owner(&owner)?;
            let imported = inner.has(&digest) && !inner.is_marked_pulled(&digest);
            if !imported {
                inner.mark_pulled(&digest, None)?;
            }
            inner.commit(&digest, &names, &progress)
        });
        made.await.map_err(failed)
    }

    /// Removes the repositories of namespaces that are no more, by their uids, and the names of images made from them.
    pub async fn forget_owners(&self, gone: HashSet<String>) -> Result<(), StoreError> {
        self.changing(move |inner| {
            let names = inner.repositories.forget(&gone)?;
            inner.forget_made(|owner| names.contains(owner))
        })
        .await
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Repository(RepositoryError),
}

impl Inner {
    /// Before a namespace's first repository: images that were made from what an earlier one of that name had are not its.
    fn new_owner(&self, owner: &Owner) -> Result<(), StoreError> {
        if self.repositories.has_owner(owner) {
            return Ok(());
        }
        self.forget_made(|name| name == owner.name)
    }
}
