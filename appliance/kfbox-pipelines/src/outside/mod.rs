//! From an artifact's address to the store that holds it: the box's own within the namespace's fence, or another that the
//! namespace's config map `kfp-launcher`, the query of the run's root or the address itself names. Invariants: credentials
//! come from Secrets of the run's own namespace, or from the step's own environment where the settings say `fromEnv`, and
//! are asked for anew each time; an address in the box's own store never
//! leaves the fence by way of these settings; nothing here connects to anything.
//!
//! | address | with settings | without |
//! |---|---|---|
//! | within the namespace's own place | the box's store, always | |
//! | `minio://` | the provider's store | the box's store: refused |
//! | `s3://`, `gs://` | the provider's store | what is public there |
//! | `http://`, `https://` | | one file, read only |
//! | `oci://` | | not fetched: the image is mounted into the pod, by the pod's own pull secrets |
//! | others | | not fetched, as upstream: the step gets the address |

mod launcher_config;

use crate::{
    Core,
    error::{ApiError, Code},
    ports::{ArtifactStore, Hidden, OutsideStore, S3Keys, S3Store, StoreError},
    roots::{Location, bare, is_web, split_any},
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::Api;
use launcher_config::{Credentials, LauncherConfig, NAME, Settings};
use std::sync::Arc;

/// Names of the box's own store inside the cluster, upstream's included.
const OWN_SERVICES: [&str; 2] = ["minio-service.kubeflow", "seaweedfs.kubeflow"];

/// An artifact's place and what reads it.
pub(crate) struct Found {
    pub store: Arc<dyn ArtifactStore>,
    pub at: Location,
    /// Somebody said how the store is opened; else the address was taken at its word, and may be meant for the step alone.
    pub meant: bool,
    pub writable: bool,
}

#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Unlocated {
    /// The daemon does not fetch such addresses.
    #[error("{0}")]
    Elsewhere(String),
    /// It lies in the box's own store, in nobody's place or another's.
    #[error("{0}")]
    Fenced(String),
    /// It should, and the settings do not let it.
    #[error("{0}")]
    Unusable(String),
}

impl From<Unlocated> for ApiError {
    fn from(error: Unlocated) -> Self {
        Self::new(Code::FailedPrecondition, error.to_string())
    }
}

/// The box's own store under one of its names in the cluster.
fn is_own(endpoint: &str) -> bool {
    let host = endpoint.split("://").last().unwrap_or_default().split([':', '/']).next().unwrap_or_default();
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let name = [".svc.cluster.local", ".svc"].iter().find_map(|end| host.strip_suffix(end)).unwrap_or(&host);
    OWN_SERVICES.contains(&name)
}

impl Core {
    /// `root`: the run's, whose query holds for the addresses in its bucket; empty where no run is known.
    pub(crate) async fn locate(&self, namespace: &str, uri: &str, root: &str) -> Result<Found, Unlocated> {
        self.locate_for(namespace, uri, root, None).await
    }

    /// For a step, whose environment may have keys.
    pub(crate) async fn locate_for(
        &self,
        namespace: &str,
        uri: &str,
        root: &str,
        environment: Option<S3Keys>,
    ) -> Result<Found, Unlocated> {
        if let Some(at) = self.roots.object(namespace, uri) {
            return Ok(Found { store: self.deps.artifacts.clone(), at, meant: true, writable: true });
        }
        if is_web(uri) {
            let store = self.open(&OutsideStore::Web { url: uri.to_owned() })?;
            let at = Location { bucket: String::new(), key: "file".into() };
            return Ok(Found { store, at, meant: false, writable: false });
        }
        let (uri, query) = uri.split_at(bare(uri).len());
        let Some((scheme, bucket, key)) = split_any(uri) else {
            return Err(Unlocated::Elsewhere(match uri.starts_with("oci://") {
                true => format!("{uri} is an image; images are mounted into pods, not fetched"),
                false => format!("{uri} is no address that artifacts are fetched from"),
            }));
        };
        let of_root = root.split_at(bare(root).len());
        let query = match query.is_empty() && split_any(of_root.0).is_some_and(|r| (r.0, r.1) == (scheme, bucket)) {
            true => of_root.1,
            false => query,
        };
        let settings = self.settings(namespace, scheme, bucket, key, query).await?;
        let meant = settings.is_some();
        let settings = settings.unwrap_or_else(Settings::public);
        let store = self.with_credentials(namespace, scheme, bucket, settings, environment).await?;
        let at = Location { bucket: bucket.to_owned(), key: key.to_owned() };
        Ok(Found { store: self.open(&store)?, at, meant, writable: true })
    }

    /// The root of a run that asks for this one: the run's own wish, else the namespace's, else the box's.
    pub(crate) async fn choose_root(&self, namespace: &str, asked: &str) -> Result<String, ApiError> {
        let own = self.roots.namespace(namespace);
        let from_map = match asked.is_empty() {
            true => self.launcher_config(namespace).await?.root,
            false => String::new(),
        };
        let (chosen, whose) = match (asked.is_empty(), from_map.is_empty()) {
            (false, _) => (asked, "the pipeline root".to_owned()),
            (true, false) => (from_map.as_str(), format!("defaultPipelineRoot of the config map {NAME}")),
            (true, true) => return Ok(own),
        };
        let (base, query) = chosen.split_at(bare(chosen).len());
        let base = base.trim_end_matches('/');
        let refused = |why: String| Err(ApiError::invalid(format!("{whose} {chosen}: {why}")));
        if self.roots.inside(namespace, base) {
            return match query.is_empty() {
                true => Ok(base.to_owned()),
                false => refused("an address in this box's store takes no query".into()),
            };
        }
        let within = format!("namespace {namespace} keeps its artifacts in this box's store below {own}");
        // A bucket alone is a root too.
        let below = format!("{base}/-");
        let Some((scheme, bucket, key)) = split_any(&below) else {
            return refused(format!("it is not like s3://, minio:// or gs://BUCKET/PREFIX; {within}"));
        };
        match self.settings(namespace, scheme, bucket, key, query).await {
            Ok(Some(_)) => Ok(format!("{base}{query}")),
            Ok(None) => refused(format!(
                "nothing says how that store is opened; {within}. Next: add providers.{scheme} to the config map \
                 {NAME} of namespace {namespace}"
            )),
            Err(Unlocated::Fenced(_)) => Err(ApiError::invalid(format!(
                "{whose} {chosen} is not within {own}, where namespace {namespace} keeps its artifacts"
            ))),
            Err(error) => refused(error.to_string()),
        }
    }

    /// How the store of `scheme://bucket/key` is opened; `None` when nobody says so.
    async fn settings(
        &self,
        namespace: &str,
        scheme: &str,
        bucket: &str,
        key: &str,
        query: &str,
    ) -> Result<Option<Settings>, Unlocated> {
        let fenced = || {
            let own = self.roots.namespace(namespace);
            let uri = format!("{scheme}://{bucket}/{key}");
            Unlocated::Fenced(format!(
                "{uri} is in this box's store, outside {own}, where namespace {namespace} keeps its artifacts"
            ))
        };
        let found = if let Some(query) = query.strip_prefix('?').filter(|q| !q.is_empty()) {
            if scheme == "gs" {
                return Err(Unlocated::Unusable(format!("gs://{bucket} takes no query")));
            }
            Some(launcher_config::from_query(query).map_err(Unlocated::Unusable)?)
        } else {
            let config = self.launcher_config(namespace).await?;
            config.settings(scheme, bucket, key).map_err(|why| in_map(namespace, &why))?
        };
        match &found {
            None if scheme == "minio" || self.roots.is_own_bucket(bucket) && scheme == "s3" => Err(fenced()),
            Some(of) if of.endpoint.as_deref().is_some_and(is_own) => Err(fenced()),
            _ => Ok(found),
        }
    }

    async fn launcher_config(&self, namespace: &str) -> Result<LauncherConfig, Unlocated> {
        let maps: Api<ConfigMap> = Api::namespaced(self.deps.client.clone(), namespace);
        let found = maps.get_opt(NAME).await.map_err(|error| {
            tracing::warn!(namespace, %error, "the config map {NAME} cannot be read");
            Unlocated::Unusable(format!("the config map {NAME} of namespace {namespace} cannot be read now"))
        })?;
        let data = found.and_then(|map| map.data).unwrap_or_default();
        LauncherConfig::parse(&data).map_err(|why| in_map(namespace, &why))
    }

    async fn with_credentials(
        &self,
        namespace: &str,
        scheme: &str,
        bucket: &str,
        settings: Settings,
        environment: Option<S3Keys>,
    ) -> Result<OutsideStore, Unlocated> {
        let bucket = bucket.to_owned();
        let keys = match &settings.credentials {
            Credentials::Environment => environment,
            Credentials::Token { at, secret, key } => {
                let [token] = self.secret(namespace, at, secret, [("tokenKey", key)]).await?;
                return Ok(OutsideStore::Gcs { bucket, key: Some(token) });
            }
            Credentials::Keys { at, secret, access_key, secret_key } => {
                let named = [("accessKeyKey", access_key), ("secretKeyKey", secret_key)];
                let [access, secret] = self.secret(namespace, at, secret, named).await?;
                Some(S3Keys { access: access.reveal().to_owned(), secret, session: None })
            }
        };
        if scheme == "gs" {
            return Ok(OutsideStore::Gcs { bucket, key: None });
        }
        let Settings { endpoint, region, path_style, max_retries, credentials: _ } = settings;
        Ok(OutsideStore::S3(S3Store { bucket, endpoint, region, path_style, max_retries, keys }))
    }

    /// Values of one of the namespace's Secrets, by the setting's field and the key that it names.
    async fn secret<const N: usize>(
        &self,
        namespace: &str,
        at: &str,
        name: &str,
        keys: [(&str, &String); N],
    ) -> Result<[Hidden; N], Unlocated> {
        let secrets: Api<Secret> = Api::namespaced(self.deps.client.clone(), namespace);
        let found = secrets.get_opt(name).await.map_err(|error| {
            tracing::warn!(namespace, secret = name, %error, "a Secret cannot be read");
            Unlocated::Unusable(format!("the Secret {name} of namespace {namespace} cannot be read now"))
        })?;
        let Some(found) = found else {
            let why = format!("{at}.secretName: there is no Secret {name} in this namespace; create it");
            return Err(in_map(namespace, &why));
        };
        let data = found.data.unwrap_or_default();
        let mut values = Vec::with_capacity(N);
        for (field, key) in keys {
            let wrong = |what: &str| in_map(namespace, &format!("{at}.{field}: the Secret {name} {what} {key}"));
            let value = data.get(key.as_str()).ok_or_else(|| wrong("has no key"))?;
            // A newline at the end is what `echo` leaves.
            let text = std::str::from_utf8(&value.0).map_err(|_| wrong("holds no text under the key"))?.trim();
            if text.is_empty() {
                return Err(wrong("holds nothing under the key"));
            }
            values.push(Hidden::new(text));
        }
        values.try_into().map_err(|_| Unlocated::Unusable(format!("the Secret {name} cannot be read")))
    }

    fn open(&self, store: &OutsideStore) -> Result<Arc<dyn ArtifactStore>, Unlocated> {
        self.deps.outside.open(store).map_err(|error| match error {
            StoreError::Outside(why) => Unlocated::Unusable(why),
            other => Unlocated::Unusable(format!("the store cannot be used: {other}")),
        })
    }
}

fn in_map(namespace: &str, why: &str) -> Unlocated {
    Unlocated::Unusable(format!("the config map {NAME} of namespace {namespace}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boxes_own_store_is_known_by_its_names() {
        for own in [
            "http://minio-service.kubeflow:9000",
            "https://MINIO-SERVICE.kubeflow.svc/",
            "minio-service.kubeflow.svc.cluster.local.:9000",
            "http://seaweedfs.kubeflow:9000",
        ] {
            assert!(is_own(own), "{own}");
        }
        for other in ["http://minio-service.kubeflow.example:9000", "http://minio.ann.svc:9000", ""] {
            assert!(!is_own(other), "{other}");
        }
    }
}
