//! The store itself, without protocol and without access control: buckets and the parts that its other files share.

use crate::{Error, content::ContentStore, digest::Checksums};
use kfbox_db::Database;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

/// The most bytes that one request may store, and the largest part: S3's own limit.
pub const MAX_PUT: u64 = 5 * 1024 * 1024 * 1024;
/// S3's own limit on the names and values of user metadata together.
pub const MAX_USER_METADATA: usize = 2048;
/// The most entries that one listing answers, as in S3.
pub const MAX_LIST: usize = 1000;

#[derive(Clone)]
pub(crate) struct Store {
    pub db: Database,
    pub content: Arc<ContentStore>,
}

/// What is kept beside an object's bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attributes {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_disposition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_language: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_control: Option<String>,
    /// Milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
    /// `x-amz-meta-*`, without that prefix.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub user: BTreeMap<String, String>,
    pub checksums: Checksums,
    /// True when the checksums are of the whole object, not of its parts' checksums.
    pub full_checksum: bool,
}

impl Attributes {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let size = self.user.iter().map(|(k, v)| k.len() + v.len()).sum();
        if size > MAX_USER_METADATA {
            return Err(Error::MetadataTooLarge { size, most: MAX_USER_METADATA });
        }
        Ok(())
    }
}

/// One version of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    pub bucket: String,
    pub key: String,
    pub size: u64,
    /// Without quotes.
    pub etag: String,
    pub modified: SystemTime,
    /// `None` in a bucket that never had versioning.
    pub version: Option<String>,
    pub latest: bool,
    pub delete_marker: bool,
    pub attributes: Attributes,
    pub tags: Vec<(String, String)>,
    pub(crate) id: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketInfo {
    pub name: String,
    pub created: SystemTime,
    pub versioning: Option<String>,
}

/// A condition on the object's current state.
#[derive(Debug, Clone, Default)]
pub struct Condition {
    pub if_match: Option<EtagMatch>,
    pub if_none_match: Option<EtagMatch>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtagMatch {
    Any,
    Tag(String),
}

impl EtagMatch {
    fn holds(&self, etag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Tag(tag) => tag == etag,
        }
    }
}

impl Condition {
    pub(crate) fn check_write(&self, current: Option<&ObjectInfo>, bucket: &str, key: &str) -> Result<(), Error> {
        if let Some(wanted) = &self.if_match {
            let current = current.ok_or_else(|| Error::NoSuchKey { bucket: bucket.into(), key: key.into() })?;
            if !wanted.holds(&current.etag) {
                return Err(Error::PreconditionFailed);
            }
        }
        match (&self.if_none_match, current) {
            (Some(unwanted), Some(current)) if unwanted.holds(&current.etag) => Err(Error::PreconditionFailed),
            _ => Ok(()),
        }
    }
}

pub(crate) fn now() -> i64 {
    to_millis(SystemTime::now())
}

pub(crate) fn to_millis(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map(|d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
        .unwrap_or_default()
}

pub(crate) fn from_millis(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(u64::try_from(millis).unwrap_or_default())
}

pub(crate) fn to_i64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(crate) const OBJECT_COLUMNS: &str =
    "id, bucket, key, version, latest, marker, size, etag, modified, attributes, tags";

/// Reads a row of [`OBJECT_COLUMNS`]. Versions are named only where the bucket has or had versioning.
pub(crate) fn object_from(row: &Row<'_>, versioned: bool) -> Result<ObjectInfo, Error> {
    let version: String = row.get(3)?;
    Ok(ObjectInfo {
        id: row.get(0)?,
        bucket: row.get(1)?,
        key: row.get(2)?,
        version: versioned.then_some(version),
        latest: row.get(4)?,
        delete_marker: row.get(5)?,
        size: u64::try_from(row.get::<_, i64>(6)?).unwrap_or_default(),
        etag: row.get(7)?,
        modified: from_millis(row.get(8)?),
        attributes: serde_json::from_str(row.get_ref(9)?.as_str().map_err(rusqlite::Error::from)?)?,
        tags: serde_json::from_str(row.get_ref(10)?.as_str().map_err(rusqlite::Error::from)?)?,
    })
}

/// The bucket's versioning state, or that there is no such bucket.
pub(crate) fn bucket(connection: &Connection, name: &str) -> Result<BucketInfo, Error> {
    connection
        .prepare_cached("SELECT name, created, versioning FROM bucket WHERE name = ?1")?
        .query_row([name], |r| {
            Ok(BucketInfo { name: r.get(0)?, created: from_millis(r.get(1)?), versioning: r.get(2)? })
        })
        .optional()?
        .ok_or_else(|| Error::NoSuchBucket(name.into()))
}

/// The current version of a key, delete markers included.
pub(crate) fn latest(connection: &Connection, bucket: &BucketInfo, key: &str) -> Result<Option<ObjectInfo>, Error> {
    let sql = format!("SELECT {OBJECT_COLUMNS} FROM object WHERE bucket = ?1 AND key = ?2 AND latest = 1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params![bucket.name, key])?;
    rows.next()?.map(|row| object_from(row, bucket.versioning.is_some())).transpose()
}

/// The version asked for, or the current one; an error when it does not exist or is a delete marker.
pub(crate) fn find(
    connection: &Connection,
    bucket: &BucketInfo,
    key: &str,
    version: Option<&str>,
) -> Result<ObjectInfo, Error> {
    let missing = || Error::NoSuchKey { bucket: bucket.name.clone(), key: key.into() };
    let Some(version) = version else {
        return latest(connection, bucket, key)?.filter(|o| !o.delete_marker).ok_or_else(missing);
    };
    let sql = format!("SELECT {OBJECT_COLUMNS} FROM object WHERE bucket = ?1 AND key = ?2 AND version = ?3");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params![bucket.name, key, version])?;
    let found = rows.next()?.map(|row| object_from(row, bucket.versioning.is_some())).transpose()?;
    match found {
        Some(object) if object.delete_marker => Err(Error::DeleteMarker),
        Some(object) => Ok(object),
        None => Err(Error::NoSuchVersion { key: key.into(), version: version.into() }),
    }
}

/// Deletes one object row; returns the content files that nothing names any more.
pub(crate) fn delete_row(connection: &Connection, id: i64) -> Result<Vec<String>, Error> {
    let blobs = blobs(connection, "SELECT DISTINCT blob FROM slice WHERE object = ?1", params![id])?;
    connection.prepare_cached("DELETE FROM object WHERE id = ?1")?.execute([id])?;
    unnamed(connection, blobs)
}

pub(crate) fn blobs(
    connection: &Connection,
    sql: &str,
    arguments: impl rusqlite::Params,
) -> Result<Vec<String>, Error> {
    let mut statement = connection.prepare_cached(sql)?;
    let blobs = statement.query_map(arguments, |r| r.get(0))?.collect::<Result<_, _>>()?;
    Ok(blobs)
}

/// Those of the content files that no row names.
pub(crate) fn unnamed(connection: &Connection, blobs: Vec<String>) -> Result<Vec<String>, Error> {
    let mut statement = connection.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM slice WHERE blob = ?1) OR EXISTS (SELECT 1 FROM part WHERE blob = ?1)",
    )?;
    let mut free = Vec::new();
    for blob in blobs {
        if !statement.query_row([&blob], |r| r.get::<_, bool>(0))? {
            free.push(blob);
        }
    }
    Ok(free)
}

/// Bucket names as S3 has them; the rule is s3s's own, which also guards the protocol side.
pub(crate) fn check_bucket_name(name: &str) -> Result<(), Error> {
    if s3s::path::check_bucket_name(name) { Ok(()) } else { Err(Error::InvalidBucketName(name.into())) }
}

/// Keys as S3 has them: 1 to 1024 bytes of UTF-8; NUL could not be written in a listing.
pub(crate) fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() || key.len() > 1024 || key.contains('\0') {
        return Err(Error::InvalidArgument("a key has 1 to 1024 bytes and no NUL".into()));
    }
    Ok(())
}

impl Store {
    pub async fn create_bucket(&self, name: &str) -> Result<(), Error> {
        check_bucket_name(name)?;
        let name = name.to_owned();
        self.db
            .write(move |tx| {
                let made =
                    tx.execute("INSERT OR IGNORE INTO bucket (name, created) VALUES (?1, ?2)", params![name, now()])?;
                if made == 0 { Err(Error::BucketExists(name)) } else { Ok(()) }
            })
            .await
    }

    pub async fn bucket(&self, name: &str) -> Result<BucketInfo, Error> {
        let name = name.to_owned();
        self.db.read(move |c| bucket(c, &name)).await
    }

    pub async fn buckets(&self) -> Result<Vec<BucketInfo>, Error> {
        self.db
            .read(|c| {
                let mut statement = c.prepare_cached("SELECT name, created, versioning FROM bucket ORDER BY name")?;
                let rows = statement.query_map([], |r| {
                    Ok(BucketInfo { name: r.get(0)?, created: from_millis(r.get(1)?), versioning: r.get(2)? })
                })?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    pub async fn delete_bucket(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.db
            .write(move |tx| {
                bucket(tx, &name)?;
                let used: bool = tx.query_row(
                    "SELECT EXISTS (SELECT 1 FROM object WHERE bucket = ?1) \
                     OR EXISTS (SELECT 1 FROM upload WHERE bucket = ?1)",
                    [&name],
                    |r| r.get(0),
                )?;
                if used {
                    return Err(Error::BucketNotEmpty(name));
                }
                tx.execute("DELETE FROM bucket WHERE name = ?1", [&name])?;
                Ok(())
            })
            .await
    }

    pub async fn set_versioning(&self, name: &str, enabled: bool) -> Result<(), Error> {
        let (name, state) = (name.to_owned(), if enabled { "Enabled" } else { "Suspended" });
        self.db
            .write(move |tx| {
                bucket(tx, &name)?;
                tx.execute("UPDATE bucket SET versioning = ?2 WHERE name = ?1", params![name, state])?;
                Ok(())
            })
            .await
    }

    /// Unlinks content files that no row names, left by a crash between a rename and its commit, or between a
    /// deletion's commit and its unlinking. One shard at a time, so that it never holds anything up.
    pub async fn sweep(&self) -> Result<usize, Error> {
        let mut swept = 0;
        for shard in 0..=255_u8 {
            let content = self.content.clone();
            let found =
                tokio::task::spawn_blocking(move || content.shard(shard)).await.map_err(|_| Error::Closed)??;
            if found.is_empty() {
                continue;
            }
            let free = self.db.read(move |c| unnamed(c, found)).await?;
            swept += free.len();
            self.content.remove(free).await;
        }
        Ok(swept)
    }
}
