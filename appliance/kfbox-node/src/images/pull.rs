//! Images from a registry. Source: OCI distribution-spec; Docker's `config.json` for credentials.
//!
//! Guarantees: one name is pulled once at a time however many ask, as long as they bring the same credentials; a download
//! that breaks goes on where it stopped; a machine that reaches no registry learns so within the connect time-out.

use super::{
    ImageConfig, MAX_DOCUMENT, OnProgress, Progress,
    blobs::{BlobError, Hasher, Incoming, digest_of},
    config::{self, ConfigBlob, Descriptor, INDEX_TYPES, Index, MANIFEST_TYPES, Manifest},
    name::{self, ImageName, InvalidName},
    pins::Pinned,
    store::{Image, ImageStore, Inner, StoreError, blocking, parse},
};
use base64::Engine as _;
use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::{BoxFuture, Shared, WeakShared},
};
pub use oci_client::secrets::RegistryAuth;
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol, LayerDescriptor},
    errors::{OciDistributionError, OciErrorCode},
};
use parking_lot::Mutex;
use serde::Deserialize;
use std::{collections::BTreeMap, collections::HashMap, io::Write, sync::Arc, time::Duration};

/// Layers fetched at once: enough to fill a line, few enough for the registry (Docker's own default).
const PARALLEL: usize = 3;
/// Tries of one download, with waits of 0.5, 1, 2 and 4 seconds between them.
const TRIES: u32 = 5;
/// Silence on an open connection after which it counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Chunks between the network and the disk: 16 of at most some 16 KiB each bound memory.
const IN_FLIGHT: usize = 16;

#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error("image {name} is not on this machine and pulling is switched off; load it with `kfbox image load FILE`")]
    Disabled { name: String },
    #[error("image {name} was not found at {registry}: check its name and tag")]
    NotFound { name: String, registry: String },
    #[error(
        "{registry} refuses to give image {name} to these credentials: it is private or does not exist; add an imagePullSecret"
    )]
    Unauthorized { name: String, registry: String },
    #[error(
        "cannot reach the registry {registry} for image {name} ({why}); without a network, load the image with `kfbox image load FILE`"
    )]
    Unreachable { name: String, registry: String, why: String },
    #[error("pulling image {name} from {registry} failed: {why}")]
    Registry { name: String, registry: String, why: String },
    #[error("image {name} has no variant for linux/{}", config::architecture())]
    NoPlatform { name: String },
    #[error("image {name}: {source}")]
    Store {
        name: String,
        #[source]
        source: Arc<StoreError>,
    },
}

/// Credentials by registry, as imagePullSecrets hold them. Debug output shows no secret.
#[derive(Debug, Clone, Default)]
pub struct Auths {
    /// `host[:port][/path]` and what to say there.
    entries: Vec<(String, RegistryAuth)>,
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize, Default)]
struct DockerAuth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    registrytoken: String,
}

impl Auths {
    pub fn add(&mut self, registry: &str, auth: RegistryAuth) {
        self.entries.push((registry_of(registry), auth));
    }

    /// Adds those of a `.dockerconfigjson`, or of an old `.dockercfg`, which lacks the outer `auths`. Entries that cannot
    /// be read are left out, as the kubelet does.
    pub fn add_docker_config(&mut self, json: &[u8]) {
        let entries = serde_json::from_slice::<DockerConfig>(json)
            .map(|config| config.auths)
            .or_else(|_| serde_json::from_slice::<BTreeMap<String, DockerAuth>>(json));
        for (registry, entry) in entries.into_iter().flatten() {
            let decoded = base64::engine::general_purpose::STANDARD
                .decode(entry.auth.trim())
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .and_then(|text| {
                    text.trim_end_matches('\0').split_once(':').map(|(u, p)| (u.to_owned(), p.to_owned()))
                });
            let auth = if !entry.registrytoken.is_empty() {
                RegistryAuth::Bearer(entry.registrytoken)
            } else if let Some((user, password)) = decoded {
                RegistryAuth::Basic(user, password)
            } else if !entry.username.is_empty() {
                RegistryAuth::Basic(entry.username, entry.password)
            } else {
                continue;
            };
            self.add(&registry, auth);
        }
    }

    /// What [`proof`] makes of the credentials for a name.
    pub(super) fn proof(&self, name: &ImageName) -> String {
        proof(&self.of(name))
    }

    /// Of no credentials.
    pub(super) fn default_proof() -> String {
        proof(&RegistryAuth::Anonymous)
    }

    /// The credentials for a name: those of the longest entry that the name begins with.
    pub(crate) fn of(&self, name: &ImageName) -> RegistryAuth {
        let full = name.without_tag();
        self.entries
            .iter()
            .filter(|(entry, _)| full.strip_prefix(entry).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
            .max_by_key(|(entry, _)| entry.len())
            .map_or(RegistryAuth::Anonymous, |(_, auth)| auth.clone())
    }
}

/// `https://index.docker.io/v1/` and the like, as the beginning of a name.
fn registry_of(text: &str) -> String {
    let text = text.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let text = text.strip_suffix("/v1").or_else(|| text.strip_suffix("/v2")).unwrap_or(text);
    match text {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

type Pulling = BoxFuture<'static, Result<Image, PullError>>;

/// The pulls under way.
#[derive(Default)]
pub(super) struct Pulls {
    running: Mutex<HashMap<String, (WeakShared<Pulling>, Listeners)>>,
}

type Listeners = Arc<Mutex<Vec<OnProgress>>>;

impl ImageStore {
    /// Fetches an image, whether or not it is here already, and makes it ready to run. Layers that are here are not
    /// fetched again.
    pub async fn pull(&self, name: &str, auths: &Auths, progress: OnProgress) -> Result<Image, PullError> {
        let mut target = ImageName::parse(name)?;
        if let Some(alias) = name::alias_of(&self.inner.config.aliases, &target) {
            target = ImageName::parse(&alias)?;
        }
        if target.registry == super::REGISTRY_HOST {
            // Whose it is must be known: see `pull_own`.
            return Err(PullError::NotFound { name: target.to_string(), registry: target.registry });
        }
        if !self.inner.config.pull_enabled {
            return Err(PullError::Disabled { name: target.to_string() });
        }
        let auth = auths.of(&target);
        // Callers with other credentials may be refused what these are given.
        let key = format!("{target} {}", proof(&auth));
        let running = {
            let mut pulls = self.inner.pulls.running.lock();
            pulls.retain(|_, (running, _)| running.upgrade().is_some());
            match pulls.get(&key).and_then(|(running, listeners)| Some((running.upgrade()?, listeners))) {
                Some((running, listeners)) => {
                    listeners.lock().push(progress);
                    running
                }
                None => {
                    let listeners: Listeners = Arc::new(Mutex::new(vec![progress]));
                    let all = listeners.clone();
                    let tell: OnProgress = Arc::new(move |what: Progress| {
                        // Copied out, so that a listener may take its time.
                        let listeners = all.lock().clone();
                        listeners.iter().for_each(|listener| listener(what.clone()));
                    });
                    let running: Shared<Pulling> = fetch(self.inner.clone(), target, auth, tell).boxed().shared();
                    if let Some(weak) = running.downgrade() {
                        pulls.insert(key, (weak, listeners));
                    }
                    running
                }
            }
        };
        running.await
    }
}

/// Stands for credentials without telling them.
fn proof(auth: &RegistryAuth) -> String {
    let credential = match auth {
        RegistryAuth::Anonymous => String::new(),
        RegistryAuth::Basic(user, password) => format!("{user}\n{password}"),
        RegistryAuth::Bearer(token) => format!("\n{token}"),
    };
    digest_of(credential.as_bytes())
}

/// A place to ask: a mirror or the registry itself.
#[derive(Debug, PartialEq, Eq)]
struct Endpoint {
    host: String,
    plain_http: bool,
    /// Path in front of the repository, for proxies that serve several registries.
    prefix: String,
}

fn endpoints(config: &ImageConfig, name: &ImageName) -> Vec<Endpoint> {
    let mut all = Vec::new();
    for mirror in config.mirrors.get(&name.registry).into_iter().flatten() {
        let (plain_http, rest) = match mirror.split_once("://") {
            Some((scheme, rest)) => (scheme == "http", rest),
            None => (config.insecure.contains(mirror), mirror.as_str()),
        };
        let (host, prefix) = rest.trim_end_matches('/').split_once('/').unwrap_or((rest.trim_end_matches('/'), ""));
        all.push(Endpoint { host: host.into(), plain_http, prefix: prefix.into() });
    }
    all.push(Endpoint {
        host: name.registry.clone(),
        plain_http: config.insecure.contains(&name.registry),
        prefix: String::new(),
    });
    all
}

async fn fetch(
    inner: Arc<Inner>,
    name: ImageName,
    auth: RegistryAuth,
    progress: OnProgress,
) -> Result<Image, PullError> {
    let pinned = inner.pins.hold();
    let result = fetch_from_any(&inner, &pinned, &name, &auth, &progress).await;
    drop(pinned);
    // After other failures what came whole stays for the next try.
    if result.as_ref().is_err_and(|error| super::for_lack_of_room(error)) {
        let inner = inner.clone();
        let tidied = blocking(move || {
            inner.give_up();
            Ok::<(), StoreError>(())
        });
        drop(tidied.await);
    }
    result
}

async fn fetch_from_any(
    inner: &Arc<Inner>,
    pinned: &Pinned,
    name: &ImageName,
    auth: &RegistryAuth,
    progress: &OnProgress,
) -> Result<Image, PullError> {
    let ca = match &inner.config.ca_file {
        None => None,
        Some(path) => {
            let path = path.clone();
            let read = blocking(move || std::fs::read(&path).map_err(StoreError::at(&path))).await;
            Some(read.map_err(|source| PullError::Store { name: name.to_string(), source: Arc::new(source) })?)
        }
    };
    let mut last = None;
    for endpoint in endpoints(&inner.config, name) {
        progress(Progress::Resolving { from: endpoint.host.clone() });
        // Credentials are for the registry they were given for, not for whoever mirrors it.
        let auth = if endpoint.host == name.registry { auth.clone() } else { RegistryAuth::Anonymous };
        let source =
            Source { inner, pinned, name, client: client(&inner.config, &endpoint, ca.clone()), endpoint, auth };
        match source.image(progress).await {
            Ok(image) => return Ok(image),
            Err(error) if super::for_lack_of_room(&error) => return Err(error),
            Err(error) => {
                tracing::debug!(%name, registry = %source.endpoint.host, %error, "not pulled from here");
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or(PullError::Disabled { name: name.to_string() }))
}

/// A client for one pull: it remembers credentials by registry, and another pull may bring others.
fn client(config: &ImageConfig, endpoint: &Endpoint, ca: Option<Vec<u8>>) -> Client {
    Client::new(ClientConfig {
        protocol: if endpoint.plain_http { ClientProtocol::Http } else { ClientProtocol::Https },
        extra_root_certificates: ca
            .into_iter()
            .map(|data| Certificate { encoding: CertificateEncoding::Pem, data })
            .collect(),
        connect_timeout: Some(config.connect_timeout),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: concat!("kfbox/", env!("CARGO_PKG_VERSION")),
        https_proxy: config.https_proxy.clone(),
        http_proxy: config.http_proxy.clone(),
        no_proxy: config.no_proxy.clone(),
        ..ClientConfig::default()
    })
}

struct Source<'a> {
    inner: &'a Arc<Inner>,
    pinned: &'a Pinned,
    name: &'a ImageName,
    client: Client,
    endpoint: Endpoint,
    auth: RegistryAuth,
}

/// What an answer of the registry means here.
#[derive(Debug)]
enum Fault {
    NotFound,
    Unauthorized,
    Unreachable(String),
    /// Worth another try.
    Broken(String),
    Refused(String),
}

impl Source<'_> {
    async fn image(&self, progress: &OnProgress) -> Result<Image, PullError> {
        let mut names = vec![self.name.clone()];
        let (mut bytes, mut digest) = self.manifest(&self.reference(None)).await?;
        if is_index(&bytes) {
            let index: Index = self.parsed("index", &bytes)?;
            let chosen = config::for_this_machine(&index.manifests)
                .ok_or(PullError::NoPlatform { name: self.name.to_string() })?;
            names.push(ImageName { digest: Some(digest), ..self.name.clone() });
            let wanted = chosen.digest.clone();
            (bytes, digest) = self.manifest(&self.reference(Some(&wanted))).await?;
        }
        let manifest: Manifest = self.parsed("manifest", &bytes)?;
        self.pinned.pin(&digest);
        let digest = self
            .store(move |inner| {
                Ok(inner.blobs.write(&bytes[..], Some(&digest), MAX_DOCUMENT).map(|(digest, _)| digest)?)
            })
            .await?;
        self.content(digest, manifest, names, progress).await
    }

    async fn content(
        &self,
        digest: String,
        manifest: Manifest,
        names: Vec<ImageName>,
        progress: &OnProgress,
    ) -> Result<Image, PullError> {
        if manifest.config.size > MAX_DOCUMENT {
            return Err(self.failed(BlobError::TooLong { limit: MAX_DOCUMENT }.into()));
        }
        self.blob(&manifest.config, &super::silent()).await?;
        let config = manifest.config.digest.clone();
        // Read before the layers come: an image for another machine is refused before gigabytes are fetched.
        let config: ConfigBlob =
            self.store(move |inner| parse("configuration", &inner.blobs.read_small(&config)?)).await?;
        if !config.architecture.is_empty() && config.architecture != config::architecture() {
            return Err(PullError::NoPlatform { name: self.name.to_string() });
        }
        let layers: Vec<_> = manifest.layers.iter().map(|layer| self.blob(layer, progress).boxed()).collect();
        futures::stream::iter(layers).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
        let (progress, proof) = (progress.clone(), proof(&self.auth));
        // Layers are unpacked before an image names them.
        let guard = self.inner.activity.clone().read_owned().await;
        self.store(move |inner| {
            let _guard = guard;
            let imported = inner.has(&digest) && !inner.is_marked_pulled(&digest);
            if !imported {
                inner.mark_pulled(&digest, Some(proof))?;
            }
            inner.commit(&digest, &names, &progress)
        })
        .await
    }

    fn reference(&self, digest: Option<&str>) -> Reference {
        let repository = match self.endpoint.prefix.as_str() {
            "" => self.name.repository.clone(),
            prefix => format!("{prefix}/{}", self.name.repository),
        };
        let host = self.endpoint.host.clone();
        match digest.or(self.name.digest.as_deref()) {
            Some(digest) => Reference::with_digest(host, repository, digest.into()),
            None => Reference::with_tag(host, repository, self.name.tag.clone().unwrap_or_else(|| "latest".into())),
        }
    }

    /// A manifest or index with its digest, which the client has checked against the name's digest if that has one.
    async fn manifest(&self, reference: &Reference) -> Result<(Vec<u8>, String), PullError> {
        let accepted: Vec<&str> = MANIFEST_TYPES.into_iter().chain(INDEX_TYPES).collect();
        self.retried(|| async {
            self.client.auth(reference, &self.auth, RegistryOperation::Pull).await.map_err(fault)?;
            let (bytes, _) = self.client.pull_manifest_raw(reference, &self.auth, &accepted).await.map_err(fault)?;
            if bytes.len() as u64 > MAX_DOCUMENT {
                return Err(Fault::Refused(format!("its manifest is longer than {MAX_DOCUMENT} bytes")));
            }
            let digest = match reference.digest() {
                Some(digest) => digest.to_owned(),
                None => digest_of(&bytes),
            };
            Ok((bytes.to_vec(), digest))
        })
        .await
    }

    async fn retried<T, F: Future<Output = Result<T, Fault>>>(
        &self,
        mut once: impl FnMut() -> F,
    ) -> Result<T, PullError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match once().await {
                Ok(value) => return Ok(value),
                Err(Fault::Broken(why)) if attempt < TRIES => {
                    tracing::info!(name = %self.name, registry = %self.endpoint.host, attempt, why, "trying again");
                    tokio::time::sleep(Duration::from_millis(250 << attempt)).await;
                }
                Err(fault) => return Err(self.error(fault)),
            }
        }
    }

    fn error(&self, fault: Fault) -> PullError {
        let (name, registry) = (self.name.to_string(), self.endpoint.host.clone());
        match fault {
            Fault::NotFound => PullError::NotFound { name, registry },
            Fault::Unauthorized => PullError::Unauthorized { name, registry },
            Fault::Unreachable(why) => PullError::Unreachable { name, registry, why },
            Fault::Broken(why) | Fault::Refused(why) => PullError::Registry { name, registry, why },
        }
    }

    fn failed(&self, source: StoreError) -> PullError {
        PullError::Store { name: self.name.to_string(), source: Arc::new(source) }
    }

    fn parsed<T: serde::de::DeserializeOwned>(&self, what: &'static str, bytes: &[u8]) -> Result<T, PullError> {
        parse(what, bytes).map_err(|error| self.failed(error))
    }

    async fn store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, PullError> {
        let inner = self.inner.clone();
        blocking(move || work(&inner)).await.map_err(|error| self.failed(error))
    }

    /// Brings one blob here. A broken download goes on from where it stopped.
    async fn blob(&self, descriptor: &Descriptor, progress: &OnProgress) -> Result<(), PullError> {
        let (digest, total) = (descriptor.digest.clone(), descriptor.size);
        if total > super::import::MAX_BLOB {
            return Err(self.failed(BlobError::TooLong { limit: super::import::MAX_BLOB }.into()));
        }
        let wanted = digest.clone();
        self.pinned.pin(&digest);
        let partial = self
            .store(move |inner| {
                if inner.blobs.has(&wanted) {
                    return Ok(None);
                }
                Ok(Some(Partial {
                    incoming: inner.blobs.incoming()?,
                    hasher: Hasher::like(&wanted)?,
                    bytes: 0,
                    limit: total,
                }))
            })
            .await?;
        let Some(partial) = partial else {
            progress(Progress::Done { layer: digest });
            return Ok(());
        };
        let mut partial = Some(partial);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let Some(current) = partial.take() else { return Err(self.failed(StoreError::Stopped)) };
            let (current, result) = self.download(current, &digest, progress).await?;
            let fault = match result {
                Ok(()) => {
                    let expected = digest.clone();
                    return self
                        .store(move |inner| {
                            let found = current.hasher.finish();
                            if found != expected {
                                return Err(BlobError::Mismatch { expected, found }.into());
                            }
                            Ok(inner.blobs.keep(current.incoming, &found)?)
                        })
                        .await;
                }
                Err(fault) => fault,
            };
            match fault {
                Fault::Broken(why) if attempt < TRIES => {
                    tracing::info!(name = %self.name, layer = %digest, bytes = current.bytes, why, "download broke; going on");
                    tokio::time::sleep(Duration::from_millis(250 << attempt)).await;
                    partial = Some(current);
                }
                fault => return Err(self.error(fault)),
            }
        }
    }

    /// One connection's worth of a blob.
    async fn download(
        &self,
        mut partial: Partial,
        digest: &str,
        progress: &OnProgress,
    ) -> Result<(Partial, Result<(), Fault>), PullError> {
        let reference = self.reference(None);
        // Never an address from the manifest: the registry alone is asked.
        let layer = Wanted { digest, urls: None };
        let mut stream = if partial.bytes == 0 {
            match self.client.pull_blob_stream(&reference, &layer).await {
                Ok(sized) => sized.stream,
                Err(error) => return Ok((partial, Err(fault(error)))),
            }
        } else {
            match self.client.pull_blob_stream_partial(&reference, &layer, partial.bytes, None).await {
                Ok(BlobResponse::Partial(sized)) => sized.stream,
                Ok(BlobResponse::Full(sized)) => {
                    partial = self.store(|_| partial.restart()).await?;
                    sized.stream
                }
                Err(error) => return Ok((partial, Err(fault(error)))),
            }
        };
        let (to_disk, mut from_net) = tokio::sync::mpsc::channel::<bytes::Bytes>(IN_FLIGHT);
        let (mut bytes, total, layer) = (partial.bytes, partial.limit, digest.to_owned());
        let writer = self.store(move |_| {
            while let Some(chunk) = from_net.blocking_recv() {
                partial.write(&chunk)?;
            }
            Ok(partial)
        });
        let reader = async move {
            let mut told = bytes;
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(|error| Fault::Broken(chain(&error)))?;
                bytes += chunk.len() as u64;
                if to_disk.send(chunk).await.is_err() {
                    // The writer stopped and says why.
                    return Ok(());
                }
                if bytes >= told + (256 << 10) || bytes == total {
                    told = bytes;
                    progress(Progress::Downloading { layer: layer.clone(), bytes, total });
                }
            }
            if bytes < total { Err(Fault::Broken(format!("it ended after {bytes} of {total} bytes"))) } else { Ok(()) }
        };
        let (partial, result) = futures::join!(writer, reader);
        Ok((partial?, result))
    }
}

struct Wanted<'a> {
    digest: &'a str,
    urls: Option<Vec<String>>,
}

impl oci_client::client::AsLayerDescriptor for Wanted<'_> {
    fn as_layer_descriptor(&self) -> LayerDescriptor<'_> {
        LayerDescriptor { digest: self.digest, urls: &self.urls }
    }
}

/// A download so far.
struct Partial {
    incoming: Incoming,
    hasher: Hasher,
    bytes: u64,
    limit: u64,
}

impl Partial {
    fn write(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        self.bytes += chunk.len() as u64;
        if self.bytes > self.limit {
            return Err(BlobError::TooLong { limit: self.limit }.into());
        }
        self.hasher.update(chunk);
        self.incoming.file.write_all(chunk).map_err(StoreError::at(&self.incoming.path))
    }

    /// Back to the beginning, when the registry does not serve ranges.
    fn restart(mut self) -> Result<Self, StoreError> {
        use std::io::Seek;
        self.incoming
            .file
            .rewind()
            .and_then(|()| self.incoming.file.set_len(0))
            .map_err(StoreError::at(&self.incoming.path))?;
        self.hasher = match self.hasher {
            Hasher::Sha256(_) => Hasher::sha256(),
            Hasher::Sha512(_) => Hasher::Sha512(Default::default()),
        };
        self.bytes = 0;
        Ok(self)
    }
}

fn is_index(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Probe {
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_slice::<Probe>(bytes).is_ok_and(|probe| probe.manifests.is_some())
}

fn fault(error: OciDistributionError) -> Fault {
    match &error {
        OciDistributionError::RequestError(request) if request.is_connect() || request.is_builder() => {
            Fault::Unreachable(chain(request))
        }
        OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => Fault::Broken(chain(&error)),
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            Fault::Unauthorized
        }
        OciDistributionError::ImageManifestNotFoundError(_) => Fault::NotFound,
        OciDistributionError::ServerError { code, .. } => match code {
            401 | 403 => Fault::Unauthorized,
            404 => Fault::NotFound,
            408 | 429 | 500.. => Fault::Broken(error.to_string()),
            _ => Fault::Refused(error.to_string()),
        },
        OciDistributionError::RegistryError { envelope, .. } => {
            match envelope.errors.first().map(|error| &error.code) {
                Some(
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NotFound
                    | OciErrorCode::BlobUnknown
                    | OciErrorCode::ManifestBlobUnknown,
                ) => Fault::NotFound,
                Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => Fault::Unauthorized,
                Some(OciErrorCode::Toomanyrequests) => Fault::Broken(error.to_string()),
                _ => Fault::Refused(error.to_string()),
            }
        }
        _ => Fault::Refused(chain(&error)),
    }
}

/// An error with its causes, which a request's own text leaves out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_to_their_registry_alone() {
        let mut auths = Auths::default();
        // user:secret
        auths.add_docker_config(
            br#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpzZWNyZXQ="},"lab.local:5000/team":{"username":"a","password":"b"},"broken":{"auth":"%%"}}}"#,
        );
        let of = |name: &str| auths.of(&ImageName::parse(name).unwrap());
        assert_eq!(of("python:3.11"), RegistryAuth::Basic("user".into(), "secret".into()));
        assert_eq!(of("lab.local:5000/team/x"), RegistryAuth::Basic("a".into(), "b".into()));
        assert_eq!(of("lab.local:5000/teammate/x"), RegistryAuth::Anonymous);
        assert_eq!(of("docker.io.evil.example/x"), RegistryAuth::Anonymous);
        assert!(!format!("{auths:?}").contains("secret"));
    }

    #[test]
    fn mirrors_come_before_the_registry() {
        let mut config = ImageConfig::default();
        config
            .mirrors
            .insert("docker.io".into(), vec!["http://cache.lab:5000".into(), "https://proxy.lab/hub/".into()]);
        let all = endpoints(&config, &ImageName::parse("python").unwrap());
        let shown: Vec<_> = all.iter().map(|e| (e.host.as_str(), e.plain_http, e.prefix.as_str())).collect();
        assert_eq!(shown, [("cache.lab:5000", true, ""), ("proxy.lab", false, "hub"), ("docker.io", false, "")]);
    }
}
