//! Artifacts in stores outside the box, by way of the crate `object_store` over connections of `outbound`. Guarantees: only
//! the credentials given are used, never those of the daemon's environment, files or machine; an object is stored whole or
//! not at all; messages name the store and what it answered, and no secret.

use crate::{
    config,
    failure::{Code, Failure},
    outbound::{Outbound, OutboundError, Policy, networks},
};
use async_trait::async_trait;
use axum::body::Bytes;
use futures::{StreamExt, TryStreamExt, future::BoxFuture};
use http::{Request, StatusCode, header};
use http_body_util::{BodyDataStream, BodyExt as _};
use kfbox_base::BoxError;
use kfbox_pipelines::{ArtifactStore, ByteStream, ObjectInfo, OutsideStore, OutsideStores, S3Store, StoreError};
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt as _, PutPayload, RetryConfig, StaticCredentialProvider,
    aws::{AmazonS3Builder, AwsCredential},
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
        HttpResponseBody, HttpService,
    },
    gcp::{GcpCredential, GoogleCloudStorageBuilder},
    path::Path as Key,
};
use std::{sync::Arc, time::Duration};
use url::Url;

/// A part of an upload: what is held in memory of it. S3 takes no less than 5 MiB.
const PART: u64 = 8 << 20;
/// S3 and Google take no more.
const MOST_PARTS: u64 = 10_000;
/// Tries of one request, waits included: less than a launcher waits.
const RETRIES: Duration = Duration::from_secs(60);
/// One more than a step may have of an artifact.
const MAX_FILES: usize = 100_001;
const REDIRECTS: usize = 5;
/// Of what a store says about a failure.
const MAX_WORDS: usize = 300;

pub struct OutsideArtifacts {
    client: Outbound<HttpRequestBody>,
}

impl OutsideArtifacts {
    pub fn new(pipelines: &config::Pipelines, network: &config::Network) -> anyhow::Result<Self> {
        let parse = |text: &String| {
            let url = text.parse::<Url>().ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
            url.filter(|u| matches!(u.path(), "" | "/") && u.query().is_none()).ok_or_else(|| {
                let message = format!("pipelines.artifact_endpoints: {text:?} is no http or https endpoint");
                Failure::new(Code::Configuration, message, "name endpoints such as http://10.0.0.5:9000")
            })
        };
        let named = pipelines.artifact_endpoints.iter().map(parse).collect::<Result<_, _>>()?;
        let policy = Policy::new(named, networks(&[&network.pod_cidr, &network.service_cidr])?);
        let client = Outbound::new(Arc::new(policy), pipelines.artifact_ca_bundle.as_deref()).map_err(|error| {
            let message = format!("pipelines.artifact_ca_bundle: {error}");
            Failure::new(Code::Configuration, message, "name a file with certificates in PEM")
        })?;
        Ok(Self { client })
    }

    fn s3(&self, store: &S3Store) -> Result<(Arc<dyn ObjectStore>, String), StoreError> {
        let S3Store { bucket, endpoint, region, path_style, max_retries, keys } = store;
        let name = format!("{}, bucket {bucket}", endpoint.as_deref().unwrap_or("Amazon S3"));
        // The library takes these for granted.
        let wrong = |what: &str| StoreError::Outside(format!("{name}: {what}"));
        if !is_word(region) {
            return Err(wrong("the region is no name of a region"));
        }
        let endpoint = endpoint.as_ref().map(|endpoint| match (path_style, endpoint.split_once("://")) {
            (false, Some((scheme, host))) => format!("{scheme}://{bucket}.{host}"),
            _ => endpoint.clone(),
        });
        if endpoint.as_ref().is_some_and(|e| e.parse::<Url>().ok().is_none_or(|u| !u.has_host())) {
            return Err(wrong("the endpoint is no address"));
        }
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_region(region)
            .with_virtual_hosted_style_request(!path_style)
            .with_allow_http(true)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_retry(retries(*max_retries))
            .with_http_connector(Connector(self.client.clone()));
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        // Given also when nothing is signed: without, the library would ask the machine's cloud who it is.
        let credential = match keys {
            None => AwsCredential { key_id: String::new(), secret_key: String::new(), token: None },
            Some(keys) => {
                let session = keys.session.as_ref().map(|s| s.reveal().to_owned());
                if !is_word(&keys.access) || session.as_ref().is_some_and(|s| !is_word(s)) {
                    return Err(wrong("its access key holds what no key holds, such as a space"));
                }
                let (key_id, secret_key) = (keys.access.clone(), keys.secret.reveal().to_owned());
                AwsCredential { key_id, secret_key, token: session }
            }
        };
        builder = builder
            .with_credentials(Arc::new(StaticCredentialProvider::new(credential)))
            .with_skip_signature(keys.is_none());
        let store = builder.build().map_err(|e| wrong(&words(&e)))?;
        Ok((Arc::new(store), name))
    }

    fn gcs(&self, bucket: &str, key: Option<&str>) -> Result<(Arc<dyn ObjectStore>, String), StoreError> {
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_bucket_name(bucket)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_retry(retries(RETRIES_OF_GCS))
            .with_http_connector(Connector(self.client.clone()));
        builder = match key {
            Some(key) => builder.with_service_account_key(service_account(key)?),
            // As above: else it would look for the daemon's own credentials.
            None => builder
                .with_credentials(Arc::new(StaticCredentialProvider::new(GcpCredential { bearer: String::new() })))
                .with_skip_signature(true),
        };
        let store = builder.build().map_err(|_| {
            // Its cause may quote the key.
            StoreError::Outside(format!("gs://{bucket}: the service account's key in the Secret cannot be used"))
        })?;
        Ok((Arc::new(store), format!("Google Cloud Storage, bucket {bucket}")))
    }
}

const RETRIES_OF_GCS: u32 = 5;

/// What may be part of a header's value.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Only keys of service accounts: the other kinds of Google's credentials name files and programs of the machine that
/// uses them.
fn service_account(key: &str) -> Result<String, StoreError> {
    let parsed: Option<serde_json::Value> = serde_json::from_str(key).ok();
    match parsed.as_ref().and_then(|v| v.get("type")?.as_str()) {
        Some("service_account") => Ok(key.to_owned()),
        Some(other) => Err(StoreError::Outside(format!(
            "the Google credentials in the Secret are of the type {}, and should be a service_account's key",
            other.chars().take(40).collect::<String>()
        ))),
        None => {
            Err(StoreError::Outside("the Google credentials in the Secret are no service account's key in JSON".into()))
        }
    }
}

fn retries(most: u32) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { max_backoff: Duration::from_secs(5), ..BackoffConfig::default() },
        max_retries: usize::try_from(most).unwrap_or(usize::MAX),
        retry_timeout: RETRIES,
    }
}

impl OutsideStores for OutsideArtifacts {
    fn open(&self, store: &OutsideStore) -> Result<Arc<dyn ArtifactStore>, StoreError> {
        let (store, name) = match store {
            OutsideStore::S3(s3) => self.s3(s3)?,
            OutsideStore::Gcs { bucket, key } => self.gcs(bucket, key.as_ref().map(|k| k.reveal()))?,
            OutsideStore::Web { url } => {
                let url = url.parse().map_err(|_| StoreError::Outside("the address is no URL".into()))?;
                return Ok(Arc::new(WebFile { client: self.client.clone(), url }));
            }
        };
        Ok(Arc::new(Opened { store, name }))
    }
}

/// A bucket. Its callers name it again with each key, since the port is that of a store of many.
struct Opened {
    store: Arc<dyn ObjectStore>,
    /// For messages.
    name: String,
}

fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause
}

/// What went wrong, in the words of who knows: of an answer in XML the code and message, of others a piece.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let said = innermost(error).to_string();
    let tag = |name: &str| {
        let (_, rest) = said.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
    };
    let told = match (tag("Code"), tag("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        _ => said,
    };
    told.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WORDS).collect()
}

/// The library keeps the status of a refused listing to itself.
fn is_denied(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    matches!(error, E::PermissionDenied { .. } | E::Unauthenticated { .. })
        || ["401", "403"].iter().any(|status| innermost(error).to_string().contains(&format!("status code: {status}")))
}

impl Opened {
    fn failed(&self, error: object_store::Error) -> StoreError {
        use object_store::Error as E;
        match error {
            E::NotFound { .. } => StoreError::NotFound,
            error if is_denied(&error) => StoreError::Outside(format!(
                "{} refuses the access: {}; look at its credentials and what they may do",
                self.name,
                words(&error)
            )),
            other => StoreError::Outside(format!("{}: {}", self.name, words(&other))),
        }
    }

    fn key(&self, key: &str) -> Result<Key, StoreError> {
        Key::parse(key)
            .map_err(|_| StoreError::Outside(format!("{}: {key:?} cannot be the name of an object", self.name)))
    }

    /// As above, of what creates and lists objects: what is missing is the bucket.
    fn without_bucket(&self, error: object_store::Error) -> StoreError {
        match self.failed(error) {
            StoreError::NotFound => StoreError::Outside(format!("{}: there is no such bucket", self.name)),
            other => other,
        }
    }

    async fn upload(&self, key: &Key, size: u64, body: ByteStream) -> Result<(), StoreError> {
        let broken = |error: BoxError| StoreError::Failed(error);
        let short = |received: u64| broken(format!("{received} bytes came, {size} were announced").into());
        let mut body = body;
        if size <= PART {
            let mut all = Vec::new();
            let mut received = 0;
            while let Some(chunk) = body.try_next().await.map_err(broken)? {
                received += chunk.len() as u64;
                if received > size {
                    return Err(short(received));
                }
                all.push(chunk);
            }
            if received != size {
                return Err(short(received));
            }
            let payload: PutPayload = all.into_iter().collect();
            return self.store.put(key, payload).await.map(drop).map_err(|e| self.without_bucket(e));
        }
        let part = PART.max(size.div_ceil(MOST_PARTS));
        let mut upload = self.store.put_multipart(key).await.map_err(|e| self.without_bucket(e))?;
        let sent = async {
            let (mut held, mut waiting, mut received) = (Vec::<Bytes>::new(), 0_u64, 0_u64);
            loop {
                let chunk = body.try_next().await.map_err(broken)?;
                let ended = chunk.is_none();
                if let Some(mut chunk) = chunk {
                    received += chunk.len() as u64;
                    if received > size {
                        return Err(short(received));
                    }
                    // Parts are of one size but for the last, as some stores want them.
                    while waiting + chunk.len() as u64 >= part {
                        let rest = usize::try_from(part - waiting).unwrap_or(chunk.len());
                        held.push(chunk.split_to(rest));
                        let payload: PutPayload = std::mem::take(&mut held).into_iter().collect();
                        upload.put_part(payload).await.map_err(|e| self.failed(e))?;
                        waiting = 0;
                    }
                    waiting += chunk.len() as u64;
                    held.push(chunk);
                }
                if ended {
                    break;
                }
            }
            if received != size {
                return Err(short(received));
            }
            if waiting > 0 {
                let payload: PutPayload = held.into_iter().collect();
                upload.put_part(payload).await.map_err(|e| self.failed(e))?;
            }
            upload.complete().await.map(drop).map_err(|e| self.failed(e))
        }
        .await;
        if sent.is_err() {
            // What was sent of it is no object; a store that is away keeps the parts until its own rules end them.
            drop(upload.abort().await);
        }
        sent
    }
}

impl ArtifactStore for Opened {
    fn put<'a>(
        &'a self,
        _: &'a str,
        key: &'a str,
        size: u64,
        body: ByteStream,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.upload(&self.key(key)?, size, body).await })
    }

    fn get<'a>(&'a self, _: &'a str, key: &'a str) -> BoxFuture<'a, Result<(u64, ByteStream), StoreError>> {
        Box::pin(async move {
            let found = self.store.get(&self.key(key)?).await.map_err(|e| self.failed(e))?;
            let size = found.range.end - found.range.start;
            Ok((size, found.into_stream().map_err(|e| words(&e).into()).boxed()))
        })
    }

    fn list<'a>(&'a self, _: &'a str, prefix: &'a str) -> BoxFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        Box::pin(async move {
            let key = self.key(prefix.trim_end_matches('/'))?;
            let info = |o: object_store::ObjectMeta| ObjectInfo { key: o.location.into(), size: o.size };
            let one = match self.store.head(&key).await {
                Ok(one) => Some(info(one)),
                Err(object_store::Error::NotFound { .. }) => None,
                Err(error) => return Err(self.failed(error)),
            };
            let below: Result<Vec<_>, _> = self.store.list(Some(&key)).take(MAX_FILES).try_collect().await;
            match (one, below) {
                (one, Ok(below)) => {
                    let mut all: Vec<ObjectInfo> = one.into_iter().chain(below.into_iter().map(info)).collect();
                    all.sort_by(|a, b| a.key.cmp(&b.key));
                    Ok(all)
                }
                // Who may read a file need not be let to look round.
                (Some(one), Err(error)) if is_denied(&error) => Ok(vec![one]),
                (_, Err(error)) => Err(self.without_bucket(error)),
            }
        })
    }

    fn delete<'a>(&'a self, _: &'a str, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            match self.store.delete(&self.key(key)?).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(self.failed(error)),
            }
        })
    }
}

/// One file of the web. Redirects are followed: each leads through the policy again, and nothing secret goes with them.
struct WebFile {
    client: Outbound<HttpRequestBody>,
    url: Url,
}

impl WebFile {
    async fn open(&self) -> Result<(u64, ByteStream), StoreError> {
        let mut url = self.url.clone();
        let fail = |url: &Url, why: &str| StoreError::Outside(format!("{}: {why}", url.host_str().unwrap_or("?")));
        for _ in 0..=REDIRECTS {
            let mut asked = url.clone();
            asked.set_fragment(None);
            if !asked.username().is_empty() || asked.password().is_some() {
                return Err(fail(&url, "an address with a user's name or password is not fetched"));
            }
            let request = Request::get(asked.as_str())
                .header(header::USER_AGENT, concat!("kfbox/", env!("CARGO_PKG_VERSION")))
                // The bytes as they are: their number is told beforehand.
                .header(header::ACCEPT_ENCODING, "identity")
                .body(HttpRequestBody::empty());
            let request = request.map_err(|_| fail(&url, "the address is no URL"))?;
            let answer = self.client.send(request).await.map_err(|e| match e {
                OutboundError::Refused(_) | OutboundError::Connect(_) => StoreError::Outside(e.to_string()),
                e => StoreError::Outside(format!("the web: {e}")),
            })?;
            let status = answer.status();
            let told = |name| answer.headers().get(name).and_then(|v: &header::HeaderValue| v.to_str().ok());
            if status == StatusCode::OK {
                let length = told(header::CONTENT_LENGTH).and_then(|v| v.parse().ok());
                let length = length.ok_or_else(|| fail(&url, "the server does not say how long the file is"))?;
                let body = BodyDataStream::new(answer.into_body());
                return Ok((length, body.map_err(|e| BoxError::from(e.to_string())).boxed()));
            }
            if matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) {
                return Err(fail(&url, "there is no such file (404)"));
            }
            if !status.is_redirection() {
                return Err(fail(&url, &format!("the server answered {status}")));
            }
            let next = told(header::LOCATION).and_then(|l| url.join(l).ok());
            let may = |to: &Url| matches!((url.scheme(), to.scheme()), ("https", "https") | ("http", "http" | "https"));
            url = next.filter(may).ok_or_else(|| fail(&url, "it leads to an address that is not followed"))?;
        }
        Err(fail(&url, "it leads from one address to another without end"))
    }
}

impl ArtifactStore for WebFile {
    fn put<'a>(&'a self, _: &'a str, _: &'a str, _: u64, _: ByteStream) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { Err(StoreError::Outside("the web is read only".into())) })
    }

    fn get<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<(u64, ByteStream), StoreError>> {
        Box::pin(self.open())
    }

    fn list<'a>(&'a self, _: &'a str, key: &'a str) -> BoxFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        // Not HEAD: signed addresses are signed for GET. The body is not read.
        Box::pin(async move { self.open().await.map(|(size, _)| vec![ObjectInfo { key: key.to_owned(), size }]) })
    }

    fn delete<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { Err(StoreError::Outside("the web is read only".into())) })
    }
}

#[derive(Debug, Clone)]
struct Connector(Outbound<HttpRequestBody>);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

fn http_error(error: OutboundError) -> HttpError {
    let kind = match &error {
        // Not worth another try.
        OutboundError::Refused(_) => HttpErrorKind::Unknown,
        OutboundError::Connect(_) => HttpErrorKind::Connect,
        OutboundError::Timeout { .. } => HttpErrorKind::Timeout,
        OutboundError::Request { .. } => HttpErrorKind::Interrupted,
    };
    HttpError::new(kind, error)
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = self.0.send(request).await.map_err(http_error)?;
        Ok(answer.map(|body| HttpResponseBody::new(body.map_err(http_error))))
    }
}

#[cfg(test)]
mod tests;
