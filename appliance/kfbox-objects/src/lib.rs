//! S3: the protocol by s3s, the store our own. Content lies in files named by random ids, everything else in SQLite.
//!
//! Guarantees: an answered write is on disk, file, name and row; a write that fails leaves nothing; readers of an object
//! that is replaced meanwhile get the old bytes to their end. Anonymous requests are refused; presigned ones count as
//! their signer. Addressing is path-style. Upstream: the Amazon S3 API reference.
//!
//! A full disk answers code `XMinioStorageFull` with status 507, which clients of MinIO know and botocore does not retry.
//! Not supported, and answered `NotImplemented`: ACLs, policies, CORS, lifecycle, replication, object lock, encryption
//! with customer keys, select, notifications.

mod content;
mod credentials;
mod digest;
mod error;
mod listing;
mod multipart;
mod objects;
mod presign;
mod reading;
mod s3;
mod schema;
mod server;
mod store;

pub use credentials::{Credential, Grant};
pub use digest::{Algorithm, Checksums};
pub use error::Error;
pub use multipart::{MAX_PARTS, MIN_PART, UPLOAD_LIFETIME_DAYS};
pub use objects::{ByteRange, Deleted};
pub use presign::MAX_EXPIRY;
pub use reading::ContentStream;
pub use store::{Attributes, BucketInfo, Condition, EtagMatch, MAX_LIST, MAX_PUT, MAX_USER_METADATA, ObjectInfo};

use bytes::Bytes;
use content::ContentStore;
use credentials::{Credentials, RevokeBy};
use futures::{Stream, StreamExt};
use kfbox_base::{BoxError, Tasks};
use kfbox_db::Database;
use listing::{Place, Query};
use s3s::service::S3Service;
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};
use store::Store;
use tokio::net::TcpListener;

/// How often orphaned content files and forgotten uploads are looked for after the start.
const SWEEP_EVERY: Duration = Duration::from_secs(12 * 3600);

#[derive(Debug, Clone)]
pub struct Config {
    /// `objects.db`, `objects-admin.json` and the folder `objects/` lie here.
    pub data_dir: PathBuf,
    /// The region that buckets say they are in; requests signed for any region are accepted.
    pub region: String,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Database(#[from] kfbox_db::OpenError),
    #[error("cannot prepare the object store's files in {path}: {source}")]
    Files {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not a credential that kfbox wrote ({source}); delete it, and the next start makes a new one")]
    AdminCredential {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("cannot read the object store's credentials: {0}")]
    Credentials(#[source] Error),
}

/// One page of a listing.
#[derive(Debug, Default)]
pub struct Listing {
    pub objects: Vec<ObjectInfo>,
    /// What the delimiter folded away, each ending with it.
    pub prefixes: Vec<String>,
    /// Pass it to go on; `None` at the end.
    pub next_token: Option<String>,
}

/// The object store. Cloning shares it.
#[derive(Clone)]
pub struct Objects {
    store: Store,
    credentials: Credentials,
    admin: Credential,
    region: String,
}

impl Objects {
    /// Opens or creates the store, and starts the sweep of what a crash may have left.
    pub async fn open(config: Config, tasks: &Tasks) -> Result<Self, OpenError> {
        let Config { data_dir, region } = config;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Files { path, source }
        };
        let database = data_dir.join("objects.db");
        // It holds secrets: never readable by others, not even while it is being made.
        fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&database).map_err(failed(&database))?;
        let db = Database::open(&database, &schema::SCHEMA)?;
        let root = data_dir.join("objects");
        let content = ContentStore::open(&root).map_err(failed(&root))?;
        let admin = admin_credential(&data_dir)?;
        let store = Store { db, content };
        let credentials = Credentials::default();
        credentials.load(&store).await.map_err(OpenError::Credentials)?;
        credentials.set(&admin, None);
        tasks.essential("objects-sweep", sweep(store.clone(), tasks.shutdown()));
        Ok(Self { store, credentials, admin, region })
    }

    /// Serves S3 on a bound listener until shutdown.
    pub fn serve(&self, listener: TcpListener, tasks: &Tasks) {
        server::serve(self.service(), listener, tasks);
    }

    /// The protocol as a hyper and tower service. It authenticates its callers itself.
    pub fn service(&self) -> S3Service {
        s3::service(self.store.clone(), self.credentials.clone(), self.region.clone())
    }

    /// The credential that may do everything, for the daemon itself and its administrator.
    pub fn admin_credential(&self) -> &Credential {
        &self.admin
    }

    /// A new credential confined to `grants`.
    pub async fn create_credential(&self, owner: &str, grants: Vec<Grant>) -> Result<Credential, Error> {
        self.credentials.create(&self.store, owner, grants, false).await
    }

    /// The owner's standing credential: the same at every call, with its grants brought up to date.
    pub async fn credential_for(&self, owner: &str, grants: Vec<Grant>) -> Result<Credential, Error> {
        self.credentials.create(&self.store, owner, grants, true).await
    }

    /// Takes effect at once. False if there was no such access key.
    pub async fn revoke(&self, access_key: &str) -> Result<bool, Error> {
        Ok(self.credentials.revoke(&self.store, RevokeBy::AccessKey, access_key).await? > 0)
    }

    /// Revokes all credentials of an owner and says how many there were.
    pub async fn revoke_owner(&self, owner: &str) -> Result<usize, Error> {
        self.credentials.revoke(&self.store, RevokeBy::Owner, owner).await
    }

    /// Creates the bucket if it is not there.
    pub async fn ensure_bucket(&self, bucket: &str) -> Result<(), Error> {
        match self.store.create_bucket(bucket).await {
            Err(Error::BucketExists(_)) => Ok(()),
            other => other,
        }
    }

    /// Stores an object, of at most [`MAX_PUT`] bytes. An error in the body's stream stores nothing.
    pub async fn put<S, E>(
        &self,
        bucket: &str,
        key: &str,
        body: S,
        content_type: Option<&str>,
    ) -> Result<ObjectInfo, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
        E: Into<BoxError>,
    {
        let attributes = Attributes { content_type: content_type.map(str::to_owned), ..Attributes::default() };
        let put = objects::Put { bucket: bucket.into(), key: key.into(), attributes, ..objects::Put::default() };
        self.store.put(put, body.map(|r| r.map_err(Into::into)), || Ok(Default::default())).await
    }

    pub async fn put_bytes(
        &self,
        bucket: &str,
        key: &str,
        body: impl Into<Bytes>,
        content_type: Option<&str>,
    ) -> Result<ObjectInfo, Error> {
        let body = futures::stream::iter([Ok::<_, BoxError>(body.into())]);
        self.put(bucket, key, body, content_type).await
    }

    /// The object, or a range of its bytes; the stream says how many are to come.
    pub async fn get(
        &self,
        bucket: &str,
        key: &str,
        range: Option<ByteRange>,
    ) -> Result<(ObjectInfo, ContentStream), Error> {
        let found = self.store.get(bucket, key, None, range, |_| Ok::<_, Error>(())).await?;
        Ok((found.info, found.body))
    }

    pub async fn head(&self, bucket: &str, key: &str) -> Result<ObjectInfo, Error> {
        Ok(self.store.head(bucket, key, None).await?.0)
    }

    /// At most `limit` entries (and at most [`MAX_LIST`]) under `prefix`, in the order of their keys.
    pub async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        delimiter: Option<&str>,
        token: Option<&str>,
        limit: usize,
    ) -> Result<Listing, Error> {
        let after = token
            .map(|t| Place::parse(t).ok_or_else(|| Error::InvalidArgument("the continuation token is not ours".into())))
            .transpose()?;
        let page = self
            .store
            .list(Query {
                bucket: bucket.into(),
                prefix: prefix.into(),
                delimiter: delimiter.map(str::to_owned),
                after,
                limit,
                versions: false,
            })
            .await?;
        Ok(Listing { objects: page.objects, prefixes: page.prefixes, next_token: page.next.map(|place| place.token()) })
    }

    /// Deleting what is not there succeeds.
    pub async fn delete(&self, bucket: &str, key: &str) -> Result<Deleted, Error> {
        self.store.delete(bucket, key, None, Condition::default()).await
    }

    /// Deletes all that lies under `prefix`, old versions and uploads under way too; how many objects there were.
    pub async fn purge(&self, bucket: &str, prefix: &str) -> Result<usize, Error> {
        let mut count = 0;
        loop {
            let uploads = self.store.uploads(bucket, prefix, Default::default(), MAX_LIST).await?;
            for upload in &uploads {
                self.store.abort(bucket, &upload.key, &upload.id).await?;
            }
            let query = Query {
                bucket: bucket.into(),
                prefix: prefix.into(),
                delimiter: None,
                after: None,
                limit: MAX_LIST,
                versions: true,
            };
            let objects = self.store.list(query).await?.objects;
            if objects.is_empty() && uploads.is_empty() {
                return Ok(count);
            }
            for object in objects {
                self.store.delete(bucket, &object.key, object.version.as_deref(), Condition::default()).await?;
                count += 1;
            }
        }
    }

    /// A bucket with all that is in it; returns how many objects went. One that is not there is no error.
    pub async fn remove_bucket(&self, bucket: &str) -> Result<usize, Error> {
        match self.store.bucket(bucket).await {
            Err(Error::NoSuchBucket(_)) => return Ok(0),
            found => drop(found?),
        }
        let count = self.purge(bucket, "").await?;
        self.store.delete_bucket(bucket).await?;
        Ok(count)
    }

    /// A URL that reads one object without a credential for at most [`MAX_EXPIRY`]. `endpoint` is where the reader
    /// reaches this store, such as `http://127.0.0.1:9000`.
    pub fn presign_get(&self, bucket: &str, key: &str, expiry: Duration, endpoint: &str) -> Result<String, Error> {
        store::check_bucket_name(bucket)?;
        store::check_key(key)?;
        presign::presign(
            &self.admin,
            &presign::Request {
                method: "GET",
                endpoint,
                path: &format!("/{bucket}/{key}"),
                query: &[],
                region: &self.region,
                expiry,
                now: chrono::Utc::now(),
            },
        )
    }
}

async fn sweep(store: Store, shutdown: tokio_util::sync::CancellationToken) -> Result<(), BoxError> {
    loop {
        let round = async {
            let uploads = store.expire_uploads().await?;
            let files = store.sweep().await?;
            Ok::<_, Error>((uploads, files))
        };
        match tokio::select! { () = shutdown.cancelled() => return Ok(()), round = round => round } {
            Ok((0, 0)) => {}
            Ok((uploads, files)) => tracing::info!(uploads, files, "swept forgotten uploads and unnamed content files"),
            Err(error) => tracing::warn!(%error, "the sweep of the object store failed; it will be tried again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
    }
}

/// Reads the administrator's credential, or makes one: there is no default.
fn admin_credential(data_dir: &Path) -> Result<Credential, OpenError> {
    let path = data_dir.join("objects-admin.json");
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| OpenError::AdminCredential { path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let credential = Credential::generate();
            write_private(&path, &credential).map_err(|source| OpenError::Files { path, source })?;
            Ok(credential)
        }
        Err(source) => Err(OpenError::Files { path, source }),
    }
}

fn write_private(path: &Path, credential: &Credential) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    serde_json::to_writer_pretty(&file, credential)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests;
